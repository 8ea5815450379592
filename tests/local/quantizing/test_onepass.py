"""One pass gives the very bytes of today's way: every architecture, every form of adapter, every type."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudft.errors import ConfigError, IntegrityError, VerifyError
from local.files import sha256_file
from local.quantizing import onepass
from local.quantizing.adapter import read_lora
from local.quantizing.lora import Lora
from local.quantizing.merge import lay_out, tokenizer_folder
from local.quantizing.overlay import lay_over
from local.quantizing.reference import beside
from local.quantizing.toolchain import Toolchain
from local.quantizing.verify import predictions_of
from tests.local.models import forget_converter, make_lora, make_model, merged_by_peft, todays_way
from tests.local.quantize_fixtures import no_progress, toolchain

__all__ = ["toolchain"]

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::UserWarning")]


@pytest.fixture(scope="module", autouse=True)
def _upstreams_packages() -> Iterator[None]:
    yield
    forget_converter()


def one_pass(
    base: Path, adapter: Path | None, out: Path, kinds: list[str], toolchain: Toolchain, **options: Any
) -> dict[str, Any]:
    lora = read_lora(base, adapter) if adapter else None
    assert lora is None or isinstance(lora, Lora), lora
    lay_out(base, tokenizer_folder(base, adapter), None, out / "model")
    if lora is not None:
        lay_over(out / "model", lora)
    outs = {kind: out / f"{kind}.gguf" for kind in kinds}
    return onepass.write(
        out / "model",
        lora,
        outs,
        toolchain=toolchain.root,
        name="tiny",
        scratch=out,
        progress=options.pop("progress", no_progress),
        **options,
    )


def predicts_as(model: Path, gguf: Path) -> None:
    """llama.cpp loads the file, and its logits are those of transformers, further than a sliding window reaches."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    rows = [list(range(20, 150))]
    wanted = beside(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval(), rows)
    found = predictions_of(gguf, rows)[:, : wanted.shape[1]]
    assert float(np.sqrt(((found - wanted) ** 2).mean())) < 0.02 * float(wanted.std())


CASES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "tied": ("qwen2", {}, ["Q4_K_M"]),
    "untied, permuted q and k": ("llama", {}, ["Q4_K_M", "Q8_0", "F16"]),
    "rows not of 256, tied": ("smollm", {"use_rslora": True}, ["Q4_K_M", "Q6_K"]),
    "rows not of 32": ("odd", {}, ["Q5_K_M"]),
    "patterns": (
        "mistral",
        {"rank_pattern": {"q_proj": 4, "layers.1.mlp.up_proj": 16}, "alpha_pattern": {"down_proj": 3}},
        ["Q4_K_M"],
    ),
    "patterns with rslora": (
        "qwen3",
        {"use_rslora": True, "rank_pattern": {r".*\.0\..*v_proj": 2}, "alpha_pattern": {"v_proj": 5}},
        ["Q4_K_M"],
    ),
    "some targets": ("qwen3", {"target_modules": ["q_proj", "v_proj"]}, ["Q4_K_M"]),
    "some layers": ("llama", {"target_modules": ["k_proj"], "layers_to_transform": [1]}, ["Q4_K_M"]),
    "norms plus one": ("gemma", {}, ["Q4_K_M"]),
    "caps on logits": ("gemma2", {}, ["Q4_K_M"]),
    "gemma 3": ("gemma3", {}, ["Q4_K_M"]),
    "fused qkv": ("phi3", {}, ["Q4_K_M"]),
    "biases and layer norms": ("phi", {}, ["Q4_K_M"]),
    "granite": ("granite", {}, ["Q4_K_M"]),
    "experts that are not tuned": ("mixtral", {"target_modules": ["q_proj", "v_proj"]}, ["Q4_K_M"]),
    "experts, and norms of q and k": ("olmoe", {"target_modules": ["q_proj", "v_proj"]}, ["Q4_K_M"]),
    "experts beside one that all share": (
        "qwen2moe",
        {"target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"]},
        ["Q4_K_M"],
    ),
    "embeddings of another name, tied": ("falcon", {"target_modules": ["query_key_value"]}, ["Q4_K_M"]),
    "DoRA": ("llama", {"use_dora": True, "use_rslora": True}, ["Q4_K_M"]),
    "DoRA, fused qkv": ("phi3", {"use_dora": True}, ["Q6_K"]),
    "whole layers": ("llama", {"modules_to_save": ["lm_head", "embed_tokens", "norm"]}, ["Q4_K_M"]),
    "a tuned embedding and output layer": ("llama", {"target_modules": ["embed_tokens", "lm_head"]}, ["Q4_K_M"]),
    "trained tokens": ("qwen2", {"trainable_token_indices": [401, 7], "target_modules": ["q_proj"]}, ["Q8_0"]),
    "biases": ("qwen2", {"bias": "all"}, ["Q4_K_M"]),
}
# The first case of each architecture is also run by llama.cpp.
RUN = {architecture: case for case, (architecture, _, _) in reversed(CASES.items())}
# Of the others the base is stored in bfloat16.
STORED = {"some targets": "float32", "patterns": "float32", "granite": "float16", "DoRA, fused qkv": "float16"}


@pytest.mark.parametrize("case", CASES)
def test_the_bytes_are_those_of_todays_way(case: str, tmp_path: Path, toolchain: Toolchain) -> None:
    architecture, options, kinds = CASES[case]
    base = make_model(tmp_path / "base", architecture, dtype=STORED.get(case, "bfloat16"))
    adapter = make_lora(tmp_path / "adapter", base, **options)
    run = RUN[architecture] == case
    found = one_pass(base, adapter, tmp_path, list(dict.fromkeys([*kinds, *["F16"] * run])), toolchain)
    merged = merged_by_peft(base, adapter, tmp_path / "merged")
    if run:
        predicts_as(merged, tmp_path / "F16.gguf")
    for kind in kinds:
        wanted = todays_way(merged, tmp_path / "wanted.gguf", kind, toolchain, "tiny")
        assert sha256_file(tmp_path / f"{kind}.gguf") == sha256_file(wanted), kind
    assert not list(tmp_path.glob("*.part"))
    assert set(found["types"]) == {*kinds, *["F16"] * run}
    shutil.rmtree(tmp_path)


def test_a_whole_model_needs_no_adapter(tmp_path: Path, toolchain: Toolchain) -> None:
    base = make_model(tmp_path / "base", "qwen3", dtype="float16")
    one_pass(base, None, tmp_path, ["Q4_K_M"], toolchain)
    merged = merged_by_peft(base, None, tmp_path / "merged")
    wanted = todays_way(merged, tmp_path / "wanted.gguf", "Q4_K_M", toolchain, "tiny")
    assert sha256_file(tmp_path / "Q4_K_M.gguf") == sha256_file(wanted)


def test_sharded_weights_are_one_model(tmp_path: Path, toolchain: Toolchain) -> None:
    from transformers import AutoModelForCausalLM

    whole = make_model(tmp_path / "whole", "llama")
    parts = Path(shutil.copytree(whole, tmp_path / "parts"))
    (parts / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(whole, dtype="auto").save_pretrained(parts, max_shard_size="1MB")
    assert len(list(parts.glob("model-*.safetensors"))) > 2
    adapter = make_lora(tmp_path / "adapter", parts)
    found = []
    for base in (whole, parts):
        out = tmp_path / f"from-{base.name}"
        one_pass(base, adapter, out, ["Q6_K"], toolchain)
        found.append(sha256_file(out / "Q6_K.gguf"))
    assert found[0] == found[1]


def test_progress_says_tensors_speed_and_time_left(tmp_path: Path, toolchain: Toolchain) -> None:
    base = make_model(tmp_path / "base", "llama")
    said: list[tuple[str, float, float | None, str]] = []

    def hear(what: str, done: float = 0, total: float | None = None, unit: str = "", note: str = "") -> None:
        said.append((what, done, total, note))

    one_pass(base, None, tmp_path, ["Q4_K_M"], toolchain, progress=hear)
    quantised = [(done, total, note) for what, done, total, note in said if what == "quantize"]
    assert re.fullmatch(r"\d+/21 tensors, \d+ MB/s, \d+ s left", quantised[-2][2])
    amounts = [done for done, _, _ in quantised]
    assert amounts == sorted(amounts)
    assert amounts[-1] == quantised[-1][1] > 0


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, toolchain: Toolchain) -> None:
    from safetensors.torch import load_file, save_file

    base = make_model(tmp_path / "base", "llama")
    adapter = make_lora(tmp_path / "adapter", base)
    weights = load_file(adapter / "adapter_model.safetensors")
    broken = next(name for name in sorted(weights) if "down_proj.lora_B" in name)
    weights[broken][3, 2] = float("nan")
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(VerifyError, match="not finite numbers"):
        one_pass(base, adapter, tmp_path, ["Q4_K_M"], toolchain)
    assert not (tmp_path / "Q4_K_M.gguf").exists()


def test_a_tensor_that_the_conversion_drops_is_an_error(
    tmp_path: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upstream's classes leave some tensors out on purpose; one with an adapter must not be among them."""
    base = make_model(tmp_path / "base", "llama")
    adapter = make_lora(tmp_path / "adapter", base)
    one_pass(base, None, tmp_path / "before", ["F16"], toolchain)  # upstream's class is imported now
    from conversion.llama import LlamaModel

    real = LlamaModel.filter_tensors.__func__

    def leave_out(cls: type, item: tuple[str, Any]) -> Any:
        return None if "layers.1.mlp.gate_proj" in item[0] else real(cls, item)

    monkeypatch.setattr(LlamaModel, "filter_tensors", classmethod(leave_out))
    with pytest.raises((IntegrityError, VerifyError)) as caught:
        one_pass(base, adapter, tmp_path, ["F16"], toolchain)
    assert "layers.1.mlp.gate_proj.lora_A.weight was not taken up" in str(caught.value)
    assert not (tmp_path / "F16.gguf").exists()


@pytest.mark.parametrize("options", [{"target_modules": ["lm_head"]}, {"modules_to_save": ["embed_tokens"]}])
def test_an_output_layer_that_llama_cpp_does_not_know_is_refused(
    options: dict[str, Any], tmp_path: Path, toolchain: Toolchain
) -> None:
    """In llama.cpp Gemma's is the embedding, so tuning one of the two can't be had there."""
    base = make_model(tmp_path / "base", "gemma2")
    adapter = make_lora(tmp_path / "adapter", base, **options)
    with pytest.raises(ConfigError, match="only one that is both for Gemma2ForCausalLM"):
        one_pass(base, adapter, tmp_path, ["F16"], toolchain)
    assert not list(tmp_path.glob("F16*"))


def test_types_that_need_an_imatrix_say_so(tmp_path: Path, toolchain: Toolchain) -> None:
    base = make_model(tmp_path / "base", "llama")
    with pytest.raises(
        ConfigError, match=r"IQ2_XS can't be made without .*blk\.0\.attn_k\.weight \(and 11 more\)"
    ) as caught:
        one_pass(base, None, tmp_path, ["IQ2_XS"], toolchain)
    assert "--imatrix" in caught.value.hint
