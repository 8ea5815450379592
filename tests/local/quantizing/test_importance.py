"""An imatrix without llama-imatrix: the same sums, and the same file as upstream makes from them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudft.errors import DataError
from local.files import sha256_file
from local.quantizing import ggml, onepass
from local.quantizing.adapter import read_lora
from local.quantizing.importance import importances
from local.quantizing.lora import Lora
from local.quantizing.merge import lay_out
from local.quantizing.quant_types import offered
from local.quantizing.toolchain import Toolchain
from tests.local.models import forget_converter, in_32_bits, make_lora, make_model, merged_by_peft, todays_way
from tests.local.quantize_fixtures import ROWS, TEMPLATE, no_progress, toolchain

__all__ = ["toolchain"]

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::UserWarning")]

TEXT = [row["messages"] for row in ROWS]
# Blocks of IQ1 and IQ2_S are in these. ggml computes their tables for ten seconds and more; compared once by hand.
SLOW_TABLES = {"IQ1_S", "IQ1_M", "IQ2_M", "IQ3_XXS"}


@pytest.fixture(autouse=True)
def _upstreams_packages() -> Iterator[None]:
    yield
    forget_converter()


@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_the_file_is_upstreams_with_the_same_importances(name: str, tmp_path: Path, toolchain: Toolchain) -> None:
    base = make_model(tmp_path / "base", name)
    adapter = make_lora(tmp_path / "adapter", base)
    lora = read_lora(base, adapter)
    assert isinstance(lora, Lora)
    lay_out(base, adapter, None, tmp_path / "model")
    learnt: dict[str, Any] = {}

    def learn(converter: Any) -> Any:
        learnt.update(importances(converter, tmp_path / "model", lora, adapter, TEMPLATE, TEXT, no_progress))
        return learnt

    outs = {kind: tmp_path / f"{kind}.gguf" for kind in ("Q4_K_M", "IQ2_XXS")}
    onepass.write(
        tmp_path / "model",
        lora,
        outs,
        toolchain=toolchain.root,
        name="tiny",
        scratch=tmp_path,
        progress=no_progress,
        imatrix=learn,
    )
    expected = {"llama": "blk.1.attn_q.weight", "phi3": "blk.1.attn_qkv.weight"}
    assert expected[name] in learnt
    assert len(learnt) == {"llama": 14, "phi3": 8}[name]
    assert not {"output.weight", "token_embd.weight"} & set(learnt)  # as upstream
    merged = merged_by_peft(base, adapter, tmp_path / "merged")
    for kind, path in outs.items():
        wanted = todays_way(merged, tmp_path / "wanted.gguf", kind, toolchain, "tiny", learnt)
        assert sha256_file(path) == sha256_file(wanted), kind
    plain = todays_way(merged, tmp_path / "plain.gguf", "Q4_K_M", toolchain, "tiny")
    assert sha256_file(outs["Q4_K_M"]) != sha256_file(plain)  # or the importances would change nothing


def test_every_type_that_there_is_has_upstreams_bytes(tmp_path: Path, toolchain: Toolchain) -> None:
    """All from one read; with importances, without which upstream makes a third of them not at all."""
    base = make_model(tmp_path / "base", "llama", num_hidden_layers=1)
    lay_out(base, base, None, tmp_path / "model")
    learnt: dict[str, Any] = {}

    def learn(converter: Any) -> Any:
        learnt.update(importances(converter, tmp_path / "model", None, base, TEMPLATE, TEXT, no_progress))
        return learnt

    outs = {kind: tmp_path / f"{kind}.gguf" for kind in offered() if kind not in SLOW_TABLES}
    options = {"toolchain": toolchain.root, "name": "tiny", "scratch": tmp_path, "progress": no_progress}
    onepass.write(tmp_path / "model", None, outs, imatrix=learn, **options)  # type: ignore[arg-type]
    full = in_32_bits(tmp_path / "model", tmp_path / "full.gguf", toolchain, "tiny")
    for kind, path in outs.items():
        ggml.quantize(full, tmp_path / "wanted.gguf", kind, no_progress, learnt)
        assert sha256_file(path) == sha256_file(tmp_path / "wanted.gguf"), kind


def test_they_are_the_mean_squares_of_what_llama_cpp_multiplies(tmp_path: Path, toolchain: Toolchain) -> None:
    """The first layer's input is known without any model: the normed embedding of each token."""
    import numpy as np
    import torch
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    base = make_model(tmp_path / "base", "llama")
    lay_out(base, base, None, tmp_path / "model")
    converter = onepass._prepared(tmp_path / "model", None, toolchain.root, "tiny")
    found = importances(converter, tmp_path / "model", None, base, TEMPLATE, TEXT[:3], no_progress)
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    text = [tokenizer.apply_chat_template(row, chat_template=TEMPLATE, tokenize=False) for row in TEXT[:3]]
    ids = [i for row in text for i in tokenizer(row, add_special_tokens=False)["input_ids"]]
    weights = load_file(base / "model.safetensors")
    x = weights["model.embed_tokens.weight"].float()[torch.tensor(ids)]
    x = x * torch.rsqrt((x**2).mean(-1, keepdim=True) + 1e-6)
    x = x * weights["model.layers.0.input_layernorm.weight"].float()
    np.testing.assert_allclose(found["blk.0.attn_q.weight"], (x**2).mean(0).numpy(), rtol=1e-4)


def test_without_training_text_there_is_nothing_to_learn(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", "llama")
    with pytest.raises(DataError, match="no training text"):
        importances(None, base, None, base, TEMPLATE, [], no_progress)
