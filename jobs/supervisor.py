"""The supervisor: PID 1 of a rented machine. Standard library only, since it must work when nothing else does.

    python -m jobs.supervisor        (CLOUDFT_DEADLINE, CLOUDFT_TICKET_URL and CLOUDFT_WORK in the environment)

It knows the deadline before anything can fail, reads the ticket, starts the trainer as a child, which imports its
libraries while the inputs are fetched, sends heartbeat, log, metrics and checkpoints, stops the child in time to save,
uploads and verifies the adapter, and writes the result last. A machine that follows one that was lost goes on from its
checkpoint (``jobs.keeper``). What it decides stands in ``jobs.lifecycle``; here are the clock, the processes and the
network.
On a rented machine nothing follows its life, however that ended, but the machine's end: ``jobs.teardown``.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from jobs import checkpoints, child, fetching, ready, teardown, transfer
from jobs import ticket as names
from jobs.assignment import Assignment
from jobs.delivery import Delivered
from jobs.lifecycle import (
    ChildEnded,
    Command,
    Event,
    Failed,
    InputsFetched,
    Kept,
    Phase,
    Recorded,
    Restored,
    State,
    Status,
    StopAsked,
    Terminated,
    Tick,
    TicketRead,
    Uploaded,
    decide,
)
from jobs.phases import Phases
from jobs.ticket import Ticket, TicketError

T = TypeVar("T")
TICK = 0.25
# A machine that is taken away but goes on running is billed: so many seconds are spent on its last checkpoint.
LEAVING_PATIENCE = 60.0


class Supervisor:
    """Carries out what ``decide`` commands; slow commands run in threads and answer with events."""

    def __init__(self, deadline: float, ticket_url: str, work: Path, trainer: Sequence[str] = child.TRAINER) -> None:
        self.trainer = trainer
        self.state = State(deadline=deadline)
        self.ticket_url = ticket_url
        self.work = work
        self._assignment: Assignment | None = None
        self.child: subprocess.Popen[bytes] | None = None
        self.delivered: Delivered | None = None
        self.events: queue.Queue[Event] = queue.Queue()
        self.phases = Phases()
        # The step that the trainer goes on from; None while it waits for its inputs.
        self._began_from: int | None = None
        self._restored = threading.Event()
        self._done = threading.Event()
        self.work.mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        """Live until the machine is to be taken down."""
        signal.signal(signal.SIGTERM, lambda *_: self.events.put(Terminated()))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._in_thread(self._read_ticket)
        while self.state.phase is not Phase.DOWN:
            try:
                event = self.events.get(timeout=TICK)
            except queue.Empty:
                event = Tick()
            self._handle(event)
        self._done.set()
        self.say(f"end: {self.state.status}. {self.state.reason}".rstrip(". "))

    def say(self, text: str) -> None:
        """One line for the person who reads the log; standard output is the machine's console."""
        line = f"{time.strftime('%H:%M:%S', time.gmtime())} supervisor: {text}"
        # A full disk or a closed console must not end a machine that still has an adapter to save.
        with contextlib.suppress(OSError):
            print(line, flush=True)
        with contextlib.suppress(OSError), self.log_path.open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    @property
    def log_path(self) -> Path:
        return self.work / "train.log"

    @property
    def out(self) -> Path:
        return self.work / "out"

    @property
    def assignment(self) -> Assignment:
        """Nothing that needs it is commanded before the ticket is read."""
        assert self._assignment is not None
        return self._assignment

    def _heartbeat(self) -> dict[str, Any]:
        return self.assignment.heartbeat(self.state, self.phases)

    def _handle(self, event: Event) -> None:
        before = self.state.phase
        now = time.time()
        self.state, commands = decide(self.state, event, now)
        if self.state.phase is not before:
            # What is left of a machine that is taken away is told apart: see KEEP.
            self.phases.end(Phase.STOPPING if before is Phase.LEAVING else before, now)
            self.say(f"{self.state.phase.value}{': ' + self.state.reason if self.state.reason else ''}")
        actions: dict[Command, Callable[[], None]] = {
            Command.FETCH_INPUTS: lambda: self._in_thread(self._fetch_inputs),
            Command.START_CHILD: self._start_child,
            Command.RELEASE_CHILD: self._release_child,
            Command.STOP_CHILD: lambda: self._signal_child(signal.SIGTERM),
            Command.KILL_CHILD: lambda: self._signal_child(signal.SIGKILL),
            Command.KEEP: self._keep,
            Command.UPLOAD: lambda: self._in_thread(self._upload),
            Command.RECORD: lambda: self._in_thread(self._record),
            Command.TEAR_DOWN: lambda: None,
        }
        for command in commands:
            try:
                actions[command]()
            except Exception as exc:  # A full disk, say: what is trained may still be saved, and the reason told.
                self.events.put(Failed(f"{command.value}: {type(exc).__name__}: {exc}"))

    def _in_thread(self, work: Callable[[], Event | None]) -> None:
        def body() -> None:
            try:
                event = work()
            except Exception as exc:  # A bug here must end the machine, not leave it running and billed.
                event = Failed(f"{type(exc).__name__}: {exc}")
            if event is not None:
                self.events.put(event)

        threading.Thread(target=body, daemon=True, name=work.__name__).start()

    def _until_deadline(self, call: Callable[..., T], *args: Any) -> T:
        return transfer.retried(partial(call, *args), until=self.state.deadline)

    def _read_ticket(self) -> Event:
        try:
            ticket = Ticket.from_json(self._until_deadline(transfer.read_bytes, self.ticket_url))
            ended = self._until_deadline(transfer.exists, ticket.outputs[names.OUTCOME].get)
        except (transfer.TransferError, TicketError) as exc:
            return Failed(f"cannot read the ticket: {exc}")
        self._assignment = Assignment.of(ticket, self.work, self.log_path, self.say, self._heartbeat)
        with contextlib.suppress(OSError):  # a full disk: the trainer says so, and the store hears of it
            (self.work / "spec.json").write_text(json.dumps(ticket.spec), encoding="utf-8")
        self.say(f"run {ticket.run_id}, attempt {ticket.attempt}, deadline {_utc(self.state.deadline)}")
        self._in_thread(self._report_for_ever)
        return TicketRead(save_reserve=ticket.save_reserve, ended=ended, rented=ticket.rented)

    def _fetch_inputs(self) -> Event:
        """Checkpoint, inputs and base side by side."""
        inputs = partial(
            fetching.fetch_inputs,
            self.assignment.ticket.inputs,
            self.work / "inputs",
            self.state.deadline,
            self._fetching,
        )
        calls: list[Callable[[], None]] = [self._restore, inputs]
        if base := fetching.hub_base(self.assignment.ticket.spec):
            calls.append(partial(fetching.fetch_base, base, self.log_path, self._fetching))
        try:
            fetching.side_by_side(calls, len(calls))
        except (transfer.TransferError, OSError) as exc:
            self._restored.wait()  # what an earlier machine trained is worth saving
            return Failed(str(exc), during=Phase.FETCH)
        self._in_thread(self._keep_for_ever)
        self._in_thread(self._send_early)
        return InputsFetched()

    def _fetching(self) -> bool:
        return self.state.phase is Phase.FETCH

    def _restore(self) -> None:
        try:
            self.assignment.keeper.restore(until=self.state.soft_deadline)
        finally:
            # In this order: a trainer's end that was waiting for it must find it told.
            self.events.put(Restored(found=self.assignment.keeper.resumed_from > 0 or self.assignment.rescue.has_best))
            self._restored.set()

    def _keep_for_ever(self) -> None:
        # Once training ends, the adapter has the line for itself.
        self.assignment.keeper.keep_beside(lambda: self.state.phase in (Phase.TRAIN, Phase.LEAVING), self._done)

    def _send_early(self) -> None:
        active = (Phase.TRAIN, Phase.STOPPING, Phase.UPLOAD)
        self.assignment.delivery.send_early(lambda: self.state.phase in active, self._done)

    def _keep(self) -> None:
        self.phases.end(Phase.STOPPING, time.time())
        self._in_thread(self._keep_last)

    def _keep_last(self) -> Event:
        """On a machine that is taken away: its last checkpoint, and why it ended."""
        try:
            self.assignment.keeper.keep(until=min(time.time() + LEAVING_PATIENCE, self.state.deadline))
        except (transfer.TransferError, OSError, ValueError) as exc:
            self.say(f"the store did not take the last checkpoint: {exc}")
        self.assignment.reports.send_last()
        return Kept()

    def _start_child(self) -> None:
        """Start it; while the inputs are still fetched it waits for them, and after that it finds them there."""
        if self._fetching():
            ready.withdraw(self.work)
        else:  # again: what the one before did is told apart
            self.phases.end("earlier tries", time.time())
            self._began_from = self.assignment.keeper.step_on_disk()
            self.assignment.rescue.forget()
        child.forget_reports(self.out)
        # A run that goes on elsewhere when this machine's time is over is not to be squeezed into it.
        until = None if self.assignment.ticket.followed else self.state.soft_deadline
        try:
            self.child = child.start(
                child.command(self.trainer, self.work, self.assignment.ticket.gpus, until), self.log_path
            )
        except OSError as exc:
            why = f"the trainer cannot be started: {exc}"
            # An end like any other: the machine waits for one.
            self._in_thread(lambda: self._ended(child.End({}, why), code=1))
            return
        self._in_thread(self._wait_child)

    def _release_child(self) -> None:
        self._began_from = self.assignment.keeper.step_on_disk()
        try:
            ready.announce(self.work)
        except OSError as exc:
            self.events.put(Failed(f"the trainer cannot be told that its inputs are here: {exc}"))

    def _wait_child(self) -> Event:
        assert self.child is not None
        code = self.child.wait()
        return self._ended(child.ended(code, self.out, self.assignment.ticket.gpus), code)

    def _ended(self, end: child.End, code: int) -> Event:
        """What is left now that there is no trainer."""
        if self._began_from is None:  # it waited for its inputs; what an earlier machine left may be on its way
            self._restored.wait()
        began = self._began_from
        # A trainer that says itself why it failed would fail again; one that has not come further than before, too.
        resumable = end.again or (end.killed and began is not None and self.assignment.keeper.step_on_disk() > began)
        # What is left of a training that diverged is worth nothing.
        taken = "" if end.final else self.assignment.rescue.take()
        reason = f"{end.reason}; {taken}" if taken else end.reason
        has_adapter = bool(checkpoints.weight_files(self.out / "adapter"))
        told = end.report.get("status")
        if code == 0 and told in ("completed", "stopped"):
            return ChildEnded(told, reason, has_adapter, final=end.final)
        # An adapter saved before a crash is kept, but such a run is not called completed.
        status: Status = "stopped" if has_adapter else "failed"
        return ChildEnded(status, reason, has_adapter, resumable, end.final)

    def _signal_child(self, number: signal.Signals) -> None:
        if self.child is not None and self.child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                # The whole group: data-loader workers hold the device too.
                os.killpg(self.child.pid, number) if number == signal.SIGKILL else self.child.send_signal(number)

    def _upload(self) -> Event:
        if self.child is not None:
            self.child.wait()  # one that was killed has ended, or does so at once
        self.assignment.rescue.take()
        if not checkpoints.weight_files(self.out / "adapter"):
            return Failed("there is no adapter to send; see the log")
        # Beside the adapter, unless that needs the line for itself.
        if time.time() < self.state.soft_deadline:
            self._in_thread(self.assignment.reports.send_files)
        try:
            self.delivered = self.assignment.delivery.send(until=self.state.deadline)
        except transfer.TransferError as exc:
            return Failed(f"the adapter was trained, but the store did not take it: {exc}")
        return Uploaded()

    def _record(self) -> Event:
        """Log and metrics, then the outcome, then, for a run that has an adapter, the result: it alone is success."""
        ticket = self.assignment.ticket
        self.assignment.reports.send_files()
        self.assignment.reports.send_last()
        outcome = json.dumps(self.assignment.outcome(self.state, self.phases, self.delivered), indent=1).encode()
        urls = [ticket.outputs[names.OUTCOME].put]
        if self.delivered is not None:
            urls.append(ticket.outputs[names.RESULT].put)
        try:
            for url in urls:
                self._until_deadline(transfer.put_bytes, url, outcome)
        except transfer.TransferError as exc:
            return Failed(f"cannot record the outcome: {exc}")
        return Recorded()

    def _report_for_ever(self) -> None:
        """Heartbeat, log and metrics, and a look whether the user wants an end."""
        while not self._done.is_set():
            # Whatever goes wrong with a report, the training goes on: the next one may arrive.
            try:
                self.assignment.reports.send()
                if not self.state.stop_reason and transfer.exists(self.assignment.ticket.stop):
                    self.events.put(StopAsked("cancelled by the user"))
            except transfer.TransferError:
                pass
            except Exception as exc:
                self.say(f"a report could not be made: {type(exc).__name__}: {exc}")
            self._done.wait(self.assignment.ticket.heartbeat_every)


def _utc(epoch: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(epoch))


def main() -> int:
    """Entry point. On a rented machine it never returns, whatever happens: see ``jobs.teardown``."""
    try:
        return _supervise()
    except Exception:  # A bug here must end the machine, not restart it and be billed.
        traceback.print_exc()
        return 1
    finally:
        teardown.end_own_machine()


def _supervise() -> int:
    """Without a deadline nothing may start: a machine that does not know its end must not begin."""
    try:
        deadline = float(os.environ[names.ENV_DEADLINE])
        ticket_url = os.environ[names.ENV_TICKET]
        if not math.isfinite(deadline):
            raise ValueError(f"{names.ENV_DEADLINE}={deadline}")
    except (KeyError, ValueError) as exc:
        print(f"supervisor: {exc} is missing or no number; nothing is started", file=sys.stderr)
        return 2
    teardown.end_when_overdue(deadline)
    supervisor = Supervisor(deadline, ticket_url, Path(os.environ.get(names.ENV_WORK, "work")))
    supervisor.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
