"""A small world for the two pure cores: a provider with a ledger of its own, machines, a client and a reaper.

Everything is drawn from one seed, time is a number, and nothing sleeps: a life of hours takes about a millisecond.
What may go wrong: no capacity, lost replies, lists that lag, machines that come late, cost more, never boot, are
restarted, stopped or preempted (with a warning or without), trainers that are killed, checkpoints that do not reach
the store, supervisors and clients that are gone for good, slow ends.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from infra.provider import parse_machine_name
from jobs import lifecycle as machine_side
from jobs.lifecycle import Phase
from local.config import StoreConfig
from local.runs import lifecycle as client_side
from local.runs.records import PlannedOffer, RunRecord

LOOK_EVERY = 60.0
REAP_EVERY = 300.0
SLOWEST_END = 90.0
# By name only: a machine whose id is known is read by it.
LONGEST_LAG = 100.0
CHECKPOINT_EVERY = 300.0
LEAVING_TAKES = 10.0


@dataclass
class SimMachine:
    """One rented machine. Times in seconds; ``inf`` for what never happens.

    ``began_from`` and ``on_disk`` are seconds of training: where its trainer began, and its newest checkpoint.
    """

    name: str
    attempt: int
    deadline: float
    rate: float
    created_at: float
    listed_at: float
    boots_at: float
    dies_at: float
    stopped: bool = False
    heartbeat: float | None = None
    beats: bool = True
    ends_at: float = math.inf
    state: machine_side.State | None = None
    busy_until: float = math.inf
    warned: bool = False
    restored: bool = False
    child_ended: bool = False
    began_from: float = 0.0
    trains_since: float = math.inf
    on_disk: float = 0.0
    next_checkpoint: float = math.inf

    def alive(self, now: float) -> bool:
        return self.created_at <= now < self.ends_at

    def cost(self, now: float) -> float:
        return max(0.0, min(now, self.ends_at) - self.created_at) * self.rate / 3600


@dataclass
class World:
    """One life of a run. ``layers`` are those that work: "supervisor", "client", "reaper"."""

    seed: int
    resumes: bool = True
    layers: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        layers = {layer for layer in ("supervisor", "client", "reaper") if self.rng.random() < 0.6}
        self.layers = frozenset(layers or {self.rng.choice(["supervisor", "client", "reaper"])})
        self.budget = self.rng.choice([0.4, 1.0, 2.0, 5.0])
        plan = tuple(self._offer(n) for n in range(self.rng.randint(1, 3)))
        self.record = RunRecord(
            run_id="r",
            project="p",
            created_at=0,
            provider="sim",
            store=StoreConfig(url="s3://b"),
            spec_sha256="0" * 64,
            budget_usd=self.budget,
            max_hours=self.rng.choice([1, 6, 48]),
            plan=plan,
        )
        self.now = 0.0
        self.machines: list[SimMachine] = []
        self.outcomes: dict[int, tuple[str, float]] = {}
        self.result = False
        self.revoked: set[int] = set()
        self.stop_asked: set[int] = set()
        self.retrained = 0
        self.reasons: list[str] = []
        self.leaving_since: dict[int, float] = {}
        # Seconds of training: all that the run needs, what the store's newest checkpoint holds, where trainers began.
        # Most need less than the budget buys of the first offer, some more.
        self.work = self.rng.uniform(0.02, 1.2) * self.budget / plan[0].rate_usd * 3600
        self.kept = 0.0
        self.began: list[float] = []
        self.client_dies_at = math.inf if "client" in self.layers else self.rng.uniform(0, 4 * 3600)
        self.cancel_at = self.rng.choice([math.inf, math.inf, self.rng.uniform(0, 6 * 3600)])

    def _offer(self, number: int) -> PlannedOffer:
        return PlannedOffer(provider="sim", id=f"gpu-{number}", name=f"gpu-{number}", rate_usd=self.rng.uniform(0.2, 4))

    def play(self) -> None:
        """Live until the run has ended and no machine is left, or nothing can happen any more."""
        self._client(client_side.Begin())
        next_look, next_reap = LOOK_EVERY, REAP_EVERY
        while self.now < 200 * 3600:
            self.now += self.rng.uniform(5, 55)
            for machine in self.machines:
                self._live(machine)
            if self.now >= next_look and self.now < self.client_dies_at:
                next_look = self.now + self.rng.uniform(5, LOOK_EVERY)
                self._look()
            if self.now >= next_reap and "reaper" in self.layers:
                next_reap = self.now + REAP_EVERY
                self._reap()
            if self._over():
                return

    def _over(self) -> bool:
        if any(m.ends_at > self.now for m in self.machines):
            return False
        return self.record.ended or self.now >= self.client_dies_at

    # The client, with its pure core.

    def _client(self, event: client_side.Event) -> None:
        events = [event]
        while events:
            record, commands = client_side.decide(self.record, events.pop(0), self.now)
            if any(isinstance(c, client_side.FIRST) for c in commands) and self.rng.random() < 0.1:
                # The store or the provider failed: nothing is written down, and the next look decides again.
                return
            self.record = record
            for command in commands:
                match command:
                    case client_side.Create():
                        events.append(self._create(command.attempt.number))
                    case client_side.Terminate():
                        self._terminate(command.attempt.name)
                    case client_side.AskToStop():
                        self.stop_asked.add(command.attempt.number)
                    case client_side.Revoke():
                        self.revoked.add(command.attempt.number)
                    case client_side.EndOthers():
                        for machine in self.machines:
                            if machine.name != command.keep and machine.listed_at <= self.now:
                                self._terminate(machine.name)

    def _look(self) -> None:
        if self.record.ended:
            return
        if self.now >= self.cancel_at:
            self.cancel_at = math.inf
            self._client(client_side.CancelAsked(at_once=self.rng.random() < 0.5))
        if self.record.ended:
            return
        attempt = self.record.attempt
        known = attempt.machine_id is not None
        ours = [m for m in self.machines if m.attempt == attempt.number and m.alive(self.now)]
        listed = [m for m in ours if known or m.listed_at <= self.now]
        beats = [m.heartbeat for m in self.machines if m.attempt == attempt.number and m.heartbeat is not None]
        status, at = self.outcomes.get(attempt.number, (None, None))
        self._client(
            client_side.Observed(
                attempt=attempt.number,
                machine_id=listed[0].name if listed else None,
                rate_usd=listed[0].rate if listed else None,
                stopped=bool(listed) and listed[0].stopped,
                heartbeat=max(beats) if beats else None,
                outcome=status,  # type: ignore[arg-type]
                outcome_at=at if at is not None else self.leaving_since.get(attempt.number),
                has_result=self.result,
            )
        )

    # The provider.

    def _create(self, number: int) -> client_side.Event:
        attempt = self.record.attempt
        draw = self.rng.random()
        if draw < 0.15:
            return client_side.CreateFailed(number, "capacity", "no capacity")
        if draw < 0.18:
            return client_side.CreateFailed(number, "refused", "wrong order")
        if draw < 0.25:
            return client_side.CreateFailed(number, "unknown", "lost before it was acted on")
        machine = self._machine(attempt.name, number, attempt.deadline, attempt.offer.rate_usd)
        self.machines.append(machine)
        if draw < 0.35:
            return client_side.CreateFailed(number, "unknown", "lost after it was acted on")
        if draw < 0.38 and "supervisor" in self.layers:
            # Acted on only later, when the client has given up: the ticket is gone by then.
            late = self.rng.uniform(130, 400)
            machine.created_at += late
            machine.listed_at = machine.created_at
            machine.boots_at = machine.created_at + self.rng.uniform(20, 120)
            return client_side.CreateFailed(number, "unknown", "lost, and acted on late")
        return client_side.Created(number, machine.name, None if draw < 0.45 else machine.rate)

    def _machine(self, name: str, number: int, deadline: float, quoted: float) -> SimMachine:
        rng = self.rng
        never_boots = rng.random() < 0.1 and {"client", "reaper"} & self.layers
        boot = math.inf if never_boots else self.now + rng.uniform(20, 600)
        return SimMachine(
            name=name,
            attempt=number,
            deadline=deadline,
            rate=quoted * (1.4 if rng.random() < 0.05 and "client" in self.layers else 1.0),
            created_at=self.now,
            listed_at=self.now + rng.choice([0, 0, rng.uniform(0, LONGEST_LAG)]),
            boots_at=boot,
            beats=rng.random() < 0.5,
            dies_at=self.now + rng.uniform(0, 1.5 * self.work) if rng.random() < 0.5 else math.inf,
        )

    def _terminate(self, name: str) -> None:
        for machine in self.machines:
            if machine.name == name and machine.alive(self.now) and math.isinf(machine.ends_at):
                machine.ends_at = self.now + self.rng.uniform(0, SLOWEST_END)

    def _reap(self) -> None:
        for machine in self.machines:
            parsed = parse_machine_name(machine.name)
            if parsed and machine.listed_at <= self.now and self.now >= parsed[2]:
                self._terminate(machine.name)

    # The machine, with the supervisor's pure core.

    def _live(self, machine: SimMachine) -> None:
        if not machine.alive(self.now):
            return
        if self.now >= machine.dies_at:
            machine.dies_at = self.now + self.rng.uniform(0, 1.5 * self.work)
            self._fate(machine)
        self._checkpoint(machine)
        if machine.stopped or self.now < machine.boots_at or "supervisor" not in self.layers:
            # A machine without a working supervisor: hung, or alive and deaf to its deadline.
            if machine.beats and self.now >= machine.boots_at and not machine.stopped:
                machine.heartbeat = self.now
            return
        machine.heartbeat = self.now
        if machine.state is None:
            machine.state = machine_side.State(deadline=machine.deadline)
        for event in self._events(machine):
            self._supervise(machine, event)

    def _checkpoint(self, machine: SimMachine) -> None:
        """What the trainer has saved by now."""
        while machine.next_checkpoint <= self.now:
            self._keep(machine, machine.next_checkpoint)
            machine.next_checkpoint += CHECKPOINT_EVERY

    def _keep(self, machine: SimMachine, at: float) -> None:
        """A checkpoint of that moment; nine in ten reach the store."""
        machine.on_disk = machine.began_from + at - machine.trains_since
        if self.resumes and self.rng.random() < 0.9:
            self.kept = max(self.kept, machine.on_disk)

    def _start_trainer(self, machine: SimMachine) -> None:
        machine.began_from = max(self.kept, machine.on_disk if self.resumes else 0.0)
        machine.child_ended = False
        self.began.append(machine.began_from)
        machine.trains_since = self.now
        machine.next_checkpoint = self.now + CHECKPOINT_EVERY
        machine.busy_until = self.now + max(self.work - machine.began_from, 0.0)

    def _fate(self, machine: SimMachine) -> None:
        fate = self.rng.choice(["preempted", "warned", "stopped", "restarted", "killed"])
        training = machine.state is not None and machine.state.phase is Phase.TRAIN
        if fate == "preempted" or (fate == "warned" and machine.state is None):
            machine.ends_at = self.now
        elif fate == "warned":
            machine.warned = True
            machine.ends_at = min(machine.ends_at, self.now + self.rng.uniform(5, 150))
        elif fate == "killed" and training:
            resumable = self.resumes and machine.on_disk > machine.began_from
            machine.child_ended = True
            self._supervise(machine, machine_side.ChildEnded("stopped", "", machine.on_disk > 0, resumable))
        elif fate == "stopped" and {"client", "reaper"} & self.layers:
            machine.stopped = True
            machine.next_checkpoint = math.inf
        else:
            machine.state = None
            machine.next_checkpoint = math.inf
            machine.restored = machine.child_ended = machine.warned = False
            self.leaving_since.pop(machine.attempt, None)
            machine.boots_at = self.now + self.rng.uniform(1, 60)

    def _events(self, machine: SimMachine) -> list[machine_side.Event]:
        state = machine.state
        assert state is not None
        ended = machine.attempt in self.outcomes
        if machine.attempt in self.stop_asked and not state.stop_reason and state.phase is not Phase.BOOT:
            return [machine_side.StopAsked("cancelled")]
        if machine.warned and state.phase is not Phase.BOOT:
            machine.warned = False
            return [machine_side.Terminated()]
        if state.phase is Phase.BOOT:
            if machine.attempt in self.revoked:
                return [machine_side.Failed("no ticket")]
            reserve = min(600, 0.1 * (machine.deadline - self.now))
            return [machine_side.TicketRead(save_reserve=reserve, ended=ended, rented=True)]
        if state.phase is Phase.FETCH and not machine.restored:
            machine.restored = True
            return [machine_side.Restored(found=max(self.kept, machine.on_disk) > 0)]
        if self.now < machine.busy_until:
            return [machine_side.Tick()]
        if state.phase is Phase.LEAVING and machine.child_ended:
            self._keep(machine, machine.busy_until - LEAVING_TAKES)
            return [machine_side.Kept()]
        if state.phase in (Phase.TRAIN, Phase.STOPPING, Phase.LEAVING):
            machine.child_ended = True
        events: dict[Phase, machine_side.Event] = {
            Phase.FETCH: machine_side.InputsFetched(),
            Phase.TRAIN: machine_side.ChildEnded("completed", "", True),
            Phase.STOPPING: machine_side.ChildEnded("stopped", "", self.rng.random() < 0.9),
            Phase.LEAVING: machine_side.ChildEnded("stopped", "", True),
            Phase.UPLOAD: machine_side.Uploaded(),
            Phase.RECORD: machine_side.Recorded(),
        }
        return [events.get(state.phase, machine_side.Tick())]

    def _supervise(self, machine: SimMachine, event: machine_side.Event) -> None:
        assert machine.state is not None
        before = machine.state.phase
        machine.state, commands = machine_side.decide(machine.state, event, self.now)
        if machine.state.phase is not before:
            lasts = {Phase.FETCH: 60.0, Phase.STOPPING: 30.0, Phase.LEAVING: LEAVING_TAKES, Phase.UPLOAD: 30.0}
            machine.busy_until = self.now + lasts.get(machine.state.phase, 0.0)
            machine.next_checkpoint = math.inf
        if machine.state.reason == machine_side.TAKEN:
            self.leaving_since[machine.attempt] = self.now
        for command in commands:
            again = command is machine_side.Command.START_CHILD and before is Phase.TRAIN
            # The trainer that is started with FETCH waits.
            if again or command is machine_side.Command.RELEASE_CHILD:
                self.retrained += machine.attempt in self.outcomes
                self._start_trainer(machine)
            elif command is machine_side.Command.RECORD:
                self.outcomes.setdefault(machine.attempt, (machine.state.status, self.now))
                self.reasons.append(machine.state.reason)
                self.result = self.result or (machine.state.status != "failed" and before is Phase.UPLOAD)
            elif command is machine_side.Command.TEAR_DOWN:
                self._terminate(machine.name)

    # What must hold.

    def billed(self) -> float:
        """Dollars by the provider's own ledger."""
        return math.fsum(
            machine.cost(math.inf if math.isinf(machine.ends_at) else machine.ends_at) for machine in self.machines
        )
