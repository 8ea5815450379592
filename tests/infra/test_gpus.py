"""Which card a name means."""

from __future__ import annotations

import pytest

from cloudft.errors import UsageError
from infra.gpus import GPUS, find_gpu, parse_wish


@pytest.mark.parametrize(
    ("text", "name", "memory_gb", "count"),
    [
        ("A10G", "A10G", 24, 1),
        ("a10g", "A10G", 24, 1),
        (" A10 ", "A10G", 24, 1),
        ("24GB", None, 24, 1),
        ("80 gb", None, 80, 1),
        ("24GB:4", None, 24, 4),
        ("A100-80GB", "A100-80", 80, 1),
        ("A100", "A100-80", 80, 1),
        ("a100_80gb", "A100-80", 80, 1),
        ("A100-40GB", "A100-40", 40, 1),
        ("H100:2", "H100", 80, 2),
        ("H100:8", "H100", 80, 8),
        ("rtx 4090", "RTX-4090", 24, 1),
        ("NVIDIA GeForce RTX 4090", "RTX-4090", 24, 1),
        ("NVIDIA H100 80GB HBM3", "H100", 80, 1),
    ],
)
def test_a_wish(text: str, name: str | None, memory_gb: int, count: int) -> None:
    wish = parse_wish(text)
    assert (wish.gpu.name if wish.gpu else None, wish.memory_gb, wish.count) == (name, memory_gb, count)
    assert wish.text == text


@pytest.mark.parametrize("text", ["", "A11G", "GB", "-24GB", "24", "H100:two", "H100:0", "H100:9", "H100:-1"])
def test_a_wish_for_nothing_that_is_known(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_wish(text)
    assert caught.value.effect == "nothing was rented"
    assert text in str(caught.value)


def test_an_unknown_card_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        parse_wish("A11G")
    assert "A10G" in caught.value.hint
    assert "24GB" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("24", "--gpu 24GB"),
        ("24G", "--gpu 24GB"),
        ("80 GiB", "--gpu 80GB"),
        ("A10G,L4", "--gpu A10G --gpu L4"),
        ("A10G, 24GB,", "--gpu A10G --gpu 24GB"),
    ],
)
def test_what_was_probably_meant_is_said(text: str, meant: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_wish(text)
    assert caught.value.hint.endswith(meant)
    for word in meant.split("--gpu ")[1:]:
        parse_wish(word.strip())


def test_no_name_means_two_cards() -> None:
    for gpu in GPUS:
        for name in (gpu.name, *gpu.aliases, gpu.runpod, gpu.modal):
            assert name is None or find_gpu(name) is gpu


def test_runpod_has_no_a10g() -> None:
    a10g = find_gpu("A10G")
    assert a10g is not None
    assert a10g.runpod is None
    assert a10g.modal == "A10G"


def test_every_card_can_be_rented_somewhere_and_its_numbers_are_sane() -> None:
    for gpu in GPUS:
        assert gpu.runpod or gpu.modal, gpu.name
        assert 0 < gpu.memory_gb < 1000
        assert gpu.bf16_tflops > 0
        assert gpu.bandwidth_gbs > 0
