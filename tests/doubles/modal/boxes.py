"""A sandbox as the server knows it."""

from __future__ import annotations

import secrets
import string
from dataclasses import dataclass, field
from typing import Any

from modal_proto import api_pb2

from ..runpod.runners import Container  # noqa: TID252 (tests are no installed package)

Status = api_pb2.GenericResult
ALPHABET = string.ascii_letters + string.digits


@dataclass(frozen=True)
class Line:
    """One line that a sandbox has printed; ``at`` is real time, as the package asks for logs by it."""

    number: int
    at: float
    text: str


@dataclass
class Box:
    """One sandbox. Times are the clock's, epoch seconds; ``rate`` dollars per hour once a machine is given.

    ``starved``: no machine is free. ``ends_at``: its timeout, once it has a machine; ``going_at``: it was told to end,
    and does so then.
    """

    app_id: str
    definition: Any
    tags: dict[str, str]
    created_at: float
    env: dict[str, str] = field(repr=False)
    image: str = ""
    listed_at: float = 0.0
    id: str = field(default_factory=lambda: "sb-" + "".join(secrets.choice(ALPHABET) for _ in range(22)))
    task_id: str = ""
    starved: bool = False
    never_boots: bool = False
    preempted: bool = False
    scheduled_at: float | None = None
    launched: bool = False
    launch_at: float = 0.0
    ends_at: float = float("inf")
    going_at: float = float("inf")
    going_as: int = Status.GENERIC_STATUS_TERMINATED
    ended_at: float | None = None
    result: Any = None
    container: Container | None = None
    lines: list[Line] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.definition.name)

    @property
    def live(self) -> bool:
        """Whether it exists: waiting for a machine, or on one."""
        return self.result is None

    @property
    def gpu(self) -> tuple[str, int]:
        config = self.definition.resources.gpu_config
        return config.gpu_type, config.count


def new_result(status: int, exit_code: int = 0, why: str = "") -> Any:
    """A GenericResult."""
    return api_pb2.GenericResult(status=status, exitcode=exit_code, exception=why)  # type: ignore[arg-type]
