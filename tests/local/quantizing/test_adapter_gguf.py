"""An adapter alone does in llama.cpp what it does in peft, with every kind of scale."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudft.errors import ConfigError, VerifyError
from local.quantizing import adapter_gguf, onepass
from local.quantizing.adapter_gguf import build_adapter
from local.quantizing.merge import lay_out, load_tuned
from local.quantizing.reference import beside
from local.quantizing.toolchain import Toolchain
from tests.local.models import forget_converter, make_lora, make_model
from tests.local.quantize_fixtures import no_progress, toolchain

__all__ = ["toolchain"]

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::UserWarning")]

ROW = list(range(20, 60))


@pytest.fixture(autouse=True)
def _upstreams_packages() -> Iterator[None]:
    yield
    forget_converter()


def written(base: Path, adapter: Path, out: Path, toolchain: Toolchain) -> Path:
    scratch = out / "scratch"
    scratch.mkdir()
    build_adapter(
        base=str(base),
        adapter=str(adapter),
        toolchain=str(toolchain.root),
        scratch=str(scratch),
        out=str(out / "adapter.gguf"),
        again="cloudft quantize run-1",
        progress=no_progress,
    )
    return out / "adapter.gguf"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {}),
        ("llama", {"use_rslora": True, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"down_proj": 3, "k_proj": 64}}),
        ("phi3", {"lora_alpha": -16, "alpha_pattern": {"qkv_proj": 40}}),
    ],
)
def test_the_base_with_it_is_the_tuned_model(
    name: str, options: dict[str, Any], tmp_path: Path, toolchain: Toolchain
) -> None:
    import numpy as np
    from llama_cpp import Llama

    base = make_model(tmp_path / "base", name)
    adapter = make_lora(tmp_path / "adapter", base, **options)
    path = written(base, adapter, tmp_path, toolchain)
    lay_out(base, base, None, tmp_path / "model")
    onepass.write(
        tmp_path / "model",
        None,
        {"F16": tmp_path / "base.gguf"},
        toolchain=toolchain.root,
        name="base",
        scratch=tmp_path,
        progress=no_progress,
    )

    def logits(**more: Any) -> Any:
        model = Llama(str(tmp_path / "base.gguf"), n_ctx=64, logits_all=True, verbose=False, **more)
        model.eval(ROW)
        return model.scores[: len(ROW)].copy()

    wanted = beside(load_tuned(base, adapter, "float32"), [ROW])
    spread = float(wanted.std())
    found = logits(lora_path=str(path))
    assert float(np.sqrt(((found - wanted) ** 2).mean())) < 0.01 * spread
    assert float(np.sqrt(((logits() - wanted) ** 2).mean())) > 0.3 * spread  # the adapter matters


def test_a_wrong_scale_is_noticed(tmp_path: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch) -> None:
    """As upstream's script alone would give it."""
    base = make_model(tmp_path / "base", "llama")
    adapter = make_lora(tmp_path / "adapter", base, use_rslora=True)
    real = adapter_gguf._scale

    def unscaled(lora: Any, folder: Path, out: Path) -> list[float]:
        sizes = real(lora, folder, out)
        (out / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes())
        return sizes

    monkeypatch.setattr(adapter_gguf, "_scale", unscaled)
    with pytest.raises(VerifyError, match="scale of a layer in the file is off by"):
        written(base, adapter, tmp_path, toolchain)
    assert not (tmp_path / "adapter.gguf").exists()


def test_more_than_factors_is_refused(tmp_path: Path, toolchain: Toolchain) -> None:
    base = make_model(tmp_path / "base", "llama")
    adapter = make_lora(tmp_path / "adapter", base, use_dora=True, target_modules=["q_proj"])
    with pytest.raises(ConfigError, match=r"can't be a file of its own, .*: DoRA") as caught:
        written(base, adapter, tmp_path, toolchain)
    assert caught.value.hint == "merge it instead:  cloudft quantize run-1"
