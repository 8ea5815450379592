"""What an account's sandboxes do: they wait for a machine, run, bill, and end."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

from grpclib import Status as Code
from modal_proto import api_pb2

from ..clock import Clock  # noqa: TID252 (tests are no installed package)
from ..runpod.runners import Container, Launch, Runner  # noqa: TID252
from .boxes import Box, Line, Status, new_result
from .faults import Faults
from .images import ImageStore
from .ledger import Ledger
from .refusal import Refused

# Dollars per hour, as the service words them [3p]; a memory's is per GiB, a CPU's per physical core.
RATES = {
    "gpu_hour_cost_t4": 0.59,
    "gpu_hour_cost_l4": 0.80,
    "gpu_hour_cost_a10g": 1.10,
    "gpu_hour_cost_l40s": 1.95,
    "gpu_hour_cost_a100_40gb": 2.10,
    "gpu_hour_cost_a100_80gb": 2.50,
    "gpu_hour_cost_h100": 3.95,
    "gpu_hour_cost_h200": 4.54,
    "gpu_hour_cost_b200": 6.25,
    "cpu_hour_cost": 0.0473,
    "mem_gib_hour_cost": 0.008,
    "cpu_hour_cost_sandbox": 0.1419,
    "mem_gib_hour_cost_sandbox": 0.024,
}
# What an unlimited sandbox uses: the whole host.
HOST_CORES, HOST_GIB = 64.0, 512.0
# [assumed] What builds images, at a sandbox's rates.
BUILDER_CORES, BUILDER_GIB = 4.0, 16.0
# The environment of those who name none.
DEFAULT = "main"
BROAD = ("us", "eu", "ap")
LONGEST_S = 86400
END_GRACE_S = 2.0
PREEMPT_GRACE_S = 5.0  # SIGTERM, then SIGKILL [assumed]


class Service:
    """The sandboxes of one workspace, moved by the clock.

    Args:
        clock: the time it lives in.
        runner: what runs in sandboxes.
        faults: what goes wrong.
        schedule_s, boot_s: seconds until a machine is given, and from then until the command starts.
    """

    def __init__(
        self, clock: Clock, runner: Runner, faults: Faults, *, schedule_s: float = 0.0, boot_s: float = 0.0
    ) -> None:
        self.clock, self.runner, self.faults = clock, runner, faults
        self.schedule_s, self.boot_s = schedule_s, boot_s
        self.rates: dict[str, str] = {key: str(value) for key, value in RATES.items()}
        self.boxes: dict[str, Box] = {}
        # (environment, name) → id
        self.apps: dict[tuple[str, str], str] = {}
        self.environments = [DEFAULT]
        self.ledger = Ledger(clock.now)
        self.images = ImageStore(faults, self.ledger, clock.now, self.build_rate)
        self._lock = threading.RLock()
        self._fresh: list[Container] = []
        self._stoppers: list[threading.Thread] = []
        clock.subscribe(self)

    # the clock's side
    def next_event(self) -> float | None:
        with self._lock:
            times = [at for box in self.boxes.values() if box.live for at in self._due(box)]
            return min(times, default=None)

    def settle(self) -> None:
        """Let everything happen that is due by now."""
        with self._lock:
            now = self.clock.now()
            for box in list(self.boxes.values()):
                if box.live:
                    self._settle(box, now)
            fresh, self._fresh = self._fresh, []
        for container in fresh:
            self.runner.started(container)

    def _due(self, box: Box) -> Iterator[float]:
        if box.going_at < float("inf"):
            yield box.going_at
        if box.starved:
            return
        if box.scheduled_at is None:
            yield box.created_at + self.schedule_s
            return
        yield box.ends_at
        if not box.launched and not box.never_boots:
            yield box.launch_at
        if box.container is not None and box.container.state() in ("exited", "failed"):
            yield self.clock.now()

    def _settle(self, box: Box, now: float) -> None:
        if box.scheduled_at is None and not box.starved and now >= box.created_at + self.schedule_s:
            self._schedule(box, max(box.created_at + self.schedule_s, box.created_at))
        if box.scheduled_at is not None and not box.launched and not box.never_boots and now >= box.launch_at:
            self._launch(box)
        self._harvest(box)
        container = box.container
        if container is not None and container.state() == "exited":
            self._harvest(box)  # It may have printed between the last look and its end.
            code = container.exit_code() or 0
            if box.preempted:
                self._finish(box, new_result(Status.GENERIC_STATUS_TERMINATED), now)
                return
            status = Status.GENERIC_STATUS_FAILURE if code else Status.GENERIC_STATUS_SUCCESS
            self._finish(box, new_result(status, code), now)
        elif container is not None and container.state() == "failed":
            self._finish(box, new_result(Status.GENERIC_STATUS_INIT_FAILURE, 0, "it did not start"), now)
        elif now >= box.going_at:
            self._finish(box, new_result(box.going_as), box.going_at)
        elif now >= box.ends_at:
            self._finish(box, new_result(Status.GENERIC_STATUS_TIMEOUT), box.ends_at)

    def _schedule(self, box: Box, at: float) -> None:
        box.scheduled_at = at
        box.task_id = "ta-" + box.id.removeprefix("sb-")
        box.launch_at = at + self.boot_s
        box.ends_at = at + box.definition.timeout_secs
        self.ledger.open(box.id, box.name, self.rate(box.definition), at)

    def _launch(self, box: Box) -> None:
        box.launched = True
        env = {"MODAL_SANDBOX_ID": box.id, "MODAL_TASK_ID": box.task_id, "MODAL_REGION": "us-east-1", **box.env}
        command = tuple(box.definition.entrypoint_args)
        launch = Launch(box.id, box.name, box.image, "", env, at=self.clock.now(), cmd=command)
        box.container = self.runner.start(launch)
        self._fresh.append(box.container)

    def _harvest(self, box: Box) -> None:
        if box.container is not None:
            for text in box.container.take_lines():
                box.lines.append(Line(len(box.lines) + 1, time.time(), text))

    def _finish(self, box: Box, result: Any, at: float) -> None:
        box.result, box.ended_at = result, at
        self.ledger.close(box.id, at)
        if box.container is not None:
            self._stop(box, box.container)

    def _stop(self, box: Box, container: Container) -> None:
        def stop() -> None:
            container.stop(END_GRACE_S)
            with self._lock:
                self._harvest(box)

        if not self.runner.real:
            stop()
            return
        thread = threading.Thread(target=stop, daemon=True)
        self._stoppers.append(thread)
        thread.start()

    # the clients' side
    def create(self, app_id: str, definition: Any, tags: dict[str, str], env: dict[str, str], image: str) -> Box:
        """A new sandbox, which waits for its machine; ``Refused`` if it may not be."""
        self.settle()
        with self._lock:
            gpu = definition.resources.gpu_config
            self._check(app_id, definition)
            if self.faults.take("over_limit", gpu.gpu_type) is not None:
                raise Refused(Code.RESOURCE_EXHAUSTED, f"the workspace may use no more {gpu.gpu_type} GPUs")
            if (fault := self.faults.take("dearer")) is not None:
                self.rates = {key: str(float(value) * fault.value) for key, value in self.rates.items()}
            now = self.clock.now()
            box = Box(app_id, definition, tags, now, env, image)
            # Pages of a list end before a timestamp, so that no two may have the same.
            box.listed_at = max([now, *(other.listed_at + 1e-3 for other in self.boxes.values())])
            box.starved = self.faults.take("no_capacity", gpu.gpu_type) is not None
            box.never_boots = self.faults.take("never_boot") is not None
            self.boxes[box.id] = box
        self.settle()
        return box

    def _check(self, app_id: str, definition: Any) -> None:
        gpu = definition.resources.gpu_config
        if gpu.gpu_type and f"gpu_hour_cost_{_key(gpu.gpu_type)}" not in RATES:
            raise Refused(Code.INVALID_ARGUMENT, f"unknown GPU {gpu.gpu_type}")
        if not 1 <= definition.timeout_secs <= LONGEST_S:
            raise Refused(Code.INVALID_ARGUMENT, f"timeout must be between 1 and {LONGEST_S} seconds")
        name = definition.name
        if name and any(box.live and box.name == name and box.app_id == app_id for box in self.boxes.values()):
            raise Refused(Code.ALREADY_EXISTS, f"a running sandbox is named {name}")

    def get(self, sandbox_id: str) -> Box:
        """By id, ended or not."""
        self.settle()
        with self._lock:
            if sandbox_id not in self.boxes:
                raise Refused(Code.NOT_FOUND, f"no sandbox {sandbox_id}")
            return self.boxes[sandbox_id]

    def app(self, environment: str, name: str, create: bool = False) -> str:
        """The id of an app; ``Refused`` if there is none, or no such environment."""
        environment = environment or DEFAULT
        if environment not in self.environments:
            raise Refused(Code.NOT_FOUND, f"no environment {environment}")
        with self._lock:
            if create:
                self.apps.setdefault((environment, name), f"ap-{len(self.apps) + 1}")
            if (environment, name) not in self.apps:
                raise Refused(Code.NOT_FOUND, f"no app {name} in {environment}")
            return self.apps[environment, name]

    def named(self, environment: str, app_name: str, name: str) -> Box:
        """The live one of that name."""
        self.settle()
        app_id = self.app(environment, app_name)
        with self._lock:
            for box in self.boxes.values():
                if box.live and box.name == name and app_id == box.app_id:
                    return box
        raise Refused(Code.NOT_FOUND, f"no running sandbox is named {name}")

    def terminate(self, sandbox_id: str, status: int = Status.GENERIC_STATUS_TERMINATED) -> None:
        """End it; nothing happens to one that has ended."""
        box = self.get(sandbox_id)
        with self._lock:
            if not box.live or box.going_at < float("inf"):
                return
            fault = self.faults.take("slow_end")
            box.going_as = status
            box.going_at = self.clock.now() + (fault.value if fault else 0.0)
        self.settle()

    def preempt(self, sandbox_id: str) -> None:
        """Take its machine away: SIGTERM, and its end a little later; billed until then."""
        box = self.get(sandbox_id)
        with self._lock:
            box.preempted = True
            container = box.container
        if container is None:
            self.terminate(sandbox_id)
        elif self.runner.real:
            thread = threading.Thread(target=container.stop, args=(PREEMPT_GRACE_S,), daemon=True)
            self._stoppers.append(thread)
            thread.start()
        else:
            container.stop(PREEMPT_GRACE_S)
            self.settle()

    def end(self, sandbox_id: str, status: int, exit_code: int = 0, why: str = "") -> None:
        """End it with any result; what the tests use."""
        box = self.get(sandbox_id)
        with self._lock:
            if box.live:
                self._finish(box, new_result(status, exit_code, why), self.clock.now())

    def give_capacity(self) -> None:
        """Machines are free again: those who wait get one."""
        with self._lock:
            for box in self.boxes.values():
                if box.starved and box.live:
                    box.starved = False
                    box.created_at = max(box.created_at, self.clock.now() - self.schedule_s)
        self.settle()

    def listed(self, app_id: str, tags: dict[str, str], before: float, finished: bool, page: int) -> list[Box]:
        """The newest first."""
        self.settle()
        with self._lock:
            shown = [
                box
                for box in self.boxes.values()
                if (box.live or finished)
                and (not app_id or box.app_id == app_id)
                and all(box.tags.get(key) == value for key, value in tags.items())
                and (not before or box.listed_at < before)
                and box.created_at + self.faults.list_lag_s <= self.clock.now() + 1
            ]
        return sorted(shown, key=lambda box: -box.listed_at)[:page]

    def rate(self, definition: Any) -> float:
        """Dollars per hour for a sandbox, at this moment's rates."""
        resources = definition.resources
        rates = {key: float(value) for key, value in self.rates.items()}
        cores = resources.milli_cpu_max / 1000 or HOST_CORES
        memory = resources.memory_mb_max / 1024 or HOST_GIB
        total = cores * rates["cpu_hour_cost_sandbox"] + memory * rates["mem_gib_hour_cost_sandbox"]
        if resources.gpu_config.gpu_type:
            total += resources.gpu_config.count * rates[f"gpu_hour_cost_{_key(resources.gpu_config.gpu_type)}"]
        regions = list(definition.scheduler_placement.regions)
        if regions:
            total *= 1.5 if all(region in BROAD for region in regions) else 1.75
        return total

    def build_rate(self) -> float:
        """Dollars per hour of what builds images."""
        cores, memory = (float(self.rates[key]) for key in ("cpu_hour_cost_sandbox", "mem_gib_hour_cost_sandbox"))
        return BUILDER_CORES * cores + BUILDER_GIB * memory

    def live(self, name_prefix: str = "") -> list[Box]:
        """Every sandbox that has not ended: the truth, whatever lists say."""
        self.settle()
        with self._lock:
            return [box for box in self.boxes.values() if box.live and box.name.startswith(name_prefix)]

    def close(self) -> None:
        """End all of them."""
        with self._lock:
            for box in self.boxes.values():
                if box.live:
                    self._finish(box, new_result(api_pb2.GenericResult.GENERIC_STATUS_TERMINATED), self.clock.now())
        for thread in self._stoppers:
            thread.join(timeout=60)
        with contextlib.suppress(Exception):
            self.runner.close()


def _key(gpu_type: str) -> str:
    return gpu_type.lower().replace("-", "_")
