"""A pod, and what is asked of one."""

from __future__ import annotations

import datetime
import itertools
from dataclasses import dataclass, field
from typing import Literal

from .catalog import CloudTier
from .runners import Container

Status = Literal["PROVISIONING", "STARTING", "RUNNING", "EXITED", "ERROR", "TERMINATED"]
LogSource = Literal["container", "system"]

#: Which actions a status allows [doc].
ACTIONS: dict[Status, list[str]] = {
    "PROVISIONING": ["stop", "terminate"],
    "STARTING": ["stop", "terminate"],
    "RUNNING": ["stop", "restart", "terminate"],
    "EXITED": ["start", "terminate"],
    "ERROR": ["start", "terminate"],
    "TERMINATED": [],
}


class Refused(Exception):
    """The service says no.

    Args:
        status: the HTTP status in REST; GraphQL answers 200 with an error.
        detail: the human-readable reason.
        code: ``extensions.code`` in GraphQL.
    """

    def __init__(self, status: int, detail: str, code: str = "BAD_REQUEST") -> None:
        super().__init__(detail)
        self.status, self.detail, self.code = status, detail, code


NO_CAPACITY = (
    "There are no longer any instances available with the requested specifications. Please refresh and try again."
)


@dataclass(frozen=True)
class PodRequest:
    """A create, as REST and GraphQL both mean it; sizes in GB, ``bid`` in $/h per GPU for a spot pod."""

    name: str
    image: str
    gpu_id: str
    gpu_count: int = 1
    clouds: tuple[CloudTier, ...] = ("SECURE",)
    args: str = ""
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    env: dict[str, str] = field(default_factory=dict, repr=False)
    ports: tuple[str, ...] = ()
    disk_gb: int = 10
    volume_gb: int = 0
    volume_path: str = "/workspace"
    registry_id: str | None = None
    data_centers: tuple[str, ...] = ()
    cuda_versions: tuple[str, ...] = ()
    min_cuda: str | None = None
    bid: float | None = None
    ignored_deadlines: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BootTimes:
    """Seconds in each state before the container starts.

    ``runtime_lag`` is the time in which a pod says RUNNING while ``runtime`` is null and nothing runs yet [3p].
    """

    provisioning: float = 0.1
    starting: float = 0.1
    runtime_lag: float = 0.1


@dataclass(frozen=True)
class LogLine:
    at: float
    number: int
    source: LogSource
    line: str

    @property
    def event_id(self) -> str:
        return f"{rfc3339(self.at)}/{self.number:012d}"


@dataclass
class Pod:
    """One pod; ``cost`` is what it really costs in $/h, ``generation`` tells a stale event from a due one."""

    id: str
    request: PodRequest
    name: str
    cloud: CloudTier
    data_center: str
    cuda_version: str
    cost_per_gpu: float
    api_key: str = field(repr=False)
    created_at: float
    status: Status = "PROVISIONING"
    env: dict[str, str] = field(default_factory=dict, repr=False)
    image: str = ""
    args: str = ""
    locked: bool = False
    started_at: float | None = None
    changed_at: float = 0.0
    terminated_at: float | None = None
    status_before_end: Status = "PROVISIONING"
    terminating: bool = False
    holds_gpu: bool = True
    generation: int = 0
    starts: int = 0
    quick_exits: int = 0
    launched_at: float | None = None
    container: Container | None = None
    exit_codes: list[int | None] = field(default_factory=list)
    log: list[LogLine] = field(default_factory=list, repr=False)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1), repr=False)

    @property
    def spot(self) -> bool:
        return self.request.bid is not None

    @property
    def gone(self) -> bool:
        return self.terminated_at is not None

    @property
    def rate(self) -> float:
        """Its GPUs, $/h, while it holds them."""
        return round(self.cost_per_gpu * self.request.gpu_count, 6)

    @property
    def cost(self) -> float:
        """The ``cost`` of the API: 0 once EXITED or TERMINATED [doc]."""
        return 0.0 if self.status in ("EXITED", "TERMINATED") else self.rate

    @property
    def container_runs(self) -> bool:
        return self.status == "RUNNING" and self.container is not None and self.container.state() == "running"

    @property
    def shown_status(self) -> Status:
        """An image that is being pulled, or that can't be, is a pod that is STARTING [assumed]."""
        pulling = self.container is not None and self.container.state() in ("pulling", "failed")
        return "STARTING" if self.status == "RUNNING" and pulling else self.status

    def write(self, at: float, source: LogSource, line: str) -> None:
        self.log.append(LogLine(at, next(self._numbers), source, line))

    def harvest(self, at: float) -> None:
        """Take over what the container has printed."""
        if self.container is not None:
            for line in self.container.take_lines():
                self.write(at, "container", line)


def rfc3339(at: float) -> str:
    """Epoch seconds as ``2026-06-01T12:00:00.000Z``."""
    moment = datetime.datetime.fromtimestamp(at, tz=datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_rfc3339(text: str) -> float:
    """The epoch seconds of an RFC 3339 time; ``ValueError`` for anything else."""
    moment = datetime.datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return moment.timestamp()
