"""A provider's double, a client and supervisors on one clock that a test moves: what the property test drives.

The provider is reached over the real wire. The supervisors are the real pure core with a small shell: they read
their ticket and write their outcome through the ticket's own URLs, and end their machine with their own key.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest

from infra.gpus import parse_wish
from infra.provider import Provider, Terms
from infra.provider_modal import ModalProvider
from infra.provider_runpod import RunpodProvider
from infra.store_folder import FolderStore
from jobs import lifecycle as machine_side
from jobs.checkpoints import PREFIX, seal
from jobs.keeper import Keeper
from jobs.lifecycle import Phase
from jobs.ticket import ENV_DEADLINE, ENV_TICKET, HEARTBEAT, OUTCOME, RESULT, Ticket
from jobs.transfer import TransferError, exists, put_bytes, read_bytes
from local.config import StoreConfig
from local.project import Project
from local.runs.lifecycle import Begin, CancelAsked
from local.runs.reap import reap
from local.runs.records import PlannedOffer, RunRecord, write_record
from local.runs.session import Session
from tests.doubles.clock import ManualClock
from tests.doubles.modal import ModalDouble
from tests.doubles.runpod import Fault, RunpodDouble, SimContainer, SimRunner

STEP = 20.0
LOOK_EVERY = 60.0
REAP_EVERY = 300.0
CHECKPOINT_EVERY = 300.0


@dataclass
class SimSupervisor:
    """PID 1 of one start of a container. ``end`` takes the machine down with the machine's own rights."""

    env: dict[str, str]
    trains_for: float
    end: Callable[[], None]
    disk: Path
    ticket: Ticket | None = None
    busy_until: float = 0.0
    progress: dict[str, int] = field(default_factory=dict)
    trains_since: float = 0.0
    next_checkpoint: float = math.inf

    def __post_init__(self) -> None:
        self.state = machine_side.State(deadline=float(self.env[ENV_DEADLINE]))
        self.keeper: Keeper | None = None

    def step(self, now: float) -> None:
        """Do what is due."""
        if self.state.phase is Phase.DOWN:
            self.end()
            return
        self._beat(now)
        before = self.state.phase
        self.state, commands = machine_side.decide(self.state, self._event(now), now)
        if self.state.phase is not before:
            lasts = {Phase.FETCH: 60.0, Phase.STOPPING: 30.0}
            self.busy_until = now + lasts.get(self.state.phase, 0.0)
        # The trainer that is started with FETCH waits.
        begins = machine_side.Command.RELEASE_CHILD in commands
        begins |= before is Phase.TRAIN and machine_side.Command.START_CHILD in commands
        if begins and self.keeper is not None:
            self.trains_since, self.next_checkpoint = now, now + CHECKPOINT_EVERY
            self.busy_until = now + self.trains_for - self.keeper.resumed_from
        if self.state.phase is Phase.TRAIN and now >= self.next_checkpoint:
            self._checkpoint(now)
        if machine_side.Command.RECORD in commands and self.ticket is not None:
            outcome: dict[str, object] = {"status": self.state.status, "reason": self.state.reason, "ended_at": now}
            outcome |= self.keeper.report() if self.keeper else {}
            put_bytes(self.ticket.outputs[OUTCOME].put, json.dumps(outcome).encode())
            if before is Phase.UPLOAD:
                put_bytes(self.ticket.outputs[RESULT].put, json.dumps(outcome).encode())

    def _checkpoint(self, now: float) -> None:
        """A second of training is a step; the checkpoint is a real one, in the ticket's real slots."""
        assert self.keeper is not None
        assert self.ticket is not None
        self.next_checkpoint = now + CHECKPOINT_EVERY
        step = round(self.keeper.resumed_from + now - self.trains_since)
        folder = self.keeper.folder / f"{PREFIX}{step}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "optimizer.pt").write_text(str(step))
        seal(folder, step, "spec", now)
        self.keeper.keep(until=0)
        self.progress = {"step": step, "max_steps": round(self.trains_for)}
        self._beat(now)

    def _beat(self, now: float) -> None:
        if self.ticket is not None and self.keeper is not None:
            beat = {"at": now, "progress": self.progress, **self.keeper.report()}
            put_bytes(self.ticket.outputs[HEARTBEAT].put, json.dumps(beat).encode())

    def _event(self, now: float) -> machine_side.Event:
        if self.ticket is None:
            try:
                self.ticket = Ticket.from_json(read_bytes(self.env[ENV_TICKET]))
            except TransferError as exc:
                return machine_side.Failed(str(exc))
            ended = exists(self.ticket.outputs[OUTCOME].get)
            self.keeper = Keeper(self.ticket.outputs, self.disk, lambda _: None)
            return machine_side.TicketRead(self.ticket.save_reserve, ended, self.ticket.rented)
        if self.state.phase is Phase.FETCH and self.state.restored is None and self.keeper is not None:
            self.keeper.restore(until=0)
            return machine_side.Restored(self.keeper.resumed_from > 0)
        if not self.state.stop_reason and exists(self.ticket.stop):
            return machine_side.StopAsked("cancelled by the user")
        if now < self.busy_until:
            return machine_side.Tick()
        done: dict[Phase, machine_side.Event] = {
            Phase.FETCH: machine_side.InputsFetched(),
            Phase.TRAIN: machine_side.ChildEnded("completed", "", True),
            Phase.STOPPING: machine_side.ChildEnded("stopped", "", True),
            Phase.UPLOAD: machine_side.Uploaded(),
            Phase.RECORD: machine_side.Recorded(),
        }
        return done.get(self.state.phase, machine_side.Tick())


class Rented(Protocol):
    """A provider's double, as the property test needs it. One such class a provider; the test is the same for all."""

    name: str
    clock: ManualClock
    provider: Provider
    supervisors: list[SimSupervisor]
    # The faults of lost requests and replies, which count how often they struck.
    hits: list[Any]

    def billed(self) -> float:
        """Dollars, by the server's own ledger."""

    def live(self) -> list[str]:
        """Names of the machines that exist, by the server's own books."""

    def plan(self) -> tuple[PlannedOffer, ...]:
        """Live offers, cheapest first."""

    def preempt(self) -> None:
        """Take a running machine away."""

    def restart(self) -> None:
        """Let a container end, so that the provider starts it again if that is what it does."""

    def break_next_create(self, how: str) -> None:
        """``drop_reply``, ``drop_request``, ``no_capacity``, ``never_boot``, ``dearer``."""

    def another(self) -> Provider:
        """A client of the provider that remembers nothing, as in another process."""

    def lag(self, seconds: float) -> None:
        """Lists show a new machine only after so long."""

    def slow_end(self) -> None:
        """The next machine takes a while to end."""

    def ever(self) -> int:
        """How many machines there have been."""

    def misuses(self) -> list[str]:
        """What the client got wrong; empty for a good one."""


@dataclass
class RentedRunpod:
    """RunPod's double, pods played by ``SimSupervisor``."""

    supervised: bool
    trains_for: float
    name: str = "runpod"
    clock: ManualClock = field(default_factory=lambda: ManualClock(start=time.time()))

    def __post_init__(self) -> None:
        self.supervisors: list[SimSupervisor] = []
        self.hits: list[Fault] = []
        self.disks = Path(tempfile.mkdtemp(prefix="cloudft-pods-"))
        self.server = RunpodDouble(clock=self.clock, runner=SimRunner(on_start=self._started))
        for gpu in self.server.catalog.gpus.values():
            gpu.cuda_versions = ("12.8", "13.0")

    def __enter__(self) -> RentedRunpod:
        self.server.start()
        self._patch = pytest.MonkeyPatch()
        self._patch.setenv("RUNPOD_API_BASE_URL", self.server.url)
        self._patch.setenv("RUNPOD_API_KEY", self.server.api_key)
        self.provider = self.another()
        return self

    def another(self) -> Provider:
        """A provider that remembers nothing, as in another process or on another computer."""
        return RunpodProvider(sleep=self.clock.advance, clock=self.clock.now)

    def __exit__(self, *_: object) -> None:
        self._patch.undo()
        self.server.close()
        shutil.rmtree(self.disks, ignore_errors=True)

    def _started(self, container: SimContainer) -> None:
        env = dict(container.launch.env)

        def end() -> None:
            query = f'mutation {{ podTerminate(input: {{podId: "{env["RUNPOD_POD_ID"]}"}}) }}'
            headers = {"Authorization": f"Bearer {env['RUNPOD_API_KEY']}"}
            if container.alive:
                httpx.post(f"{self.server.url}/graphql", json={"query": query}, headers=headers)

        if self.supervised:
            disk = self.disks / env["RUNPOD_POD_ID"]
            self.supervisors.append(SimSupervisor(env, self.trains_for, end, disk))
            self.supervisors[-1].alive = lambda: container.alive  # type: ignore[attr-defined]

    def billed(self) -> float:
        return float(self.server.ledger.total("cloudft-"))

    def live(self) -> list[str]:
        return [pod.name for pod in self.server.live_pods("cloudft-")]

    def plan(self) -> tuple[PlannedOffer, ...]:
        offers = [o for o in self.provider.offers([parse_wish("24GB")], Terms()) if o.cloud == "SECURE"]
        offers = sorted((o for o in offers if o.memory_gb == 24), key=lambda o: o.rate_usd)
        return tuple(
            PlannedOffer(
                provider=o.provider, id=o.id, name=o.name, rate_usd=o.rate_usd, memory_gb=o.memory_gb, cloud=o.cloud
            )
            for o in offers[:3]
        )

    def preempt(self) -> None:
        for pod in self.server.live_pods("cloudft-")[:1]:
            self.server.service.terminate(pod.id)

    def restart(self) -> None:
        for pod in self.server.live_pods("cloudft-")[:1]:
            for container in self.server.runner.of(pod.id):  # type: ignore[attr-defined]
                container.exit(1)

    def break_next_create(self, how: str) -> None:
        faults = self.server.faults
        if how == "drop_reply":
            self.hits.append(faults.drop_reply("createPod"))
        elif how == "drop_request":
            self.hits.append(faults.drop_request("createPod"))
        elif how == "no_capacity":
            faults.no_capacity(times=1)
        elif how == "never_boot":
            faults.never_boot(times=1)
        else:
            for gpu in self.server.catalog.gpus.values():
                faults.stale_price(gpu.id, actual=gpu.price("SECURE") * 1.5, times=1)

    def lag(self, seconds: float) -> None:
        self.server.faults.list_lag(seconds)

    def slow_end(self) -> None:
        self.server.faults.slow_terminate("cloudft-", seconds=60, times=1)

    def ever(self) -> int:
        return len(self.server.service.pods)

    def misuses(self) -> list[str]:
        return [*self.server.misuses, *self.server.defects]


@dataclass
class RentedModal:
    """Modal's double, sandboxes played by ``SimSupervisor``: its end is the end of the command."""

    supervised: bool
    trains_for: float
    name: str = "modal"
    clock: ManualClock = field(default_factory=lambda: ManualClock(start=time.time()))

    def __post_init__(self) -> None:
        self.supervisors: list[SimSupervisor] = []
        self.hits: list[Any] = []
        self.disks = Path(tempfile.mkdtemp(prefix="cloudft-sandboxes-"))
        self.server = ModalDouble(clock=self.clock, runner=SimRunner(on_start=self._started))
        # Its smallest machine is dearer than RunPod's: so that the same budgets buy about as much.
        self.server.service.rates = {name: str(float(rate) / 4) for name, rate in self.server.service.rates.items()}

    def __enter__(self) -> RentedModal:
        self.server.start()
        self._patch = pytest.MonkeyPatch()
        for name, value in self.server.env().items():
            self._patch.setenv(name, value)
        self.provider = self.another()
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()
        self.server.close()
        shutil.rmtree(self.disks, ignore_errors=True)

    def another(self) -> Provider:
        """A provider that remembers nothing, as in another process or on another computer."""
        return ModalProvider(sleep=self.clock.advance, clock=self.clock.now, machine_within=1.5)

    def _started(self, container: SimContainer) -> None:
        if self.supervised:
            env = dict(container.launch.env)
            disk = self.disks / env["MODAL_SANDBOX_ID"]
            self.supervisors.append(SimSupervisor(env, self.trains_for, container.exit, disk))
            self.supervisors[-1].alive = lambda: container.alive  # type: ignore[attr-defined]

    def billed(self) -> float:
        return self.server.ledger.total("cloudft-")

    def live(self) -> list[str]:
        return [box.name for box in self.server.live("cloudft-")]

    def plan(self) -> tuple[PlannedOffer, ...]:
        offers = sorted(self.provider.offers([parse_wish("24GB")], Terms()), key=lambda o: o.rate_usd)
        return tuple(
            PlannedOffer(
                provider=o.provider,
                id=o.id,
                name=o.name,
                rate_usd=o.rate_usd,
                memory_gb=o.memory_gb,
                longest_seconds=o.longest_seconds,
            )
            for o in offers[:3]
        )

    def preempt(self) -> None:
        for box in self.server.live("cloudft-")[:1]:
            self.server.preempt(box.id)

    def restart(self) -> None:
        for container in self.server.runner.containers[-1:]:  # type: ignore[attr-defined]
            container.exit(1)
        self.server.service.settle()

    def break_next_create(self, how: str) -> None:
        faults = self.server.faults
        if how == "drop_reply":
            self.hits.append(faults.drop_reply("SandboxCreate"))
        elif how == "drop_request":
            self.hits.append(faults.drop_request("SandboxCreate"))
        elif how == "no_capacity":
            faults.no_capacity(times=1)
        elif how == "never_boot":
            faults.never_boot(times=1)
        else:
            faults.dearer(1.5)

    def lag(self, seconds: float) -> None:
        self.server.faults.list_lag(seconds)

    def slow_end(self) -> None:
        self.server.faults.slow_end(60)

    def ever(self) -> int:
        return len(self.server.service.boxes)

    def misuses(self) -> list[str]:
        return self.server.misuses


@dataclass
class Life:
    """One run on one provider: client, reaper and machines move with the clock."""

    rented: Rented
    root: Path
    budget: float
    client: bool
    reaper: bool

    def __post_init__(self) -> None:
        project = Project(self.root)
        run = project.run("20261120-101010-ab12")
        run.root.mkdir(parents=True)
        record = RunRecord(
            run_id=run.run_id,
            project="p",
            created_at=self.rented.clock.now(),
            provider=self.rented.name,
            store=StoreConfig(url="./store"),
            spec_sha256=hashlib.sha256(SPEC.encode()).hexdigest(),
            budget_usd=self.budget,
            plan=self.rented.plan(),
        )
        write_record(run, record, "test")
        run.spec.write_text(SPEC)
        self.session = Session(
            project,
            run,
            FolderStore(self.root / "store"),
            self.rented.provider,
            may_rent=True,
            clock=self.rented.clock.now,
        )
        self.next_look = self.next_reap = 0.0

    def restart_client(self) -> None:
        """Another process, which knows what is in the record and nothing else."""
        self.session = replace(self.session, provider=self.rented.another())

    def begin(self) -> None:
        self._try(lambda: self.session.apply(Begin()))
        # Whatever goes wrong, there is an order, or a doubt about one: a life in which nothing happens proves nothing.
        assert not self.session.record().ended, self.session.record().reason

    def cancel(self, at_once: bool) -> None:
        self._try(lambda: self.session.apply(CancelAsked(at_once)))

    def advance(self, seconds: float) -> None:
        """Let time pass, in small steps; everybody does what is due."""
        until = self.rented.clock.now() + seconds
        while self.rented.clock.now() < until:
            self.rented.clock.advance(STEP)
            now = self.rented.clock.now()
            for supervisor in list(self.rented.supervisors):
                if supervisor.alive():  # type: ignore[attr-defined]
                    supervisor.step(now)
            if self.client and now >= self.next_look:
                self.next_look = now + LOOK_EVERY
                self._try(self.session.observe)
            if self.reaper and now >= self.next_reap:
                self.next_reap = now + REAP_EVERY
                reap([self.rented.another()], now)

    def over(self) -> bool:
        return not self.rented.live() and (self.session.record().ended or not self.client)

    def finish(self) -> None:
        """Let everything come to its end."""
        give_up = self.rented.clock.now() + 40 * 3600
        while not self.over() and self.rented.clock.now() < give_up:
            self.advance(600)

    def _try(self, call: Callable[[], object]) -> None:
        """The client meets an error, says it, and looks again later: as `cloudft watch` does."""
        from cloudft.errors import CloudftError

        try:
            call()
        except CloudftError:
            return


SPEC = json.dumps(
    {
        "run_id": "20261120-101010-ab12",
        "project": "p",
        "base": {"source": "hub", "id": "o/m", "revision": "0" * 40},
        "data": {
            "train": {"path": "train.jsonl", "sha256": "0" * 64, "bytes": 1},
            "train_rows": 1,
            "holdout_sha256": "0" * 64,
            "holdout_rows": 0,
            "split_seed": 1,
        },
        "stages": [
            {
                "max_steps": 1,
                "batch_size": 1,
                "gradient_accumulation": 1,
                "learning_rate": 1,
                "scheduler": "cosine",
                "warmup": 0,
                "weight_decay": 0,
                "max_length": 1,
                "lora_r": 1,
                "lora_alpha": 1,
                "lora_dropout": 0,
                "dtype": "auto",
                "origins": {},
            }
        ],
        "image": "registry.test/train@sha256:" + "0" * 64,
        "max_hours": 24,
        "seed": 1,
    }
)
