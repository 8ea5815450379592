"""Packed documents do not see each other: by the logits of the models that people tune, and where not, not packed."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import pytest

from jobs.packing import keeps_apart, pack
from tests.local.models import make_model

ONE, TWO, THREE = [5, 6, 7, 8, 9], [10, 11, 12], [13, 14, 15, 16, 17, 18]


def load(folder: Path, name: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(make_model(folder, name), dtype=torch.float32).eval()


@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral", "gemma3"])
def test_a_document_in_a_block_has_the_logits_that_it_has_alone(tmp_path: Path, name: str) -> None:
    import torch
    from datasets import Dataset
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    model = load(tmp_path / name, name)
    rows = [{"input_ids": ids, "labels": ids} for ids in (ONE, TWO, THREE)]
    blocks = pack(Dataset.from_list(rows), 9)
    assert sorted(map(len, blocks["input_ids"])) == [5, 9]
    batch = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(list(blocks))
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "seq_idx")}
    with torch.no_grad():
        packed = model(**inputs, use_cache=False).logits[0]
        # What the collator put together, found again by the positions.
        starts = [*(batch["position_ids"][0] == 0).nonzero().flatten().tolist(), len(packed)]
        for begin, end in itertools.pairwise(starts):
            alone = model(input_ids=batch["input_ids"][:, begin:end], use_cache=False).logits[0]
            torch.testing.assert_close(packed[begin:end], alone, atol=1e-4, rtol=1e-4)
    assert keeps_apart(model).startswith("probed")


def test_a_model_that_reads_on_is_found_out() -> None:
    """A state-space model has no attention mask: what stands before in a block is in its state."""
    import torch
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    config = MambaConfig(vocab_size=64, hidden_size=32, state_size=8, num_hidden_layers=2, use_mambapy=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = MambaForCausalLM(config)
        assert keeps_apart(model) == ""
    assert model.training
