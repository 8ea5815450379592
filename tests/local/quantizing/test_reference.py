"""The reference is transformers' and peft's own answer, without the model ever being in memory whole."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloudft.errors import VerifyError
from local.quantizing import tables
from local.quantizing.adapter import read_lora
from local.quantizing.lora import Lora
from local.quantizing.merge import lay_out
from local.quantizing.overlay import lay_over
from local.quantizing.reference import Weights, _skeleton, batches, predictions
from tests.local.models import ARCHITECTURES, make_lora, make_model

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::UserWarning")]

ROWS = [list(range(10, 40)), list(range(100, 110)), list(range(60, 75))]


def in_memory(base: Path, adapter: Path | None) -> Any:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(model, adapter) if adapter else model
    return model.eval()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_predictions_are_those_of_peft(name: str, tmp_path: Path) -> None:
    import numpy as np
    import torch

    base = make_model(tmp_path / "base", name)
    options = {"target_modules": ["q_proj", "v_proj"]} if name in ("mixtral", "olmoe") else {}
    adapter = make_lora(tmp_path / "adapter", base, **options)
    lora = read_lora(base, adapter)
    assert isinstance(lora, Lora)
    found = predictions(base, lora, ROWS)
    model = in_memory(base, adapter)
    with torch.inference_mode():
        wanted = np.concatenate([model(torch.tensor([row])).logits[0].numpy() for row in ROWS])
    assert found.dtype == np.float32
    assert wanted.std() > 0.1
    np.testing.assert_allclose(found, wanted, atol=3e-5)


TABLES = re.compile("embed_tokens|lm_head|token_indices")
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "DoRA": ("llama", {"use_dora": True, "use_rslora": True}),
    "embedding and output layer": ("llama", {"target_modules": ["embed_tokens", "lm_head"]}),
    "scaled embedding": ("gemma", {"target_modules": ["embed_tokens"]}),
    "trained tokens, tied": (
        "qwen2",
        {"trainable_token_indices": [401, 12, 75], "target_modules": ["q_proj"]},
    ),
    "the output layer of a tied base": ("qwen2", {"target_modules": ["lm_head"]}),
    "the embedding of a tied base": ("qwen2", {"target_modules": ["embed_tokens"]}),
    "the embedding of a tied base, whole": ("qwen2", {"modules_to_save": ["embed_tokens"]}),
    "both of a tied base, whole": ("qwen2", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "trained tokens beside factors of the output layer, tied": (
        "qwen2",
        {"trainable_token_indices": [401, 12, 75], "target_modules": ["q_proj", "lm_head"]},
    ),
    "other tokens of each side, tied": (
        "qwen2",
        {"trainable_token_indices": {"embed_tokens": [401, 12], "lm_head": [75]}, "target_modules": ["q_proj"]},
    ),
    "tokens of one side beside factors of the other, tied": (
        "qwen2",
        {"trainable_token_indices": {"lm_head": [75]}, "target_modules": ["embed_tokens"]},
    ),
    "tokens of one side, the other whole, tied": (
        "qwen2",
        {
            "trainable_token_indices": {"lm_head": [75]},
            "target_modules": ["q_proj"],
            "modules_to_save": ["embed_tokens"],
        },
    ),
    "factors that peft ties": ("qwen2", {"target_modules": ["q_proj", "lm_head"], "ensure_weight_tying": True}),
    "factors that peft ties, each side with its own scale": (
        "qwen2",
        {"target_modules": ["lm_head"], "ensure_weight_tying": True, "alpha_pattern": {"lm_head": 64}},
    ),
    "scaled embedding that peft ties": ("gemma", {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}),
    "whole layers that peft ties": ("qwen2", {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "biases of a whole output layer": ("phi", {"bias": "all", "modules_to_save": ["lm_head"]}),
    "biases of whole layers": ("qwen2", {"bias": "all", "modules_to_save": ["v_proj"], "target_modules": ["q_proj"]}),
    "biases and norms": ("qwen2", {"bias": "all", "modules_to_save": ["norm"]}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_form_of_adapter_does_what_it_does_in_peft(variant: str, tmp_path: Path) -> None:
    """Beside the weights as in training, and merged into them, which shows the merge itself.

    Of embeddings and output layer that is also what peft makes of them alone, without the folder that both read here.
    """
    import numpy as np
    import torch

    name, options = VARIANTS[variant]
    base = make_model(tmp_path / "base", name)
    adapter = make_lora(tmp_path / "adapter", base, **options)
    model = in_memory(base, adapter)
    with torch.inference_mode():
        wanted = np.concatenate([model(torch.tensor([row])).logits[0].numpy() for row in ROWS])
    lora = read_lora(base, adapter)
    assert isinstance(lora, Lora)
    assert not (lora.untied and options.get("ensure_weight_tying") and "alpha_pattern" not in options)
    lay_out(base, base, None, tmp_path / "model")
    lay_over(tmp_path / "model", lora)
    assert bool(tables.compare(base, adapter, tmp_path / "model", lora, tmp_path)) == bool(TABLES.search(str(options)))
    for merge in (False, True):
        found = predictions(tmp_path / "model", lora, ROWS, merge=merge)
        np.testing.assert_allclose(found, wanted, atol=1e-4 * wanted.std())


def keep_tied(lora: Lora) -> None:
    lora.whole.pop("lm_head.weight")
    lora.untied = False


def forget_tokens(lora: Lora) -> None:
    lora.rows.pop("lm_head")


def take_the_wrong_table(lora: Lora) -> None:
    lora.whole["lm_head.weight"] = lora.whole["model.embed_tokens.weight"]


MISTAKES: dict[str, tuple[dict[str, Any], Callable[[Lora], None], str]] = {
    "two that are one": ({"target_modules": ["lm_head"]}, keep_tied, "input embedding|output layer"),
    "tokens on one side": (
        {"trainable_token_indices": [401, 12], "target_modules": ["lm_head"]},
        forget_tokens,
        "output layer",
    ),
    "the wrong table": (
        {"modules_to_save": ["embed_tokens"], "target_modules": ["q_proj"]},
        take_the_wrong_table,
        "output layer",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_untying_is_named(mistake: str, tmp_path: Path) -> None:
    """It would be in the file and in the predictions that the file is compared with."""
    options, spoil, what = MISTAKES[mistake]
    base = make_model(tmp_path / "base", "qwen2")
    adapter = make_lora(tmp_path / "adapter", base, **options)
    lora = read_lora(base, adapter)
    assert isinstance(lora, Lora)
    spoil(lora)
    lay_out(base, base, None, tmp_path / "model")
    lay_over(tmp_path / "model", lora)
    with pytest.raises(VerifyError, match=f"not what peft makes of base and adapter: the ({what}) differs"):
        tables.compare(base, adapter, tmp_path / "model", lora, tmp_path)


def test_blocks_of_a_large_layer_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    base = make_model(tmp_path / "base", "llama")
    whole = predictions(base, None, ROWS)
    monkeypatch.setattr("local.quantizing.reference.BLOCK", 256 * 100)
    np.testing.assert_allclose(predictions(base, None, ROWS), whole, atol=3e-5)


def test_weights_are_there_only_while_they_are_used(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", "llama")
    model = _skeleton(base)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    with Weights(base) as weights:
        assert weights.hold_all_of(model)
    with Weights(make_model(tmp_path / "experts", "mixtral")) as weights:
        assert not weights.hold_all_of(_skeleton(tmp_path / "experts"))  # transformers fuses the experts


def test_the_inputs_of_each_layer_are_heard_without_padding(tmp_path: Path) -> None:
    import torch

    base = make_model(tmp_path / "base", "llama")
    heard: dict[str, Any] = {}
    assert predictions(base, None, ROWS, on_input=heard.__setitem__) is None
    assert "lm_head" not in heard
    model = in_memory(base, None)
    wanted: list[Any] = []
    model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda _, x: wanted.append(x[0][0]))
    with torch.inference_mode():
        for row in ROWS:
            model(torch.tensor([row]))
    torch.testing.assert_close(heard["model.layers.1.mlp.down_proj"], torch.cat(wanted), atol=1e-5, rtol=1e-4)


def test_batches_hold_every_row_once() -> None:
    rows = [[i] * n for i, n in enumerate((5, 1, 9, 3, 3, 20))]
    found = list(batches(rows, 10))
    assert sorted(row for batch in found for row in batch) == sorted(rows)
    assert all(len(batch) == 1 or len(batch) * max(map(len, batch)) <= 10 for batch in found)
