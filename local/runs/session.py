"""A run as the commands see it: its folder, its record, its store and its provider, opened once."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from filelock import FileLock, Timeout

from cloudft.errors import Busy, CloudftError
from infra.provider import CreateUnknown, NoCapacity, Provider, TakenBack, open_provider, parse_machine_name
from infra.store import Store, StoreSettings, open_store
from jobs.ticket import CHECKPOINT, HEARTBEAT, OUTCOME, RESULT, STOP
from local.config import StoreConfig
from local.project import Project, RunFolder
from local.runs.lifecycle import (
    FIRST,
    Abandoned,
    Asked,
    AskToStop,
    Command,
    Create,
    Created,
    CreateFailed,
    EndOthers,
    Event,
    Observed,
    Revoke,
    Terminate,
    decide,
)
from local.runs.phases import phases_of, to_first_step
from local.runs.records import (
    Attempt,
    RunRecord,
    acting,
    attempt_prefix,
    locked,
    read_record,
    read_spec,
    run_prefix,
    write_record,
)
from local.runs.tickets import make_order, make_ticket, put_ticket, ticket_key

# Seconds between heartbeats: quick where it costs nothing, seldom where every one is a billed request of a bucket.
HEARTBEAT_FREE, HEARTBEAT_RENTED = 1.0, 10.0
# How long a command waits for another that creates or ends a machine.
PATIENCE = 90.0


@dataclass(frozen=True)
class Session:
    """One run, opened for work."""

    project: Project
    run: RunFolder
    store: Store
    provider: Provider
    # Looking must cost nothing: only submit and watch rent what a run needs next.
    may_rent: bool = False
    # Money depends on the time, so tests bring their own.
    clock: Callable[[], float] = time.time
    # Told what a create waits for.
    waiting: Callable[[str, str], None] = lambda what, note: None

    def record(self) -> RunRecord:
        return read_record(self.run)

    def apply(self, event: Event) -> RunRecord:
        """Decide, write the record down, and act, as the one process that does so for this run.

        What fences off an older machine comes before the record is written, what rents comes after: a failure or a
        crash in between leaves a record from which the next look decides the same again.

        Raises:
            Busy: another process is at it, and did not come to an end in a while.
            CloudftError: a command failed; nothing behind it was done.
        """
        with acting(self.run, PATIENCE) as mine:
            if not mine:
                raise Busy(
                    f"another cloudft command is creating or ending a machine of run {self.run.run_id}",
                    effect="this one did nothing",
                    hint="cloudft status    then type the same command again",
                )
            return self._apply(event)

    def _apply(self, event: Event) -> RunRecord:
        events = [event]
        while events:
            record, commands = self._decide(events.pop(0))
            for command in commands:
                events += self._act(command)
        return record

    def _decide(self, event: Event) -> tuple[RunRecord, list[Command]]:
        """The decision, written down; the commands that are still to be carried out."""
        with locked(self.run, "update"):
            before = self.record()
            after, commands = decide(before, event, self.clock())
            if not self.may_rent and any(isinstance(c, Create) for c in commands):
                # Not written down: whoever may rent decides the same again.
                done = "rented" if after.budget_usd is not None else "started"
                reason = f"the machine is gone; the next one is {done} by:  cloudft watch"
                return after.model_copy(update={"attempts": after.attempts[:-1], "reason": reason}), []
            for command in commands:
                if isinstance(command, FIRST):
                    self._act(command)
            if after != before:
                write_record(self.run, after, type(event).__name__, **_told(event))
        return after, [c for c in commands if not isinstance(c, FIRST)]

    def _act(self, command: Command) -> list[Event]:
        match command:
            case Create():
                return [self._create(command.attempt)]
            case Terminate():
                if command.attempt.offer.provider == "manual":
                    # Nobody but its owner can end it; asked to stop, it does so by itself.
                    self._act(AskToStop(command.attempt))
                elif command.attempt.state in ("intended", "doubtful"):
                    # It may turn up later, when nobody looks: then it finds that it is not wanted.
                    with contextlib.suppress(CloudftError):
                        self._act(AskToStop(command.attempt))
                self.provider.terminate(command.attempt.name, command.attempt.machine_id)
            case EndOthers():
                for machine in self.provider.machines():
                    parsed = parse_machine_name(machine.name)
                    if parsed and parsed[0] == command.run_id and machine.name != command.keep:
                        self.provider.terminate(machine.name, machine.id)
            case AskToStop():
                prefix = attempt_prefix(self.run.run_id, command.attempt.number)
                self.store.put_bytes(f"{prefix}/{STOP}", b"stop")
            case Revoke():
                self.store.delete(ticket_key(self.run.run_id, command.attempt.number))
        return []

    def _create(self, attempt: Attempt) -> Event:
        """Place the order; what comes back is an event, whatever it is."""
        try:
            spec = read_spec(self.run)
            here = attempt.offer.rate_usd == 0 and attempt.offer.provider != "manual"
            every = HEARTBEAT_FREE if here else HEARTBEAT_RENTED
            url = put_ticket(self.store, make_ticket(self.store, spec, attempt, every))
            self._decide(Asked(attempt.number))
            machine = self.provider.create(replace(make_order(spec, attempt, url), waiting=self.waiting))
        except TakenBack as exc:
            # The run ends here: nothing is to be rented in its place. Then the command ends.
            self._decide(CreateFailed(attempt.number, "refused", exc.what, exc.billed_seconds))
            raise
        except NoCapacity as exc:
            return CreateFailed(attempt.number, "capacity", exc.what, exc.billed_seconds)
        except CreateUnknown as exc:
            return CreateFailed(attempt.number, "unknown", exc.what)
        except CloudftError as exc:
            return CreateFailed(attempt.number, "refused", exc.what)
        return Created(attempt.number, machine.id, machine.rate_usd)

    def observe(self, submit_is_ours: bool = False) -> RunRecord:
        """Look at the machine, then at the store, bring the record up to date, and do what that asks for.

        A run that another process works on, or whose submit still goes on, is not judged, unless the caller holds
        the submit lock itself.
        """
        record = self.record()
        if record.ended:
            return record
        if record.status == "submitting" and not submit_is_ours and submitting(self.project):
            return record
        with acting(self.run, 0) as mine:
            if not mine:
                return record
            # Read again: what was read before the lock may be what another process has just changed.
            return self._apply(self._look(self.record()))

    def _look(self, record: RunRecord) -> Event:
        if not record.attempts:
            return Abandoned()
        attempt = record.attempt
        prefix = attempt_prefix(record.run_id, attempt.number)
        machine = self.provider.find(attempt.name, attempt.machine_id)
        rented = attempt.offer.rate_usd > 0
        if attempt.offer.provider == "manual" and self.read_json(prefix, OUTCOME):
            # A machine that nobody here can look at is over when it says so.
            self.provider.terminate(attempt.name)
            machine = None
        outcome = self.read_json(prefix, OUTCOME) or {}
        beat = self.read_json(prefix, HEARTBEAT) or {}
        told = outcome or beat
        # The last checkpoint of a machine that is gone may be newer than its last heartbeat.
        kept = self.checkpoint() if machine is None else beat.get("checkpoint") or {}
        return Observed(
            attempt=attempt.number,
            # What has ended costs nothing on this computer; at a provider it may still be billed for its disk.
            machine_id=machine.id if machine and (rented or machine.state != "ended") else None,
            stopped=machine is not None and machine.state == "ended",
            rate_usd=machine.rate_usd if machine else None,
            heartbeat=beat.get("at"),
            outcome=outcome.get("status"),
            outcome_at=outcome.get("ended_at") or (beat.get("at") if beat.get("leaving") else None),
            reason=str(outcome.get("reason", "")),
            final=(outcome.get("trainer") or {}).get("cause") == "diverged",
            has_result=bool(outcome) and self.result() is not None,
            resumed_from=outcome.get("resumed_from") or beat.get("resumed_from") or 0,
            kept_step=kept.get("step", 0),
            phases=phases_of(attempt.created_at, told),
            to_first_step=to_first_step(told),
            last_step_at=(told.get("trainer") or {}).get("last_step_at"),
        )

    def result(self) -> dict[str, Any] | None:
        """The marker that alone means success, or None."""
        return self.read_json(run_prefix(self.run.run_id), RESULT)

    def checkpoint(self) -> dict[str, Any]:
        """``step`` and ``at`` of the newest checkpoint in the store, which the next attempt goes on from; else {}."""
        return self.read_json(run_prefix(self.run.run_id), CHECKPOINT) or {}

    def heartbeat(self, record: RunRecord) -> dict[str, Any]:
        return self.read_json(attempt_prefix(record.run_id, record.attempt.number), HEARTBEAT) or {}

    def read_json(self, prefix: str, name: str) -> dict[str, Any] | None:
        raw = self.store.get_bytes(f"{prefix}/{name}")
        if raw is None:
            return None
        try:
            value = json.loads(raw)
        except ValueError:
            return None
        return value if isinstance(value, dict) else None


@contextlib.contextmanager
def submit_lock(project: Project) -> Iterator[None]:
    """Hold the project while a submit goes on; a second one is refused, and a status knows not to judge.

    Raises:
        Busy: another submit holds it.
    """
    project.state.mkdir(exist_ok=True)
    try:
        with FileLock(project.state / "submit.lock", timeout=0):
            yield
    except Timeout as exc:
        raise Busy(
            f"another submit is going on in {project.root}",
            effect="nothing was started by this one; the other goes on",
            hint="see it:  cloudft status",
        ) from exc


def submitting(project: Project) -> bool:
    """Whether some process is in the middle of a submit."""
    try:
        with submit_lock(project):
            return False
    except Busy:
        return True


def _told(event: Event) -> dict[str, Any]:
    """What the journal keeps of an event: its plain values that say something."""
    return {name: value for name, value in vars(event).items() if value not in (None, "", False, {})}


def store_settings(config: StoreConfig) -> StoreSettings:
    return StoreSettings(config.url, config.endpoint_url, config.region, config.profile)


def open_session(project: Project, run: RunFolder) -> Session:
    """Open a run with the store and the provider that it was submitted to, whatever the config says now."""
    record = read_record(run)
    store = open_store(store_settings(record.store), project.root)
    return Session(project, run, store, open_provider(record.provider, project.state))
