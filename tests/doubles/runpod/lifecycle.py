"""What time does to pods: they boot, run, restart, bill, and are stopped when the money is gone."""

from __future__ import annotations

import heapq
import itertools
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass

from ..clock import Clock  # noqa: TID252 (tests are no installed package)
from .catalog import Catalog
from .faults import Faults
from .ledger import FREE, Ledger, running_rates, stopped_rates
from .pods import BootTimes, Pod, Status
from .runners import Container, ExitedContainer, Launch, RegistryLogin, Runner

SECRET = re.compile(r"\{\{\s*RUNPOD_SECRET_([A-Za-z0-9_-]+)\s*\}\}")
PREEMPT_GRACE_S = 5.0  # SIGTERM, then SIGKILL [mem]
STOP_GRACE_S = 2.0  # [assumed]


@dataclass(frozen=True)
class Money:
    """The account's money: dollars paid in, $/h that may be rented at most, seconds between two charges."""

    deposit: float = 25.0
    spend_limit: float = 80.0  # [mem]
    charge_every_s: float = 300.0  # [doc]


class Lifecycle:
    """The pods of one account, moved by the clock; ``Service`` adds what a client can ask for.

    Args:
        clock: the time it lives in.
        runner: what containers are made of.
        catalog: the GPUs on offer.
        faults: what goes wrong.
        boot: how long a pod takes until its container starts.
        money: the account's money.
        environment: variables that a pod gets besides its own and ``RUNPOD_POD_ID``, ``RUNPOD_API_KEY``.
    """

    def __init__(
        self,
        clock: Clock,
        runner: Runner,
        *,
        catalog: Catalog,
        faults: Faults,
        boot: BootTimes,
        money: Money,
        environment: Callable[[], dict[str, str]] = dict,
    ) -> None:
        self.clock, self.runner, self.catalog, self.faults = clock, runner, catalog, faults
        self.boot, self.money, self._environment = boot, money, environment
        self.pods: dict[str, Pod] = {}
        self.secrets: dict[str, str] = {}
        self.registries: dict[str, RegistryLogin] = {}
        self.ledger = Ledger(clock.now)
        self.charged = 0.0
        self._next_charge = clock.now() + money.charge_every_s
        self._lock = threading.RLock()
        self._events: list[tuple[float, int, str, int, str]] = []
        self._order = itertools.count()
        self._fresh: list[Container] = []
        self._stoppers: list[threading.Thread] = []
        clock.subscribe(self)

    @property
    def balance(self) -> float:
        """What the account shows: it changes at each charge, not in between."""
        return self.money.deposit - self.charged

    def next_event(self) -> float | None:
        with self._lock:
            if any(self._has_ended(pod) for pod in self.pods.values()):
                return self.clock.now()
            times = [
                at for at, _, pod_id, generation, action in self._events if self._valid(pod_id, generation, action)
            ]
            if self.ledger.rate() > 0:
                times.append(self._next_charge)
            return min(times, default=None)

    def settle(self) -> None:
        """Let everything happen that is due by now, in order."""
        with self._lock:
            now = self.clock.now()
            for pod in self.pods.values():
                pod.harvest(now)
                if self._has_ended(pod):
                    self._container_ended(pod, now)
            while self._events and self._events[0][0] <= now:
                at, _, pod_id, generation, action = heapq.heappop(self._events)
                self._charge_until(at)
                if self._valid(pod_id, generation, action):
                    self._happen(self.pods[pod_id], action, at)
            self._charge_until(now)
            fresh, self._fresh = self._fresh, []
        for container in fresh:
            self.runner.started(container)

    def close(self) -> None:
        """End all containers."""
        with self._lock:
            for pod in self.pods.values():
                pod.generation += 1
                self._end_container(pod, STOP_GRACE_S)
        for thread in self._stoppers:
            thread.join(timeout=60)
        self.runner.close()

    def _boot(self, pod: Pod, at: float) -> None:
        pod.generation += 1
        pod.quick_exits = 0
        self._set_status(pod, "PROVISIONING", at)
        self._at(at + self.boot.provisioning, pod, "starting")

    def _happen(self, pod: Pod, action: str, at: float) -> None:
        if action == "gone":
            self._terminated(pod, at)
        elif action == "starting":
            self._set_status(pod, "STARTING", at)
            if self.faults.take_name("never_boot", pod.name) is None:
                self._at(at + self.boot.starting, pod, "running")
        elif action == "running":
            self._set_status(pod, "RUNNING", at)
            pod.started_at = at
            self._at(at + self.boot.runtime_lag, pod, "launch")
        else:
            self._launch(pod, at)

    def _launch(self, pod: Pod, at: float) -> None:
        pod.starts += 1
        pod.launched_at = at
        pod.status = "RUNNING"
        if self.faults.take_name("refuse_registry", pod.name) is not None:
            lines = [f"error pulling image: {pod.image}: unauthorized: authentication required"]
            pod.container = ExitedContainer("failed", None, lines)
        elif self.faults.take_name("crash_loop", pod.name) is not None:
            pod.container = ExitedContainer("exited", 1, ["exec: no such file or directory"])
        else:
            pod.container = self.runner.start(self._launch_of(pod, at))
            self._fresh.append(pod.container)
        pod.write(at, "system", "start container" if pod.starts == 1 else f"start container (start {pod.starts})")

    def _launch_of(self, pod: Pod, at: float) -> Launch:
        request = pod.request
        env = {key: SECRET.sub(self._secret, value) for key, value in pod.env.items()}
        injected = {
            "RUNPOD_POD_ID": pod.id,
            "RUNPOD_API_KEY": pod.api_key,
            "RUNPOD_GPU_COUNT": str(request.gpu_count),
            "RUNPOD_DC_ID": pod.data_center,
        }
        return Launch(
            pod_id=pod.id,
            name=pod.name,
            image=pod.image,
            args=pod.args,
            env={**self._environment(), **env, **injected},
            start=pod.starts,
            at=at,
            disk_gb=request.disk_gb,
            registry=self.registries.get(request.registry_id or ""),
            entrypoint=request.entrypoint,
            cmd=request.cmd,
        )

    def _secret(self, match: re.Match[str]) -> str:
        return self.secrets.get(match[1], match[0])

    def _has_ended(self, pod: Pod) -> bool:
        return pod.container is not None and pod.container.state() in ("exited", "failed")

    def _container_ended(self, pod: Pod, now: float) -> None:
        """Start it again, as the service does; the pauses are those of Docker's restart policy [assumed]."""
        container = pod.container
        failed = container is not None and container.state() == "failed"
        code = container.exit_code() if container is not None else None
        pod.exit_codes.append(code)
        self._end_container(pod, 0)
        if pod.status != "RUNNING":
            return
        if failed:  # an image that can't be pulled: back to where it came from, until it can
            self._set_status(pod, "STARTING", now)
        if pod.launched_at is not None and now - pod.launched_at >= 10:
            pod.quick_exits = 0
        pause = min(60.0, 0.1 * 2**pod.quick_exits)
        pod.quick_exits = min(pod.quick_exits + 1, 20)
        pod.write(now, "system", f"container ended with code {code}; it is started again in {pause:g} s")
        self._at(now + pause, pod, "launch")

    def _halt(self, pod: Pod, at: float, status: Status, grace_s: float) -> None:
        pod.generation += 1
        self._set_status(pod, status, at)
        self._end_container(pod, grace_s)
        self._free_gpu(pod)
        self.ledger.change(pod.id, pod.request.name, stopped_rates(pod.request.volume_gb), at)

    def _terminated(self, pod: Pod, at: float) -> None:
        pod.generation += 1
        pod.status_before_end = pod.shown_status
        pod.terminated_at = at
        self._set_status(pod, "TERMINATED", at)
        self._end_container(pod, STOP_GRACE_S)
        self._free_gpu(pod)
        self.ledger.change(pod.id, pod.request.name, FREE, at)

    def _free_gpu(self, pod: Pod) -> None:
        if pod.holds_gpu:
            self.catalog.give_back(pod.request.gpu_id, pod.request.gpu_count, pod.cloud)
            pod.holds_gpu = False

    def _end_container(self, pod: Pod, grace_s: float) -> None:
        if (container := pod.container) is None:
            return
        pod.harvest(self.clock.now())
        pod.container = None
        if self.runner.real:
            # In a thread: the pod that ends itself must get its reply while it is being ended.
            thread = threading.Thread(target=container.stop, args=(grace_s,), daemon=True)
            self._stoppers.append(thread)
            thread.start()
        else:
            container.stop(grace_s)

    def _bill(self, pod: Pod, at: float) -> None:
        rates = running_rates(pod.rate, pod.request.disk_gb, pod.request.volume_gb)
        self.ledger.change(pod.id, pod.request.name, rates, at)

    def _charge_until(self, at: float) -> None:
        """Charge at each due time; an account at zero has its pods stopped then, and only then."""
        while self._next_charge <= at:
            if self.ledger.rate() == 0:
                self.charged = self.ledger.total(at=at)
                periods = (at - self._next_charge) // self.money.charge_every_s + 1
                self._next_charge += periods * self.money.charge_every_s
                return
            self.charged = self.ledger.total(at=self._next_charge)
            if self.balance <= 0:
                for pod in self.pods.values():
                    if not pod.gone and pod.holds_gpu:
                        pod.write(self._next_charge, "system", "the account has no balance: pod stopped")
                        self._halt(pod, self._next_charge, "EXITED", STOP_GRACE_S)
            self._next_charge += self.money.charge_every_s

    def _set_status(self, pod: Pod, status: Status, at: float) -> None:
        pod.status, pod.changed_at = status, at

    def _at(self, at: float, pod: Pod, action: str) -> None:
        heapq.heappush(self._events, (at, next(self._order), pod.id, pod.generation, action))

    def _valid(self, pod_id: str, generation: int, action: str) -> bool:
        pod = self.pods[pod_id]
        # A terminate that was accepted comes true whatever else has happened to the pod since.
        return not pod.gone and (action == "gone" or generation == pod.generation)
