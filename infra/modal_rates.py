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
# host. One process feeds one GPU; the weights pass through memory in pieces.
CORES = 2.0
MEMORY_GIB, MEMORY_GIB_LARGE, LARGE_GPU_GB = 16, 32, 48
MOST_GPUS = {"A10G": 4}


@dataclass(frozen=True)
class Shape:
    """What is asked for besides the GPUs: physical cores and GiB, each a request and a limit."""

    cores: float
    memory_gib: int


def shape_of(gpu: Gpu, count: int) -> Shape:
    """Cores and memory for a machine with ``count`` of that card."""
    memory = MEMORY_GIB_LARGE if gpu.memory_gb >= LARGE_GPU_GB else MEMORY_GIB
    return Shape(CORES * count, memory * count)


def hourly(rates: Mapping[str, SupportsFloat], gpu: Gpu, count: int, regions: Sequence[str]) -> float | None:
    """Dollars per hour for such a Sandbox; None when a part of the price is not known."""
    assert gpu.modal is not None
    shape = shape_of(gpu, count)
    key = gpu.modal.lower().replace("-", "_")
    parts = [(GPU_RATE.format(key), float(count)), (CPU_RATE, shape.cores), (MEMORY_RATE, float(shape.memory_gib))]
    prices = [_price(rates, name) for name, _ in parts]
    if any(price is None for price in prices):
        return None
    total = math.fsum((price or 0.0) * amount for price, (_, amount) in zip(prices, parts, strict=True))
    return total * region_factor(regions)


def region_factor(regions: Sequence[str]) -> float:
    """How much dearer it is to choose where it runs."""
    if not regions:
        return 1.0
    return BROAD_FACTOR if all(region in BROAD for region in regions) else NARROW_FACTOR


def offers_at(rates: Mapping[str, SupportsFloat], wishes: Sequence[Wish], terms: Terms) -> list[Offer]:
    """Every card of Modal's in the counts that are wished for, at these rates.

    Raises:
        ProviderError: a card that is wished for by name has no price, and no ``max_rate_usd`` stands in for it.
    """
    found = []
    for count in sorted({wish.count for wish in wishes} or {1}):
        for gpu in GPUS:
            if gpu.modal is None or count > MOST_GPUS.get(gpu.modal, 8):
                continue
            rate = hourly(rates, gpu, count, terms.data_centers)
            if rate is None and terms.max_rate_usd is None:
                if any(wish.gpu == gpu and wish.count == count for wish in wishes):
                    raise _unknown_price(gpu)
                continue
            found.append(_offer(gpu, count, rate, terms))
    return found


def gpu_of(name: str) -> Gpu | None:
    """The card that Modal calls so."""
    gpu = find_gpu(name)
    return gpu if gpu and gpu.modal else None


def _offer(gpu: Gpu, count: int, rate: float | None, terms: Terms) -> Offer:
    shape = shape_of(gpu, count)
    where = f", times {region_factor(terms.data_centers):g} for the region" if terms.data_centers else ""
    made_of = f"GPU, {shape.cores:g} cores and {shape.memory_gib} GiB at a Sandbox's rates{where}; may be preempted"
    if rate is None:
        made_of = "Modal does not tell the price: --max-rate is taken for it, and the cap holds only if it is no more"
    assert gpu.modal is not None
    return Offer(
        provider="modal",
        id=gpu.modal,
        gpu=gpu,
        memory_gb=gpu.memory_gb,
        count=count,
        rate_usd=rate if rate is not None else terms.max_rate_usd or 0.0,
        stock="unknown",
        billing_note=made_of,
        longest_seconds=LONGEST_SECONDS,
    )


def _unknown_price(gpu: Gpu) -> ProviderError:
    return ProviderError(
        f"Modal's rates for this workspace do not say what {gpu.name} costs in a Sandbox",
        effect="nothing was rented",
        hint="see the rates:  modal billing rates    or say the most that you would pay per hour:  --max-rate 3.00",
    )


def _price(rates: Mapping[str, SupportsFloat], name: str) -> float | None:
    """A rate that is one: a number above zero."""
    value = rates.get(name)
    price = math.nan if value is None else float(value)
    return price if math.isfinite(price) and price > 0 else None
