"""What a Sandbox is made of and costs, from the rates alone."""

from __future__ import annotations

import pytest

from cloudft.errors import ProviderError
from infra.gpus import Gpu, find_gpu, parse_wish
from infra.modal_rates import MOST_PARAMETERS, offers_at, price_of, shape_of
from infra.provider import Terms
from tests.doubles.modal import RATES


def card(name: str) -> Gpu:
    found = find_gpu(name)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("gpu", "count", "parameters", "memory_gib"),
    [
        ("A10G", 1, 500_000_000, 16),
        ("A10G", 1, 3_090_000_000, 16),
        ("A10G", 1, 4_020_000_000, 16),
        # 15.0 GiB of weights in 16 bits.
        ("A10G", 1, 8_030_000_000, 24),
        ("A10G", 2, 8_030_000_000, 48),
        # It computes in 32 bits.
        ("T4", 1, 500_000_000, 16),
        ("T4", 1, 3_090_000_000, 20),
        # Beside a large card there is room for more, and for larger bases than we are made for.
        ("L40S", 1, 8_030_000_000, 32),
        ("H100", 1, 14_770_000_000, 36),
        # Of a base whose size is not known the largest is assumed.
        ("A10G", 1, None, 24),
    ],
)
def test_memory_holds_the_base_beside_the_rest(gpu: str, count: int, parameters: int | None, memory_gib: int) -> None:
    shape = shape_of(card(gpu), count, parameters)
    assert shape.memory_gib == memory_gib
    weights = (parameters or MOST_PARAMETERS) * (4 if gpu == "T4" else 2) * count / 2**30
    assert shape.memory_gib >= weights + 6 * count


def test_more_memory_is_in_the_price_and_said() -> None:
    small, large = (
        next(o for o in offers_at(RATES, [parse_wish("A10G")], Terms(parameters=n)) if o.id == "A10G")
        for n in (500_000_000, 8_030_000_000)
    )
    assert large.rate_usd == pytest.approx(small.rate_usd + 8 * RATES["mem_gib_hour_cost_sandbox"])
    assert (small.memory_gib, large.memory_gib) == (16, 24)
    assert "24 GiB of memory" in large.billing_note
    assert f"${24 * RATES['mem_gib_hour_cost_sandbox']:.2f}" in large.billing_note
    unknown = next(o for o in offers_at(RATES, [parse_wish("A10G")], Terms()) if o.id == "A10G")
    assert unknown.rate_usd == pytest.approx(large.rate_usd)
    assert "the size of the base is not known" in unknown.billing_note


def test_the_parts_of_a_price_add_up_and_a_region_multiplies_all_of_them() -> None:
    gpu, shape = card("H100"), shape_of(card("H100"), 2, None)
    price = price_of(RATES, gpu, 2, shape, ())
    dearer = price_of(RATES, gpu, 2, shape, ("us-west",))
    assert price is not None
    assert dearer is not None
    assert price.total == pytest.approx(price.gpus + price.cores + price.memory)
    assert price.gpus == pytest.approx(2 * RATES["gpu_hour_cost_h100"])
    assert dearer.total == pytest.approx(1.75 * price.total)


def test_memory_asked_for_is_answered_with_the_cards_whose_price_is_known() -> None:
    rates = {name: rate for name, rate in RATES.items() if name != "gpu_hour_cost_l4"}
    offers = offers_at(rates, [parse_wish("24GB")], Terms())
    assert "L4" not in {offer.id for offer in offers}
    assert "A10G" in {offer.id for offer in offers}


def test_memory_asked_for_is_refused_when_no_card_that_would_do_has_a_price() -> None:
    """Not answered with "nothing is offered": something is, at a price that is not told."""
    small = {"cpu_hour_cost_sandbox": 0.1, "mem_gib_hour_cost_sandbox": 0.1, "gpu_hour_cost_t4": 0.5}
    with pytest.raises(ProviderError, match="A10G, L4") as info:
        offers_at(small, [parse_wish("24GB")], Terms())
    assert "--max-rate" in info.value.hint
    offers = offers_at(small, [parse_wish("24GB")], Terms(max_rate_usd=3.0))
    assert {offer.rate_usd for offer in offers if offer.memory_gb >= 24} == {3.0}
