"""RunPod's catalogue as offers: which cards our image can run on, at which live price, and how many there are."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from infra.gpus import find_gpu
from infra.offers import Offer, Stock
from infra.provider import NoCapacity, Terms
from infra.runpod_graphql import Bid
from infra.runpod_rest import NOTHING_RENTED, Rest

# The training image's torch is a wheel for CUDA 13.0, which hosts with older drivers cannot run (the image says so in
# its label cloudft.cuda; a test holds both together). Without this floor such a host is rented, billed and useless.
MIN_CUDA = "13.0"
# CUDA 13 has no kernels for cards older than Turing.
TOO_OLD = re.compile(r"\b(V100|P100|P40|P4|M40|M60|K80|GTX 10\d\d|TITAN)\b", re.IGNORECASE)
# $0.10 per GB and month for the container disk while the pod runs (RunPod's price page); a month of 30 days is the
# dearer reading of "month".
DISK_USD_PER_GB_HOUR = 0.10 / 720
CLOUDS = ("SECURE", "COMMUNITY")
STOCKS: dict[str, Stock] = {"NONE": "none", "LOW": "low", "MEDIUM": "medium", "HIGH": "high"}
WORST_FIRST: tuple[Stock, ...] = ("none", "unknown", "low", "medium", "high")


def disk_rate(disk_gb: int) -> float:
    """Dollars per hour for a container disk."""
    return disk_gb * DISK_USD_PER_GB_HOUR


def read_catalog(rest: Rest, cloud: str, count: int) -> list[dict[str, Any]]:
    """The service's GPU types with the stock for machines of ``count`` GPUs on hosts that our image can run on."""
    gpus = rest.get("/v2/catalog/gpus", "read RunPod's prices", _availability(cloud, count)).get("gpus")
    return [gpu for gpu in gpus if isinstance(gpu, dict)] if isinstance(gpus, list) else []


def cuda_versions(rest: Rest, offer: Offer) -> list[str]:
    """The CUDA versions of the hosts that have this card free; a spot order must name them, it takes no floor.

    Raises:
        NoCapacity: there is no such host.
    """
    path = f"/v2/catalog/gpus/{quote(offer.id, safe='')}"
    gpu = rest.get(path, f"read the stock of {offer.id}", _availability(offer.cloud, offer.count))
    listed = gpu.get("cudaVersions") or []
    versions = [str(v["version"]) for v in listed if v.get("available") and _number(v["version"]) >= _number(MIN_CUDA)]
    if not versions:
        raise NoCapacity(
            f"RunPod has no {offer.id} free on a host with CUDA {MIN_CUDA}, which the training image needs",
            effect=NOTHING_RENTED,
            hint="the next offer may do:  cloudft offers",
        )
    return versions


def offers_of(
    gpu: Mapping[str, Any], cloud: str, count: int, terms: Terms, bids: Mapping[tuple[str, str], Bid]
) -> list[Offer]:
    """The offers for one GPU type in one cloud: none when it cannot be rented so, or its price is not known."""
    gpu_id, memory = gpu.get("id"), gpu.get("memory")
    most = (gpu.get("maxCount") or {}).get(cloud.lower())
    if not isinstance(gpu_id, str) or not isinstance(memory, int) or not gpu.get(cloud.lower()):
        return []
    if gpu.get("manufacturer") != "NVIDIA" or TOO_OLD.search(gpu_id) or (isinstance(most, int) and count > most):
        return []
    prices: list[tuple[Any, Stock, bool]] = [((gpu.get("price") or {}).get(cloud.lower()), _stock(gpu, terms), False)]
    if (bid := bids.get((gpu_id, cloud))) is not None:
        prices.append((bid.usd, STOCKS.get(str(bid.stock).upper(), "unknown"), True))
    disk = disk_rate(terms.disk_gb)
    known = find_gpu(gpu_id)
    return [
        Offer(
            provider="runpod",
            id=gpu_id,
            gpu=known if known and known.runpod == gpu_id else None,
            memory_gb=memory,
            count=count,
            rate_usd=price * count + disk,
            stock=stock,
            cloud=cloud,
            spot=spot,
            billing_note=f"${price * count:.3f}/h and ${disk:.3f}/h for {terms.disk_gb} GB of disk, from creation on: "
            f"the image's pull is billed{'; may be taken away at any time' if spot else ''}",
        )
        for price, stock, spot in prices
        if isinstance(price, int | float) and math.isfinite(price) and price > 0
    ]


def _stock(gpu: Mapping[str, Any], terms: Terms) -> Stock:
    """The stock, or the best among the data centers that are asked for."""
    if not terms.data_centers:
        return STOCKS.get(str(gpu.get("availability")), "unknown")
    centers = [c for c in gpu.get("dataCenters") or [] if c.get("id") in terms.data_centers]
    levels: list[Stock] = [STOCKS.get(str(c.get("availability")), "unknown") for c in centers]
    return max(levels, key=WORST_FIRST.index, default="none")


def _availability(cloud: str, count: int) -> dict[str, str | int]:
    return {"include": "AVAILABILITY", "product": "POD", "cloud": cloud, "count": count, "minCudaVersion": MIN_CUDA}


def _number(version: str) -> tuple[int, ...]:
    """12.11 is above 12.2."""
    return tuple(int(part) for part in re.findall(r"\d+", version))
