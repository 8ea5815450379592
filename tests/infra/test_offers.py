"""Which offers answer a wish, in which order, and that nothing takes another's place silently."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from infra.gpus import GPUS, find_gpu, parse_wish
from infra.offers import Match, Offer, Stock, match

STOCKS: tuple[Stock, ...] = ("high", "medium", "low", "none", "unknown")


def offer(name: str, rate: float, stock: Stock = "high", count: int = 1, memory_gb: int = 0) -> Offer:
    gpu = find_gpu(name)
    return Offer("runpod", name, gpu, memory_gb or (gpu.memory_gb if gpu else 0), count, rate, stock)


def matched(wishes: list[str], offers: list[Offer]) -> list[str]:
    return [f"{m.offer.name} {m.offer.rate_usd}" for m in match([parse_wish(w) for w in wishes], offers)]


def test_an_offer_is_named_like_its_card_with_the_count() -> None:
    assert offer("NVIDIA L4", 0.4).name == "L4"
    assert offer("NVIDIA H100 80GB HBM3", 8, count=2).name == "H100:2"
    assert offer("NVIDIA Something New", 1, memory_gb=99).name == "NVIDIA Something New"


def test_the_order_of_the_wishes_comes_before_the_price() -> None:
    offers = [offer("L4", 0.4), offer("A40", 0.9), offer("A40", 0.5), offer("H100", 4)]
    assert matched(["A40", "L4"], offers) == ["A40 0.5", "A40 0.9", "L4 0.4"]
    assert matched(["L4", "A40"], offers) == ["L4 0.4", "A40 0.5", "A40 0.9"]


def test_a_card_that_is_not_offered_is_answered_by_the_nearest_and_the_match_says_so() -> None:
    offers = [offer("L4", 0.43), offer("RTX-A5000", 0.27), offer("A40", 0.1), offer("RTX-A4000", 0.1)]
    found = match([parse_wish("A10G")], offers)
    assert [m.offer.name for m in found] == ["RTX-A5000", "L4"]
    assert all("in place of A10G" in m.why for m in found)
    assert match([parse_wish("L4")], offers)[0].why == "asked for (L4)"


def test_a_card_that_is_offered_but_has_no_stock_is_answered_by_the_nearest_too() -> None:
    offers = [offer("L4", 0.43, "none"), offer("RTX-A5000", 0.27)]
    (found,) = match([parse_wish("L4")], offers)
    assert found.offer.name == "RTX-A5000"
    assert "in place of L4" in found.why


def test_by_memory_the_cheapest_that_fits_comes_first() -> None:
    offers = [offer("H100", 4), offer("L4", 0.43), offer("RTX-A5000", 0.27), offer("RTX-A4000", 0.2)]
    assert matched(["24GB"], offers) == ["RTX-A5000 0.27", "L4 0.43", "H100 4"]
    assert "24 GB (24GB asked for)" in match([parse_wish("24GB")], offers)[0].why


def test_a_card_nobody_knows_is_taken_only_by_its_memory() -> None:
    new = offer("NVIDIA Something New", 0.1, memory_gb=24)
    assert matched(["24GB"], [new]) == ["NVIDIA Something New 0.1"]
    assert matched(["L4"], [new, offer("L4", 1)]) == ["L4 1"]


def test_the_count_must_be_the_one_asked_for() -> None:
    offers = [offer("H100", 4), offer("H100", 8, count=2)]
    assert matched(["H100:2"], offers) == ["H100:2 8"]
    assert matched(["H100:3"], offers) == []


def test_an_offer_that_two_wishes_allow_is_tried_once() -> None:
    assert matched(["L4", "24GB", "L4"], [offer("L4", 0.4)]) == ["L4 0.4"]


some_offers = st.lists(
    st.builds(
        lambda gpu, rate, stock, count: offer(gpu.name, rate, stock, count),
        st.sampled_from(GPUS),
        st.floats(0.01, 20),
        st.sampled_from(STOCKS),
        st.sampled_from([1, 2]),
    ),
    max_size=12,
)
some_wishes = st.lists(st.sampled_from(["A10G", "24GB", "80GB:2", "L4", "H100:2", "A100", "180GB"]), max_size=4)


@given(some_wishes, some_offers)
def test_whatever_is_matched_was_offered_has_stock_and_fits_a_wish(names: list[str], offers: list[Offer]) -> None:
    wishes = [parse_wish(n) for n in names]
    found: list[Match] = match(wishes, offers)
    assert len({m.offer for m in found}) == len(found)
    for m in found:
        assert m.offer in offers
        assert m.offer.stock != "none"
        assert any(w.count == m.offer.count and m.offer.memory_gb >= w.memory_gb for w in wishes)
        asked = m.offer.gpu is not None and m.offer.gpu in [w.gpu for w in wishes]
        assert asked or m.why.startswith(("in place of", "has "))
