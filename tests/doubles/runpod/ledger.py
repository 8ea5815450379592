"""What the server charges, kept by itself, whatever any client believes.

Cost runs from creation (the image pull is billed too) until the pod is terminated, by the millisecond, at the
pod's real rate. All amounts are US dollars, all times epoch seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal

MS_PER_HOUR = Decimal(3_600_000)
HOURS_PER_MONTH = Decimal(720)  # 30 days: the dearer reading of "a month" [assumed]
CONTAINER_DISK_PER_GB_MONTH = Decimal("0.10")  # while the pod runs [doc]
VOLUME_PER_GB_MONTH_RUNNING = Decimal("0.10")  # [mem]
VOLUME_PER_GB_MONTH_STOPPED = Decimal("0.20")  # [mem]


@dataclass(frozen=True)
class Rates:
    """What a pod costs now, $/h: its GPUs, and its disks."""

    gpu: Decimal
    disk: Decimal

    @property
    def total(self) -> Decimal:
        return self.gpu + self.disk


FREE = Rates(Decimal(0), Decimal(0))


def running_rates(gpu_per_hr: float, disk_gb: int, volume_gb: int) -> Rates:
    """The rates of a pod that exists and is not stopped."""
    disk = CONTAINER_DISK_PER_GB_MONTH * disk_gb + VOLUME_PER_GB_MONTH_RUNNING * volume_gb
    return Rates(Decimal(str(gpu_per_hr)), disk / HOURS_PER_MONTH)


def stopped_rates(volume_gb: int) -> Rates:
    """The rates of a stopped pod: the container disk is gone, the volume is kept and costs double."""
    return Rates(Decimal(0), VOLUME_PER_GB_MONTH_STOPPED * volume_gb / HOURS_PER_MONTH)


@dataclass
class Segment:
    """A stretch of constant rates, ``[start_ms, end_ms)``; an open one has no end."""

    rates: Rates
    start_ms: int
    end_ms: int | None = None

    def ms_between(self, start_ms: int, end_ms: int) -> int:
        own_end = end_ms if self.end_ms is None else min(self.end_ms, end_ms)
        return max(0, own_end - max(self.start_ms, start_ms))


@dataclass
class Account:
    """One pod's bill."""

    pod_id: str
    name: str
    segments: list[Segment] = field(default_factory=list)

    def change(self, rates: Rates, at_ms: int) -> None:
        if self.segments and self.segments[-1].end_ms is None:
            self.segments[-1].end_ms = max(at_ms, self.segments[-1].start_ms)
        if rates.total:
            self.segments.append(Segment(rates, at_ms))

    def amounts(self, start_ms: int, end_ms: int) -> tuple[Decimal, Decimal]:
        """(GPU, disk) dollars between two times."""
        gpu = disk = Decimal(0)
        for segment in self.segments:
            hours = Decimal(segment.ms_between(start_ms, end_ms)) / MS_PER_HOUR
            gpu += segment.rates.gpu * hours
            disk += segment.rates.disk * hours
        return gpu, disk


class Ledger:
    """All the bills.

    Args:
        now: where the time comes from, epoch seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._accounts: dict[str, Account] = {}

    def change(self, pod_id: str, name: str, rates: Rates, at: float) -> None:
        """From ``at`` on, the pod costs ``rates`` (``FREE`` ends the bill)."""
        account = self._accounts.setdefault(pod_id, Account(pod_id, name))
        account.change(rates, to_ms(at))

    def total(self, name_prefix: str = "", *, at: float | None = None) -> float:
        """Dollars of all pods ever made whose name (at creation) starts with ``name_prefix``, until ``at``."""
        chosen = [acc for acc in self._accounts.values() if acc.name.startswith(name_prefix)]
        return float(sum((self._sum(acc, at) for acc in chosen), Decimal(0)))

    def of(self, pod_id: str, *, at: float | None = None) -> float:
        """Dollars of one pod; a pod never made is a ``KeyError``."""
        return float(self._sum(self._accounts[pod_id], at))

    def billed_seconds(self, pod_id: str) -> float:
        """For how long the pod has cost something."""
        end = to_ms(self._now())
        return sum(seg.ms_between(0, end) for seg in self._accounts[pod_id].segments) / 1000

    def amounts(self, pod_id: str, start: float, end: float) -> tuple[float, float]:
        """(GPU, disk) dollars of one pod between two times."""
        gpu, disk = self._accounts[pod_id].amounts(to_ms(start), to_ms(end))
        return float(gpu), float(disk)

    def rate(self) -> float:
        """What all pods together cost now, $/h."""
        last = [acc.segments[-1] for acc in self._accounts.values() if acc.segments]
        return float(sum((seg.rates.total for seg in last if seg.end_ms is None), Decimal(0)))

    def pod_ids(self) -> list[str]:
        """Every pod ever made, in order of creation."""
        return list(self._accounts)

    def _sum(self, account: Account, at: float | None) -> Decimal:
        gpu, disk = account.amounts(0, to_ms(self._now() if at is None else at))
        return gpu + disk


def to_ms(seconds: float) -> int:
    return round(seconds * 1000)
