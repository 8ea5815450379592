"""Offers: GPUs at live prices, and the rule by which one is taken. Nothing is ever substituted silently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from infra.gpus import Gpu, Wish

Stock = Literal["high", "medium", "low", "none", "unknown"]


@dataclass(frozen=True)
class Offer:
    """A machine that can be rented now. ``rate_usd`` is dollars per hour for all ``count`` GPUs, disk included.

    ``id`` is the provider's own name of the GPU; ``gpu`` None when it is none that we know. ``billing_note`` says
    what the rate is made of. ``longest_seconds``: the provider ends a machine after so long, None: it does not.
    ``memory_gib``: the machine's own memory that is asked for and paid; None: what comes with the GPU.
    """

    provider: str
    id: str
    gpu: Gpu | None
    memory_gb: int
    count: int
    rate_usd: float
    stock: Stock
    cloud: str = ""
    spot: bool = False
    billing_note: str = ""
    longest_seconds: float | None = None
    memory_gib: int | None = None

    @property
    def name(self) -> str:
        name = self.gpu.name if self.gpu else self.id
        return f"{name}:{self.count}" if self.count > 1 else name


@dataclass(frozen=True)
class Match:
    """An offer that satisfies a wish; ``why`` says how: as asked for, or as the nearest in its place."""

    offer: Offer
    why: str


def match(wishes: Sequence[Wish], offers: Sequence[Offer]) -> list[Match]:
    """The offers to try, in order: by the order of the wishes, then by price. Offers without stock stay out.

    A card that no provider has is answered by the cards with at least its memory and at most twice that, and the
    match says so; whether such a one may be taken is for the caller to decide.
    """
    found: list[Match] = []
    for wish in wishes:
        fitting = [o for o in offers if o.count == wish.count and o.stock != "none"]
        exact = [o for o in fitting if wish.gpu is not None and o.gpu == wish.gpu]
        if exact:
            found += [Match(o, f"asked for ({wish.text})") for o in _by_price(exact)]
        elif wish.gpu is None:
            enough = [o for o in fitting if o.memory_gb >= wish.memory_gb]
            found += [Match(o, f"has {o.memory_gb} GB ({wish.text} asked for)") for o in _by_price(enough)]
        else:
            near = [o for o in fitting if wish.memory_gb <= o.memory_gb < 2 * wish.memory_gb]
            text = f"in place of {wish.gpu.name}, which is not offered: {wish.memory_gb} GB or more"
            found += [Match(o, text) for o in _by_price(near)]
    return _once(found)


def _by_price(offers: Sequence[Offer]) -> list[Offer]:
    return sorted(offers, key=lambda o: (o.rate_usd, o.name))


def _once(found: list[Match]) -> list[Match]:
    seen: set[Offer] = set()
    return [m for m in found if not (m.offer in seen or seen.add(m.offer))]  # type: ignore[func-returns-value]
