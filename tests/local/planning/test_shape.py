from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from local.base import lock_base
from local.planning.shape import base_shape, shape_of
from local.planning.vram import Setup, adapter_weights
from tests.local.hub_fixture import REPOSITORY, FakeHub, fake_hub
from tests.local.models import ARCHITECTURES, SMALL
from tests.local.quantize_fixtures import tiny_base

__all__ = ["fake_hub", "tiny_base"]  # fixtures

# transformers' fused or biased layers have a little more than the plain matrices that a shape counts.
EXACT = ("llama", "smollm", "odd", "mistral", "gemma", "granite", "mixtral")


def _meta(name: str) -> tuple[Any, dict[str, Any]]:
    """An architecture without memory, and what its config.json says."""
    import torch
    import transformers

    kind, differs = ARCHITECTURES[name]
    stem = "Gemma3Text" if kind == "Gemma3" else kind
    config = getattr(transformers, f"{stem}Config")(**{**SMALL, "vocab_size": 4096, **differs})
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
    return model, json.loads(config.to_json_string(use_diff=False))


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_the_weights_are_those_of_the_model(name: str) -> None:
    model, config = _meta(name)
    shape = shape_of(config)
    assert shape is not None
    # Norms are counted as two for a layer; an architecture may have more, and a router besides.
    found = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    plain = shape.linear_weights + shape.embedding * (1 if shape.tied else 2)
    assert plain == pytest.approx(found, rel=0 if name in EXACT and name != "mixtral" else 0.01)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma", "phi"])
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_an_adapter_has_as_many_weights_as_pefts(name: str, method: str) -> None:
    from peft import LoraConfig, get_peft_model

    model, config = _meta(name)
    shape = shape_of(config)
    assert shape is not None
    tuned = get_peft_model(
        model,
        LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM", use_dora=method == "dora"),
        low_cpu_mem_usage=True,
    )
    trained = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    assert adapter_weights(shape, Setup(method, 1, 1, 8)) == trained


def test_a_configuration_that_tells_too_little_gives_no_shape() -> None:
    assert shape_of({"model_type": "mystery", "hidden_size": 64}) is None
    assert shape_of({**SMALL, "num_attention_heads": "four"}) is None


def test_what_a_multimodal_base_says_of_its_text_counts() -> None:
    plain = shape_of({**SMALL, "model_type": "gemma3_text"})
    assert plain is not None
    assert shape_of({"model_type": "gemma3", "text_config": {**SMALL, "model_type": "gemma3_text"}}) == plain


def test_silence_about_tying_means_what_the_architecture_does() -> None:
    silent = {name: value for name, value in SMALL.items() if name != "tie_word_embeddings"}
    tied = {kind: shape_of({**silent, "model_type": kind}) for kind in ("gemma2", "llama", "qwen2", "gpt2")}
    assert {kind: shape.tied for kind, shape in tied.items() if shape} == {
        "gemma2": True,
        "llama": False,
        "qwen2": False,
        "gpt2": True,
    }


def test_a_base_of_the_hub_tells_its_shape_by_one_small_file(fake_hub: FakeHub, tmp_path: Path) -> None:
    base = lock_base(REPOSITORY, None, tmp_path)
    fake_hub.served.clear()
    here = shape_of(json.loads((fake_hub.folder / "config.json").read_text()))
    assert base_shape(base, tmp_path) == here
    assert set(fake_hub.served) <= {"config.json"}


def test_a_hub_that_is_away_leaves_the_shape_unknown(fake_hub: FakeHub, tmp_path: Path) -> None:
    base = lock_base(REPOSITORY, None, tmp_path).model_copy(update={"id": "owner/gone"})
    assert base_shape(base, tmp_path) is None
