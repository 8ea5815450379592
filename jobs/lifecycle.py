"""What the supervisor decides, as a pure function: ``decide(state, event, now) -> (state, commands)``.

No clock, no network, no files: whoever calls it brings the time and carries out the commands, so the life of a
machine, faults and all, can be played from a seed. Times are seconds since the epoch.

    BOOT ──ticket──> FETCH ──inputs──> TRAIN ──ended──> UPLOAD ──done──> RECORD ──done──> DOWN
                        │              │ │ stop asked, or deadline near     ▲
                        │              │ └──> STOPPING ──────ended──────────┤ (no adapter)
                        └──────────────│── stop asked, or failed ───────────┘
                                       └──taken away──> LEAVING ──kept──> DOWN

The trainer is started with FETCH: it imports its libraries beside the download, and waits until it is let go on. One
that only waits has nothing to save, so whatever ends FETCH otherwise kills it.

From every phase the deadline leads straight to DOWN. A machine that is taken away (LEAVING) records nothing: the run
has not ended, and the next machine goes on from the checkpoint that this one leaves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

Status = Literal["completed", "stopped", "failed"]
TERMINATED = "the machine was told to end (SIGTERM)"
TAKEN = "the provider takes this machine away (SIGTERM)"
BEFORE_INPUTS = "the trainer ended before its inputs were here"


class Phase(StrEnum):
    BOOT = "boot"
    FETCH = "fetch"
    TRAIN = "train"
    STOPPING = "stopping"
    LEAVING = "leaving"
    UPLOAD = "upload"
    RECORD = "record"
    DOWN = "down"


@dataclass(frozen=True)
class State:
    """Where a machine stands. ``save_reserve`` seconds before ``deadline`` are kept to save and upload.

    ``rented``: its provider may take it away; then the signal that ends it is not the user's wish.
    ``terminated``: that signal came before the ticket could say so. ``restored``: whether an earlier machine or life
    left a checkpoint, and with it an adapter; None until that is known. ``stop_reason``: why the run is to end, which
    may have to wait; before training, ``status`` is then what it will have come to.
    """

    deadline: float
    save_reserve: float = 0.0
    rented: bool = False
    terminated: bool = False
    restored: bool | None = None
    phase: Phase = Phase.BOOT
    status: Status = "failed"
    reason: str = ""
    stop_reason: str = ""
    killed: bool = False

    @property
    def soft_deadline(self) -> float:
        """When training must begin to stop."""
        return self.deadline - self.save_reserve

    @property
    def kill_at(self) -> float:
        """When a trainer that does not stop is killed: what is left is for the upload."""
        return self.deadline - self.save_reserve / 2


@dataclass(frozen=True)
class TicketRead:
    """The ticket is here. ``ended``: an earlier life of this attempt left its outcome; never train twice."""

    save_reserve: float
    ended: bool
    rented: bool = False


@dataclass(frozen=True)
class Restored:
    """It is known whether there is a checkpoint to go on from; if so, it is on this disk."""

    found: bool


@dataclass(frozen=True)
class InputsFetched:
    """Every input is here and its sha256 agrees: the trainer may go on."""


@dataclass(frozen=True)
class StopAsked:
    """The user's wish, found in the store."""

    why: str


@dataclass(frozen=True)
class Terminated:
    """SIGTERM. On a rented machine its provider takes it away; elsewhere somebody wants an end."""


@dataclass(frozen=True)
class ChildEnded:
    """The trainer ended; ``status`` and ``reason`` are its own report, ``has_adapter`` what it left on disk.

    ``resumable``: it was killed, not by us, after a checkpoint that is newer than the one that it began from, or has
    written down how the next try gets further. ``final``: the training has diverged, and no machine should go on.
    Of one that ended while it waited for the inputs, this comes when it is known what an earlier machine left.
    """

    status: Status
    reason: str
    has_adapter: bool
    resumable: bool = False
    final: bool = False


@dataclass(frozen=True)
class Kept:
    """What a machine that is taken away can leave, a last checkpoint, is in the store, or could not be put there."""


@dataclass(frozen=True)
class Uploaded:
    """The adapter is in the store and was read back."""


@dataclass(frozen=True)
class Recorded:
    """Outcome and result are in the store."""


@dataclass(frozen=True)
class Failed:
    """Something failed for good; ``during``: a command that only that phase waits for."""

    why: str
    during: Phase | None = None


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


Event = (
    TicketRead
    | Restored
    | InputsFetched
    | StopAsked
    | Terminated
    | ChildEnded
    | Kept
    | Uploaded
    | Recorded
    | Failed
    | Tick
)


class Command(StrEnum):
    FETCH_INPUTS = "fetch inputs"
    START_CHILD = "start the trainer"
    RELEASE_CHILD = "let the trainer go on: all that it needs is here"
    STOP_CHILD = "ask the trainer to stop"
    KILL_CHILD = "kill the trainer"
    KEEP = "upload the last checkpoint"
    UPLOAD = "upload the adapter"
    RECORD = "record the outcome"
    TEAR_DOWN = "take the machine down"


Decision = tuple[State, tuple[Command, ...]]


def decide(state: State, event: Event, now: float) -> Decision:
    """The next state, and what to do for it."""
    if state.phase is Phase.DOWN:
        return state, ()
    if now >= state.deadline:
        down = replace(state, phase=Phase.DOWN, reason=state.reason or "the deadline came")
        return down, (Command.KILL_CHILD, Command.TEAR_DOWN)
    match event:
        case TicketRead() if state.phase is Phase.BOOT:
            return _begin(replace(state, save_reserve=event.save_reserve, rented=event.rented), event, now)
        case Restored() | InputsFetched() if state.phase is Phase.FETCH:
            return _fetched(state, event, now)
        case StopAsked():
            return _stop(state, event.why)
        case Terminated():
            return _terminated(state)
        case ChildEnded():
            return _child_ended(state, event)
        case Uploaded() if state.phase is Phase.UPLOAD:
            return replace(state, phase=Phase.RECORD), (Command.RECORD,)
        case Recorded() | Kept():
            return _finished(state, event)
        case Failed() if event.during in (None, state.phase):
            return _failed(state, event.why)
        case Tick():
            return _tick(state, now)
    return state, ()


def _begin(state: State, event: TicketRead, now: float) -> Decision:
    if event.ended:
        return replace(state, phase=Phase.DOWN, reason="this attempt has ended before"), (Command.TEAR_DOWN,)
    if state.terminated and state.rented and not state.stop_reason:
        return replace(state, phase=Phase.DOWN, reason=TAKEN), (Command.TEAR_DOWN,)
    if state.terminated or state.stop_reason:
        return _give_up(state, "stopped", state.stop_reason or TERMINATED)
    if now >= state.soft_deadline:
        return _too_late(state)
    return replace(state, phase=Phase.FETCH), (Command.START_CHILD, Command.FETCH_INPUTS)


def _fetched(state: State, event: Restored | InputsFetched, now: float) -> Decision:
    if isinstance(event, Restored):
        state = replace(state, restored=event.found)
        return _give_up(state, state.status, state.stop_reason) if state.stop_reason else (state, ())
    if now >= state.soft_deadline:
        return _too_late(state)
    return replace(state, phase=Phase.TRAIN), (Command.RELEASE_CHILD,)


def _too_late(state: State) -> Decision:
    if state.stop_reason:
        return _give_up(state, state.status, state.stop_reason)
    return _give_up(state, "stopped", "the deadline came before training began")


def _stop(state: State, why: str) -> Decision:
    """Somebody wants an end. What is trained by now is saved."""
    if state.phase is Phase.FETCH:
        return _end_fetch(state, "stopped", why)
    state = replace(state, stop_reason=state.stop_reason or why)
    if state.phase is Phase.TRAIN:
        return replace(state, phase=Phase.STOPPING), (Command.STOP_CHILD,)
    # BOOT: the ticket says where to write the outcome, so wait for it. Later phases are ending anyway.
    return state, ()


def _end_fetch(state: State, status: Status, why: str) -> Decision:
    """There is nothing to wait for but what an earlier machine trained: it may be on its way, and is worth a moment."""
    if state.restored is None:
        return (state if state.stop_reason else replace(state, status=status, stop_reason=why)), ()
    return _give_up(state, status, why)


def _terminated(state: State) -> Decision:
    """A run that is not finished goes on elsewhere, unless this machine is the user's own or the user wants an end."""
    if state.phase is Phase.BOOT:
        return replace(state, terminated=True), ()
    if not state.rented or state.stop_reason:
        return _stop(state, TERMINATED)
    if state.phase is Phase.FETCH:
        return replace(state, phase=Phase.DOWN, reason=TAKEN), (Command.KILL_CHILD, Command.TEAR_DOWN)
    if state.phase is Phase.TRAIN:
        return replace(state, phase=Phase.LEAVING, reason=TAKEN), (Command.STOP_CHILD,)
    # Later phases are ending anyway: what they upload is the run's end, and worth more than a checkpoint.
    return state, ()


def _tick(state: State, now: float) -> Decision:
    if state.phase is Phase.FETCH and now >= state.soft_deadline:
        return _too_late(state)
    if state.phase is Phase.TRAIN and now >= state.soft_deadline:
        return _stop(state, "the deadline is near")
    if state.phase in (Phase.STOPPING, Phase.LEAVING) and now >= state.kill_at and not state.killed:
        return replace(state, killed=True), (Command.KILL_CHILD,)
    return state, ()


def _child_ended(state: State, event: ChildEnded) -> Decision:
    if state.phase is Phase.TRAIN and event.resumable:
        return state, (Command.START_CHILD,)
    if state.phase is Phase.FETCH:
        return _end_fetch(state, "stopped" if event.status == "stopped" else "failed", event.reason or BEFORE_INPUTS)
    if state.phase in (Phase.TRAIN, Phase.STOPPING):
        return _after_training(state, event)
    if state.phase is not Phase.LEAVING:
        return state, ()
    # The run goes on elsewhere, unless it has just ended here, by itself or by the user's wish.
    if state.stop_reason or event.final or (event.status == "completed" and event.has_adapter):
        return _after_training(replace(state, reason=""), event)
    return state, (Command.KEEP,)


def _after_training(state: State, event: ChildEnded) -> Decision:
    reason = event.reason or state.stop_reason
    if event.status == "stopped" and state.stop_reason:
        reason = state.stop_reason
    elif state.killed:
        reason = f"{state.stop_reason}; the trainer did not end by itself in time, and was killed"
    if event.has_adapter:
        return replace(state, phase=Phase.UPLOAD, status=event.status, reason=reason), (Command.UPLOAD,)
    status: Status = "stopped" if state.stop_reason and event.status == "stopped" else "failed"
    return _give_up(state, status, reason or "the trainer left no adapter")


def _finished(state: State, event: Recorded | Kept) -> Decision:
    """The last thing that there was to do is done."""
    if state.phase is (Phase.RECORD if isinstance(event, Recorded) else Phase.LEAVING):
        return replace(state, phase=Phase.DOWN), (Command.TEAR_DOWN,)
    return state, ()


def _failed(state: State, why: str) -> Decision:
    if state.phase is Phase.RECORD:
        # Nothing more can be said to the store; holding on would only cost.
        return replace(state, phase=Phase.DOWN, reason=why), (Command.TEAR_DOWN,)
    if state.phase in (Phase.BOOT, Phase.LEAVING):
        return replace(state, phase=Phase.DOWN, reason=why), (Command.TEAR_DOWN,)
    if state.phase in (Phase.TRAIN, Phase.STOPPING):
        # Something beside the training broke: what is trained is saved all the same.
        return _stop(state, why)
    if state.phase is Phase.FETCH:
        return _end_fetch(state, "failed", why)
    return _give_up(state, "failed", why)


def _give_up(state: State, status: Status, reason: str) -> Decision:
    """End and say why; without an adapter, unless an earlier machine left one and none is trained here."""
    kill = (Command.KILL_CHILD,) if state.phase is Phase.FETCH else ()
    if state.phase is Phase.FETCH and state.restored:
        return replace(state, phase=Phase.UPLOAD, status="stopped", reason=reason), (*kill, Command.UPLOAD)
    return replace(state, phase=Phase.RECORD, status=status, reason=reason), (*kill, Command.RECORD)
