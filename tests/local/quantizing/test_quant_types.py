"""The types of file are llama.cpp's own, asked of it and not restated."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudft.errors import UsageError, VerifyError
from local.quantizing import ggml
from local.quantizing.quant_types import known_types, offered, write_tiny
from tests.local.quantize_fixtures import no_progress


def test_all_of_upstreams_enum_is_offered_but_what_it_cannot_make() -> None:
    from llama_cpp import llama_cpp

    constants = {name: value for name, value in vars(llama_cpp).items() if name.startswith("LLAMA_FTYPE_")}
    left = {name for name in constants if name.split("_", 3)[-1] not in offered() and not name.endswith("ALL_F32")}
    assert left == {"LLAMA_FTYPE_MOSTLY_NVFP4", "LLAMA_FTYPE_GUESSED"}
    assert len(offered()) == len(constants) - 2 > 30
    assert list(offered())[:5] == ["Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16"]
    assert ggml.ftype("Q4_K_M") == 15


@pytest.mark.parametrize("kind", ["NVFP4", "IQ2_M", "IQ3_XS", "Q2_K_S", "IQ1_M", "Q2_K", "TQ1_0", "IQ4_XS"])
def test_what_is_said_of_a_type_is_what_upstream_does(kind: str, tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny.gguf")
    if kind in offered() and not offered()[kind].needs_imatrix:
        ggml.quantize(tmp_path / "tiny.gguf", tmp_path / "out.gguf", kind, no_progress)
        found = ggml.tensor_types(tmp_path / "out.gguf")
        assert offered()[kind].lacking(found, {}) == []
        return
    with pytest.raises(VerifyError, match=r"requires an imatrix|invalid output file type"):
        ggml.quantize(tmp_path / "tiny.gguf", tmp_path / "out.gguf", kind, no_progress)


def test_tensors_that_lack_importances_are_named() -> None:
    planned = {"output.weight": "IQ2_XXS", "blk.1.ffn_up.weight": "Q2_K", "blk.0.ffn_up.weight": "IQ3_XXS"}
    assert offered()["Q4_K_M"].lacking(planned, {}) == ["blk.0.ffn_up.weight"]
    assert offered()["Q2_K_S"].lacking(planned, {}) == ["blk.0.ffn_up.weight", "blk.1.ffn_up.weight"]
    assert offered()["Q2_K_S"].lacking(planned, {"blk.0.ffn_up.weight": 1, "blk.1.ffn_up.weight": 1}) == []


def test_names_are_read_as_upstreams_own_command_reads_them() -> None:
    assert known_types(["q4_k", "Q4_K_M", "iq1_s"]) == ["Q4_K_M", "IQ1_S"]
    with pytest.raises(UsageError, match="no files of type 'Q3_X'") as caught:
        known_types(["Q3_X"])
    assert "Q4_K_M, Q5_K_M" in caught.value.hint
    assert "TQ1_0" in caught.value.hint
