from __future__ import annotations

from dataclasses import replace
from statistics import mean

import pytest

from local.planning.vram import Setup, adapter_weights, memory
from tests.local.published import LLAMA2_7B, LLAMA32_1B, MEMORY, QWEN25_7B, Case

OURS = Setup("lora", 4, 1024, 16)


@pytest.mark.parametrize("case", MEMORY, ids=str)
def test_a_published_peak_lies_in_the_range(case: Case) -> None:
    assert case.bytes is not None
    need = memory(case.shape, case.setup)
    assert need.least <= case.bytes <= need.most
    # Logits that are built whole and the allocator's gaps around them make the widest ranges; they are not ours.
    assert need.most <= 2.1 * need.least


def test_the_middle_of_the_range_is_near_on_average() -> None:
    errors = [memory(case.shape, case.setup).middle / case.bytes - 1 for case in MEMORY if case.bytes is not None]
    assert abs(mean(errors)) < 0.05
    assert mean(abs(error) for error in errors) < 0.09


def test_our_own_range_is_narrow() -> None:
    for method in ("lora", "qlora", "dora", "full"):
        need = memory(QWEN25_7B, replace(OURS, method=method))
        assert 0 < need.least < need.middle < need.most <= 1.75 * need.least
        assert sum(need.parts.values()) == pytest.approx(need.middle, rel=0.15)


def test_each_method_needs_what_it_is_known_for() -> None:
    need = {m: memory(QWEN25_7B, replace(OURS, method=m)).middle for m in ("qlora", "lora", "rslora", "dora", "full")}
    assert need["qlora"] < 0.6 * need["lora"]
    assert need["lora"] == need["rslora"] < need["dora"] < 0.3 * need["full"]
    # Weights, gradients and two averages in float32: 16 bytes a weight.
    assert need["full"] > 16 * QWEN25_7B.parameters


def test_rows_length_rank_and_checkpointing_each_count() -> None:
    usual = memory(LLAMA32_1B, OURS).middle
    for more in (
        replace(OURS, rows=8),
        replace(OURS, length=2048),
        replace(OURS, rank=64),
        replace(OURS, checkpointing=False),
        replace(OURS, wide=True),
        replace(OURS, all_logits=True),
    ):
        assert memory(LLAMA32_1B, more).middle > 1.02 * usual


def test_a_full_fine_tune_shares_its_states_among_cards() -> None:
    full = replace(OURS, method="full")
    one, four = (memory(LLAMA2_7B, replace(full, cards=n)) for n in (1, 4))
    assert four.parts["trained weights and their states"] == one.parts["trained weights and their states"] / 4


def test_the_fused_loss_needs_a_tile_and_not_the_vocabulary() -> None:
    fused, whole = (memory(QWEN25_7B, replace(OURS, length=8192, all_logits=n)).middle for n in (False, True))
    assert whole - fused > 2 * 4 * OURS.rows * 8192 * QWEN25_7B.vocabulary


def test_an_adapter_has_the_weights_that_the_papers_count() -> None:
    # 20 million for LLaMA-7B with rank 8 on every linear layer: the usual count of peft.
    assert adapter_weights(LLAMA2_7B, replace(OURS, rank=8)) == 19_988_480
    # q, k, v and o with rank 16 of Llama-3.2-1B: 3,407,872, as the T4 measurements tell.
    assert adapter_weights(LLAMA32_1B, replace(OURS, attention_only=True)) == 3_407_872
