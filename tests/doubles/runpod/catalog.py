"""The GPUs that can be rented: prices, memory, stock.

There is no A10G, as at the service. Prices in $/h for one GPU: [facts] from the project's collected facts,
[mem] from memory, unverified; the tests must not depend on them being today's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

CloudTier = Literal["SECURE", "COMMUNITY"]
CLOUDS: tuple[CloudTier, ...] = ("SECURE", "COMMUNITY")


@dataclass(frozen=True)
class DataCenter:
    id: str
    name: str
    country: str


DATA_CENTERS = (
    DataCenter("US-KS-2", "US Kansas 2", "US"),
    DataCenter("US-TX-3", "US Texas 3", "US"),
    DataCenter("CA-MTL-1", "CA Montreal 1", "CA"),
    DataCenter("EU-RO-1", "EU Romania 1", "RO"),
    DataCenter("EU-SE-1", "EU Sweden 1", "SE"),
)


@dataclass
class Gpu:
    """One GPU type; ``prices`` and ``stock`` (free GPUs) by cloud, a missing cloud means: not there."""

    id: str
    name: str
    memory: int
    prices: dict[CloudTier, float]
    stock: dict[CloudTier, int]
    max_count: int = 8
    spot_share: float = 0.6  # the lowest bid, as a share of the price [assumed]
    pool: str | None = None
    cuda_versions: tuple[str, ...] = ("12.4", "12.6", "12.8")
    data_centers: tuple[str, ...] = field(default_factory=lambda: tuple(dc.id for dc in DATA_CENTERS))

    def price(self, cloud: CloudTier) -> float:
        return self.prices.get(cloud, 0.0)

    def lowest_bid(self, cloud: CloudTier) -> float:
        return round(self.price(cloud) * self.spot_share, 2)

    def level(self, count: int, cloud: CloudTier) -> str:
        """The catalogue's stock level for pods of ``count`` GPUs (NONE, LOW, MEDIUM, HIGH; steps [assumed])."""
        fits = self.stock.get(cloud, 0) // count if count <= self.max_count else 0
        if fits == 0:
            return "NONE"
        if fits <= 2:
            return "LOW"
        return "MEDIUM" if fits <= 8 else "HIGH"


def _gpu(
    gpu_id: str, name: str, memory: int, secure: float, community: float, stock: int, pool: str | None = None
) -> Gpu:
    prices: dict[CloudTier, float] = {}
    if secure:
        prices["SECURE"] = secure
    if community:
        prices["COMMUNITY"] = community
    return Gpu(gpu_id, name, memory, prices, dict.fromkeys(prices, stock), pool=pool)


def default_gpus() -> list[Gpu]:
    """A fresh, realistic catalogue; a price of 0 means that the cloud does not have it."""
    return [
        _gpu("NVIDIA RTX A4000", "RTX A4000", 16, 0.25, 0.17, 12, "AMPERE_16"),  # [mem]
        _gpu("NVIDIA RTX A5000", "RTX A5000", 24, 0.27, 0.16, 12, "AMPERE_24"),  # [facts, mem]
        _gpu("NVIDIA L4", "L4", 24, 0.43, 0.0, 6, "AMPERE_24"),  # [facts, mem]
        _gpu("NVIDIA GeForce RTX 3090", "RTX 3090", 24, 0.46, 0.22, 8, "AMPERE_24"),  # [mem]
        _gpu("NVIDIA GeForce RTX 4090", "RTX 4090", 24, 0.69, 0.34, 24, "ADA_24"),  # [facts, mem]
        _gpu("NVIDIA A40", "A40", 48, 0.44, 0.0, 10, "AMPERE_48"),  # [facts]
        _gpu("NVIDIA RTX A6000", "RTX A6000", 48, 0.49, 0.33, 8, "AMPERE_48"),  # [mem]
        _gpu("NVIDIA L40S", "L40S", 48, 0.86, 0.79, 6, "ADA_48_PRO"),  # [mem]
        _gpu("NVIDIA A100 80GB PCIe", "A100 PCIe", 80, 1.79, 1.19, 4, "AMPERE_80"),  # [facts]
        _gpu("NVIDIA A100-SXM4-80GB", "A100 SXM", 80, 1.89, 0.0, 8, "AMPERE_80"),  # [mem]
        _gpu("NVIDIA H100 PCIe", "H100 PCIe", 80, 2.89, 1.99, 2, "ADA_80_PRO"),  # [mem]
        _gpu("NVIDIA H100 80GB HBM3", "H100 SXM", 80, 3.99, 0.0, 16, "ADA_80_PRO"),  # [facts]
        _gpu("NVIDIA H200", "H200 SXM", 141, 4.31, 0.0, 8, "HOPPER_141"),  # [mem]
    ]


class Catalog:
    """What is on offer now; tests change it while the server runs."""

    def __init__(self, gpus: list[Gpu] | None = None) -> None:
        self.gpus = {gpu.id: gpu for gpu in (default_gpus() if gpus is None else gpus)}

    def get(self, gpu_id: str) -> Gpu | None:
        return self.gpus.get(gpu_id)

    def set_price(self, gpu_id: str, price: float, cloud: CloudTier = "SECURE") -> None:
        """The list price from now on, $/h for one GPU."""
        self.gpus[gpu_id].prices[cloud] = price

    def set_stock(self, gpu_id: str, free: int, cloud: CloudTier = "SECURE") -> None:
        """How many GPUs of this type are free from now on."""
        self.gpus[gpu_id].stock[cloud] = free

    def take(self, gpu_id: str, count: int, cloud: CloudTier) -> None:
        self.gpus[gpu_id].stock[cloud] -= count

    def give_back(self, gpu_id: str, count: int, cloud: CloudTier) -> None:
        self.gpus[gpu_id].stock[cloud] += count
