"""llama.cpp's types and rules are upstream's own, and its refusals are passed on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloudft.errors import EnvironmentProblem, VerifyError
from local.quantizing.ggml import quantize, tensor_types, types_in
from tests.local.quantize_fixtures import Quantised, no_progress, quantised, tiny_adapter, tiny_base

__all__ = ["quantised", "tiny_adapter", "tiny_base"]


def test_the_log_of_a_dry_run_is_read() -> None:
    said = (
        "[   1/   3] output_norm.weight                   - [ 256,    1], type =    f32, size =    0.001 MiB\n"
        "[   2/   3] token_embd.weight                    - [ 256,  512,    1,    1], type =    f32, "
        "size =     0.50 MiB ->     0.10 MiB (q6_K)\n"
        "[   3/   3] a - [ 1], type = bf16, size = 1 MiB\nllama_model_quantize_impl: model size (x)\n"
    )
    assert types_in(said) == {"output_norm.weight": "F32", "token_embd.weight": "Q6_K", "a": "BF16"}


def test_types_are_read_from_a_file(quantised: Quantised, tmp_path: Path) -> None:
    found = tensor_types(quantised.version.gguf)
    assert found["output_norm.weight"] == "F32"
    assert found["token_embd.weight"] == "Q6_K"  # tied: it is the output layer as well
    assert found["blk.0.attn_q.weight"] == "Q4_K"
    (tmp_path / "other").write_text("no file of that kind")
    with pytest.raises(VerifyError, match="is no GGUF file"):
        tensor_types(tmp_path / "other")


def test_what_llama_cpp_says_when_it_refuses(
    quantised: Quantised, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(VerifyError, match="requantizing"):
        quantize(quantised.version.gguf, tmp_path / "out.gguf", "Q8_0", no_progress)
    real = os.statvfs("/")
    full = os.statvfs_result((*real[:3], 0, 0, *real[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    with pytest.raises(EnvironmentProblem, match="the disk is full"):
        quantize(quantised.version.gguf, tmp_path / "out.gguf", "Q8_0", no_progress)
