"""What is quantised in advance is taken where the plan agrees, and changes no byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from local.files import sha256_file
from local.quantizing import headstart, onepass
from local.quantizing.adapter import read_lora
from local.quantizing.headstart import HeadStart, _guess
from local.quantizing.lora import Lora
from local.quantizing.merge import lay_out
from local.quantizing.toolchain import Toolchain
from tests.local.models import forget_converter, make_lora, make_model
from tests.local.quantize_fixtures import no_progress, toolchain

__all__ = ["toolchain"]

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::UserWarning")]


def made_with(early: HeadStart | None, folder: Path, lora: Lora | None, out: Path, toolchain: Toolchain) -> str:
    options = {"toolchain": toolchain.root, "name": "tiny", "scratch": out.parent, "progress": no_progress}
    onepass.write(folder, lora, {"Q4_K_M": out}, early=early, **options)  # type: ignore[arg-type]
    return sha256_file(out)


@pytest.mark.parametrize(("name", "dtype"), [("llama", "bfloat16"), ("qwen2", "float16"), ("smollm", "bfloat16")])
def test_the_bytes_are_the_same(name: str, dtype: str, tmp_path: Path, toolchain: Toolchain) -> None:
    base = make_model(tmp_path / "base", name, dtype=dtype)
    lora = read_lora(base, make_lora(tmp_path / "adapter", base))
    assert isinstance(lora, Lora)
    lay_out(base, base, None, tmp_path / "model")
    early = HeadStart(tmp_path / "model", lora, ["Q4_K_M"])
    early._thread.join()
    made = len(early._blocks)
    assert made == (2 if name == "llama" else 1)
    with_it = made_with(early, tmp_path / "model", lora, tmp_path / "with.gguf", toolchain)
    assert early._blocks == {}  # they were all taken, or this test would show nothing
    assert with_it == made_with(None, tmp_path / "model", lora, tmp_path / "without.gguf", toolchain)
    forget_converter()


def test_a_wrong_guess_is_not_taken(tmp_path: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_model(tmp_path / "base", "llama")
    lay_out(base, base, None, tmp_path / "model")
    monkeypatch.setitem(headstart.GUESSES, "Q4_K_M", (8, 8))
    early = HeadStart(tmp_path / "model", None, ["Q4_K_M"])
    early._thread.join()
    with_it = made_with(early, tmp_path / "model", None, tmp_path / "with.gguf", toolchain)
    assert len(early._blocks) == 2
    assert with_it == made_with(None, tmp_path / "model", None, tmp_path / "without.gguf", toolchain)
    forget_converter()


def test_of_a_type_without_a_guess_nothing_is_read(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", "llama")
    assert _guess(base, None, ["IQ4_XS"]) == []
    assert len(_guess(base, None, ["IQ4_XS", "Q8_0"])) == 2


def test_tuned_layers_are_left_alone(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", "llama")
    lora = read_lora(base, make_lora(tmp_path / "adapter", base))
    assert isinstance(lora, Lora)
    lora.pairs["lm_head"] = next(iter(lora.pairs.values()))
    early = HeadStart(base, lora, ["Q4_K_M"])
    early._thread.join()
    assert {key[3] for key in early._blocks} == {12}  # the embedding only, and not the output layer
