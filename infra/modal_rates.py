"""What a Modal Sandbox costs, from the workspace's own live rates: GPU, CPU and memory, and where it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import SupportsFloat

from cloudft.errors import ProviderError
from infra.gpus import GPUS, Gpu, Wish, find_gpu
from infra.offers import Offer
from infra.provider import Terms

Rates = Mapping[str, SupportsFloat]

# Dollars per hour: for a GPU, per physical core, per GiB. The words of `modal billing rates`; a Sandbox's CPU and
# memory cost three times a Function's, so the Function's own rates are never taken in their place.
GPU_RATE, CPU_RATE, MEMORY_RATE = "gpu_hour_cost_{}", "cpu_hour_cost_sandbox", "mem_gib_hour_cost_sandbox"
# A region multiplies the whole rate: a broad one such as "us", a narrow one such as "us-west" (Modal's guide on
# regions). Which names are broad is not listed, so any but these counts as narrow.
BROAD_FACTOR, NARROW_FACTOR = 1.5, 1.75
BROAD = frozenset({"us", "eu", "ap"})
# A Sandbox's timeout is at most this, and its only end that needs nobody.
LONGEST_SECONDS = 24 * 3600.0
# Per GPU. Asked for and limited alike: what is used above a request is billed, and without a limit that is the whole
# host. One process feeds one GPU.
CORES = 2.0
MEMORY_GIB, MEMORY_GIB_LARGE, LARGE_GPU_GB = 16, 32, 48
# The base goes through memory to the GPU. In its own type it is mapped, and such pages can be given back, but whether
# a Sandbox's limit counts them is not told; in another type it is copied. So all of it must fit, beside the rest.
BESIDE_GIB, STEP_GIB = 6, 4
# The largest base that cloudft is made for, in place of one whose size is not known.
MOST_PARAMETERS = 8_100_000_000
MOST_GPUS = {"A10G": 4}


@dataclass(frozen=True)
class Shape:
    """What is asked for besides the GPUs: physical cores and GiB, each a request and a limit."""

    cores: float
    memory_gib: int


@dataclass(frozen=True)
class Price:
    """Dollars per hour of each part, and the factor of the region on all of them."""

    gpus: float
    cores: float
    memory: float
    factor: float

    @property
    def total(self) -> float:
        return math.fsum((self.gpus, self.cores, self.memory)) * self.factor


def shape_of(gpu: Gpu, count: int, parameters: int | None) -> Shape:
    """Cores and memory for a machine with ``count`` of that card, and a base of so many weights."""
    least = MEMORY_GIB_LARGE if gpu.memory_gb >= LARGE_GPU_GB else MEMORY_GIB
    weights = (parameters or MOST_PARAMETERS) * (2 if gpu.bf16 else 4) / 2**30
    needed = math.ceil((weights + BESIDE_GIB) / STEP_GIB) * STEP_GIB
    return Shape(CORES * count, max(least, needed) * count)


def price_of(rates: Rates, gpu: Gpu, count: int, shape: Shape, regions: Sequence[str]) -> Price | None:
    """What such a Sandbox costs; None when a part of the price is not known."""
    assert gpu.modal is not None
    known = [rate_named(rates, name) for name in (GPU_RATE.format(_key(gpu.modal)), CPU_RATE, MEMORY_RATE)]
    if None in known:
        return None
    one_gpu, one_core, one_gib = (rate or 0.0 for rate in known)
    return Price(one_gpu * count, one_core * shape.cores, one_gib * shape.memory_gib, region_factor(regions))


def region_factor(regions: Sequence[str]) -> float:
    """How much dearer it is to choose where it runs."""
    if not regions:
        return 1.0
    return BROAD_FACTOR if all(region in BROAD for region in regions) else NARROW_FACTOR


def offers_at(rates: Rates, wishes: Sequence[Wish], terms: Terms) -> list[Offer]:
    """Every card of Modal's in the counts that are wished for, at these rates.

    Raises:
        ProviderError: what is wished for has no known price, and no ``max_rate_usd`` stands in for it.
    """
    found, unknown = [], []
    for count in sorted({wish.count for wish in wishes} or {1}):
        for gpu in GPUS:
            if gpu.modal is None or count > MOST_GPUS.get(gpu.modal, 8):
                continue
            shape = shape_of(gpu, count, terms.parameters)
            price = price_of(rates, gpu, count, shape, terms.data_centers)
            if price is None and terms.max_rate_usd is None:
                unknown.append((gpu, count))
            else:
                found.append(_offer(gpu, count, shape, price, terms))
    for wish in wishes:
        _refuse_unknown(wish, found, unknown)
    return found


def _refuse_unknown(wish: Wish, found: Sequence[Offer], unknown: Sequence[tuple[Gpu, int]]) -> None:
    """A card without a price is not left out in silence where it was asked for, or where nothing else would do."""
    if wish.gpu is not None:
        missing = [gpu for gpu, count in unknown if gpu == wish.gpu and count == wish.count]
    elif any(offer.count == wish.count and offer.memory_gb >= wish.memory_gb for offer in found):
        return
    else:
        missing = [gpu for gpu, count in unknown if count == wish.count and gpu.memory_gb >= wish.memory_gb]
    if missing:
        names = ", ".join(gpu.name for gpu in missing)
        raise ProviderError(
            f"Modal's rates for this workspace do not say what a Sandbox with {names} costs",
            effect="nothing was rented",
            hint="see the rates:  modal billing rates    or say the most that you would pay per hour:  --max-rate 3.00",
        )


def gpu_of(name: str) -> Gpu | None:
    """The card that Modal calls so."""
    gpu = find_gpu(name)
    return gpu if gpu and gpu.modal else None


def _offer(gpu: Gpu, count: int, shape: Shape, price: Price | None, terms: Terms) -> Offer:
    assert gpu.modal is not None
    return Offer(
        provider="modal",
        id=gpu.modal,
        gpu=gpu,
        memory_gb=gpu.memory_gb,
        count=count,
        rate_usd=price.total if price is not None else terms.max_rate_usd or 0.0,
        stock="unknown",
        billing_note=_made_of(shape, price, terms),
        longest_seconds=LONGEST_SECONDS,
        memory_gib=shape.memory_gib,
    )


def _made_of(shape: Shape, price: Price | None, terms: Terms) -> str:
    machine = f"{shape.cores:g} cores and {shape.memory_gib} GiB of memory"
    if price is None:
        return (
            f"with {machine}; Modal does not tell the price, so --max-rate is taken for it: the cap holds only if the "
            "real price is no more"
        )
    where = f", all times {price.factor:g} for the region" if price.factor != 1 else ""
    size = "" if terms.parameters else ", enough for 8B, since the size of the base is not known"
    return (
        f"${price.gpus:.2f} GPU, ${price.cores:.2f} for {shape.cores:g} cores, ${price.memory:.2f} for "
        f"{shape.memory_gib} GiB of memory{size}{where}; may be preempted"
    )


def _key(gpu: str) -> str:
    return gpu.lower().replace("-", "_")


def rate_named(rates: Rates, name: str) -> float | None:
    """A rate that is one: a number above zero."""
    value = rates.get(name)
    price = math.nan if value is None else float(value)
    return price if math.isfinite(price) and price > 0 else None
