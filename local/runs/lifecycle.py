"""What the client decides about a run, as a pure function: ``decide(record, event, now) -> (record, commands)``.

No clock, no network, no files: the shell (``local.runs.session``) carries out the commands and feeds what comes back,
so the whole life of a run, faults and all, can be played from a seed. Three rules stand behind it:

    Success is the result in the store, never a provider's word.
    A machine's name and its worst case are in the record before the machine can exist.
    Another attempt is paid from what the earlier ones cannot have spent.

    Begin ──> intended ──Created──> alive ──gone──> ended, or the next attempt
                 │ reply lost          │ never boots, dearer, overdue, cancelled
                 └──> doubtful ──by name──┘──────> ending ──gone──> …
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from cloudft.errors import BudgetError
from infra.budget import allow, cost, least_seconds
from infra.provider import machine_name
from local.runs.records import Attempt, PlannedOffer, Receipt, RunRecord, RunStatus

# A machine that has recorded its outcome ends by itself; after this many seconds it is helped.
LINGER = 60.0
# A list of machines may lag behind: so long is one that was asked for, and is not listed, not taken for absent.
DOUBT = 120.0
# A real rate may differ from the quoted one by rounding, not by more.
RATE_TOLERANCE = 1.005
MOST_ATTEMPTS = 6
# A start on this computer boots nothing and costs nothing: it is worth it while its imports and some steps fit.
LEAST_HERE = 60.0
# A machine that stops for its deadline does so this long before it at most: what is kept for saving, and some.
NEAR_THE_END = 1200.0
INTERRUPTED = "the submit was interrupted before a machine began; nothing was rented"


@dataclass(frozen=True)
class Begin:
    """Everything is checked and uploaded: rent."""


@dataclass(frozen=True)
class Asked:
    """The create call of that attempt is about to be sent."""

    attempt: int


@dataclass(frozen=True)
class Created:
    """The provider says that the machine of that attempt exists, and what it really costs (None: it does not say)."""

    attempt: int
    machine_id: str
    rate_usd: float | None


@dataclass(frozen=True)
class CreateFailed:
    """No machine, or none that is known of.

    ``capacity``: none free, nothing was created. ``refused``: nothing was created, and no other offer would do.
    ``unknown``: the reply was lost; the machine may exist and cost money. ``billed_seconds``: how long one may have
    been there that is proved to be gone.
    """

    attempt: int
    kind: Literal["capacity", "refused", "unknown"]
    why: str
    billed_seconds: float = 0.0


@dataclass(frozen=True)
class Observed:
    """One look: first at the machine, then at the store, so that a machine seen gone has written all it will.

    ``machine_id`` None: no such machine is listed; ``stopped``: it is, and may cost something, but does not run.
    ``heartbeat`` is the machine's own time of its last one; ``outcome`` the attempt's own statement, ``has_result``
    whether the run's result is there; ``phases`` are seconds by the machine's own account. ``outcome_at``: since when
    it has nothing more to do, be it because it recorded its outcome or because it is taken away. ``final``: the
    training has diverged, and no machine would end it better. ``resumed_from``, ``kept_step``: as in ``Receipt``.
    """

    attempt: int
    machine_id: str | None
    rate_usd: float | None = None
    stopped: bool = False
    heartbeat: float | None = None
    outcome: Literal["completed", "stopped", "failed"] | None = None
    outcome_at: float | None = None
    reason: str = ""
    final: bool = False
    has_result: bool = False
    resumed_from: int = 0
    kept_step: int = 0
    phases: dict[str, float] = field(default_factory=dict)
    to_first_step: float | None = None
    last_step_at: float | None = None


@dataclass(frozen=True)
class Abandoned:
    """The submit that made this record has ended without getting as far as an attempt."""


@dataclass(frozen=True)
class CancelAsked:
    """The user wants an end; ``at_once``: without waiting for the adapter to be saved."""

    at_once: bool


Event = Begin | Asked | Created | CreateFailed | Observed | Abandoned | CancelAsked


@dataclass(frozen=True)
class Create:
    """Rent the machine of this attempt."""

    attempt: Attempt


@dataclass(frozen=True)
class AskToStop:
    """Leave the stop object of this attempt in the store."""

    attempt: Attempt


@dataclass(frozen=True)
class Terminate:
    """End the machine of this attempt, and see it gone."""

    attempt: Attempt


@dataclass(frozen=True)
class EndOthers:
    """End every machine of this run but that of the attempt that is about to be (None: all): there must be none."""

    run_id: str
    keep: str | None


@dataclass(frozen=True)
class Revoke:
    """Take the ticket of this attempt away: a machine that has none goes down."""

    attempt: Attempt


Command = Create | AskToStop | Terminate | EndOthers | Revoke
# These come before the decision is written down: if one fails, the next look decides the same again.
FIRST = (Revoke, EndOthers)
Decision = tuple[RunRecord, tuple[Command, ...]]


def decide(record: RunRecord, event: Event, now: float) -> Decision:
    """The next record, and what to do for it. An ended run changes no more; an older attempt's events are late."""
    if record.ended:
        return record, ()
    match event:
        case Begin():
            return next_attempt(record, now) if not record.attempts else (record, ())
        case Abandoned():
            return (record if record.attempts else _end(record, "failed", INTERRUPTED)), ()
        case CancelAsked():
            return _cancel(record, event)
    if not record.attempts or event.attempt != record.attempt.number:
        return record, ()
    match event:
        case Asked():
            return _change(record, asked_at=now), ()
        case Created():
            return _created(record, event.machine_id, event.rate_usd, now)
        case CreateFailed():
            return _create_failed(record, event, now)
        case Observed():
            return _observed(record, event, now)


def next_attempt(record: RunRecord, now: float) -> Decision:
    """The next machine that the plan and the ledger allow, or the end of the run."""
    if record.stop_asked:
        return _end(record, "stopped", "cancelled before anything was saved"), ()
    if sum(a.state != "refused" for a in record.attempts) >= MOST_ATTEMPTS:
        return _end(record, "lost", f"{MOST_ATTEMPTS} machines were lost one after the other"), ()
    budget = math.inf if record.budget_usd is None else record.budget_usd
    while record.next_offer < len(record.plan):
        offer = record.plan[record.next_offer]
        try:
            longest = offer.seconds_at_most(_seconds_left(record, now))
            granted = allow(budget, record.charges, offer.rate_usd, now, longest)
        except BudgetError as exc:
            record = _skip(record, f"{offer.name}: {exc.what}")
            continue
        number = len(record.attempts) + 1
        attempt = Attempt(
            number=number,
            name=machine_name(record.run_id, number, granted.deadline),
            offer=offer,
            state="intended",
            created_at=now,
            deadline=granted.deadline,
            exhausted_at=granted.exhausted_at,
        )
        return record.model_copy(update={"attempts": (*record.attempts, attempt)}), (Create(attempt),)
    last = record.refusals[-1] if record.refusals else "there was no offer"
    status: RunStatus = "lost" if any(a.state == "gone" for a in record.attempts) else "failed"
    return _end(record, status, f"no further machine could be had: {last}"), ()


def _seconds_left(record: RunRecord, now: float) -> float:
    """How long the run may still take, by ``max_hours`` from its first attempt on."""
    began = record.attempts[0].created_at if record.attempts else now
    return record.max_hours * 3600 - (now - began)


def _created(record: RunRecord, machine_id: str, rate_usd: float | None, now: float) -> Decision:
    """The machine exists. One that is dearer than it was quoted is ended at once."""
    if record.attempt.state not in ("intended", "doubtful"):
        return record, ()
    record = _change(record, state="alive", machine_id=machine_id, alive_at=now)
    record = record.model_copy(update={"status": "running", "reason": ""})
    return _rated(record, rate_usd)


def _rated(record: RunRecord, rate_usd: float | None) -> Decision:
    """What the machine really costs, once that is known: the highest that was read counts."""
    attempt = record.attempt
    if rate_usd is None or rate_usd <= (attempt.rate_usd or 0.0):
        return record, ()
    record = _change(record, rate_usd=rate_usd)
    if rate_usd > attempt.offer.rate_usd * RATE_TOLERANCE and not attempt.ending:
        why = f"it costs ${rate_usd:.2f}/h instead of the quoted ${attempt.offer.rate_usd:.2f}/h"
        return _ask_end(record, why, spoiled=True)
    return record, ()


def _create_failed(record: RunRecord, event: CreateFailed, now: float) -> Decision:
    if event.kind == "unknown":
        # It may exist and cost money: the ledger counts it until a look by name says otherwise.
        return _change(record, state="doubtful", asked_at=now).model_copy(update={"reason": event.why}), ()
    record = _change(record, state="refused", ended_at=record.attempt.created_at + event.billed_seconds)
    if event.kind == "refused":
        return _end(record, "failed", event.why), ()
    return next_attempt(_skip(record, f"{record.attempt.offer.name}: {event.why}"), now)


def _observed(record: RunRecord, seen: Observed, now: float) -> Decision:
    """What one look means. An earlier machine that was given up unseen may still turn up: every look sweeps for it."""
    after, commands = _judged(record, seen, now)
    unproven = any(a.state == "gone" and not a.seen for a in after.attempts[:-1])
    if unproven and not any(isinstance(c, EndOthers) for c in commands):
        return after, (EndOthers(record.run_id, after.attempt.name), *commands)
    return after, commands


def _judged(record: RunRecord, seen: Observed, now: float) -> Decision:
    attempt = record.attempt
    if seen.machine_id is None:
        # A result or an outcome proves that it lived, so that no lag of the list can be meant.
        young = now - (attempt.asked_at or attempt.created_at) < DOUBT and record.budget_usd is not None
        # One whose id is known was read by it, and is not in doubt.
        if young and attempt.machine_id is None and not attempt.seen and seen.outcome is None:
            return record, ()
        after, more = _gone(record, seen, now)
        # Fencing: should it turn up late, or be restarted by its provider, it finds no ticket and goes down.
        keep = after.attempt.name if after.attempt != record.attempt and not after.ended else None
        others = (EndOthers(record.run_id, keep),) if record.budget_usd is not None else ()
        return after, (Revoke(attempt), *others, *more)
    commands: tuple[Command, ...] = ()
    if attempt.state in ("intended", "doubtful"):
        record, commands = _created(record, seen.machine_id, seen.rate_usd, now)
    elif not seen.stopped:
        record, commands = _rated(record, seen.rate_usd)
    record = _change(record, seen=True)
    if seen.heartbeat is not None and seen.heartbeat != attempt.heartbeat:
        record = _change(record, heartbeat=seen.heartbeat, heartbeat_seen_at=now)
    attempt = record.attempt
    if attempt.ending:
        return (record, commands) if commands else _ask_end(record, attempt.ending)
    if seen.stopped:
        return _ask_end(record, "its provider stopped it")
    if now >= attempt.deadline:
        return _ask_end(record, "the deadline has passed")
    if seen.outcome_at is not None and now - seen.outcome_at > LINGER:
        return _ask_end(record, "it did not end by itself")
    # From when it exists on: the provider may have taken its time to fetch the image and to find a machine.
    silent_since = attempt.heartbeat_seen_at or attempt.alive_at or attempt.created_at
    if record.budget_usd is not None and now - silent_since > record.boot_seconds:
        why = f"it gave no sign of life in {record.boot_seconds / 60:.0f} min"
        return _ask_end(record, why, spoiled=attempt.heartbeat is None)
    return record, commands


def _gone(record: RunRecord, seen: Observed, now: float) -> Decision:
    attempt = record.attempt
    never = attempt.state in ("intended", "doubtful") and not attempt.seen and seen.outcome is None
    record = _change(record, state="gone", ended_at=now, receipt=_receipt(attempt, now, seen))
    if seen.has_result and _ended_by_its_provider(record, attempt, seen):
        after, more = next_attempt(record, now)
        # Where no further machine can be had, this one's adapter is the run's.
        return (after, more) if not after.ended else (_end(record, "stopped", seen.reason), ())
    if seen.has_result and seen.outcome in ("completed", "stopped"):
        return _end(record, seen.outcome, seen.reason), ()
    if seen.outcome is not None:
        status: RunStatus = "stopped" if seen.outcome == "stopped" else "failed"
        return _end(record, status, seen.reason or "the machine recorded no adapter"), ()
    if record.stop_asked:
        return _end(record, "stopped", "cancelled before anything was saved"), ()
    if never and record.budget_usd is None:
        return _end(record, "failed", record.reason or INTERRUPTED), ()
    if now >= attempt.deadline:
        return _end(record, "lost", "the deadline came, and the machine left no outcome"), ()
    if record.budget_usd is None and not _goes_on_here(record, attempt, seen, now):
        return _end(record, "lost", "the machine is gone and left no outcome"), ()
    if attempt.spoiled or _lost_before(record, attempt):
        why = attempt.ending or "two machines were lost, and told nothing"
        return next_attempt(_skip(record, f"{attempt.offer.name}: {why}"), now)
    return next_attempt(record, now)


def _ended_by_its_provider(record: RunRecord, attempt: Attempt, seen: Observed) -> bool:
    """Whether it stopped because its provider lets no machine live longer, while the run itself may go on."""
    if seen.outcome != "stopped" or seen.outcome_at is None or seen.final or record.stop_asked:
        return False
    at_its_end = attempt.deadline - seen.outcome_at < NEAR_THE_END
    return attempt.as_long_as_may_be and at_its_end and _seconds_left(record, seen.outcome_at) >= least_seconds()


def _goes_on_here(record: RunRecord, attempt: Attempt, seen: Observed, now: float) -> bool:
    """Whether what ended on this computer left a checkpoint that another start gets further from, for nothing."""
    further = seen.kept_step > seen.resumed_from
    return attempt.offer.provider != "manual" and further and _seconds_left(record, now) > LEAST_HERE


def _lost_before(record: RunRecord, attempt: Attempt) -> bool:
    """Whether the attempt before this one, at the same offer, was lost as well, and another offer could be tried."""
    earlier = record.attempts[-2:-1]
    others = record.next_offer + 1 < len(record.plan)
    return others and bool(earlier) and earlier[0].offer == attempt.offer and earlier[0].state == "gone"


def _cancel(record: RunRecord, event: CancelAsked) -> Decision:
    record = record.model_copy(update={"stop_asked": True})
    if not record.attempts:
        return _end(record, "stopped", INTERRUPTED), ()
    if event.at_once or record.attempt.state in ("intended", "doubtful"):
        return _ask_end(record, "cancelled")
    return record, (AskToStop(record.attempt),)


def _ask_end(record: RunRecord, why: str, spoiled: bool = False) -> Decision:
    """Ask for the machine's end, again with each look until it is gone. ``spoiled``: its offer is not tried again."""
    state = record.attempt.state if record.attempt.state in ("intended", "doubtful") else "ending"
    was = record.attempt
    record = _change(record, state=state, ending=was.ending or why, spoiled=was.spoiled or spoiled)
    return record, (Terminate(record.attempt),)


def _receipt(attempt: Attempt, ended_at: float, seen: Observed) -> Receipt:
    seconds = max(ended_at - attempt.created_at, 0.0)
    rate = attempt.offer.rate_usd if attempt.rate_usd is None else attempt.rate_usd
    told = {name: value for name, value in seen.phases.items() if value >= 0}
    return Receipt(
        machine_id=attempt.machine_id,
        seconds=seconds,
        told_seconds=None if seen.outcome_at is None else max(seen.outcome_at - attempt.created_at, 0.0),
        rate_usd=rate,
        usd=cost(seconds, rate),
        price_source="quoted" if attempt.rate_usd is None else "read from the machine",
        phases={**told, "teardown" if told else "boot and pull": max(seconds - math.fsum(told.values()), 0.0)},
        to_first_step=seen.to_first_step,
        after_last_step=None if seen.last_step_at is None else max(ended_at - seen.last_step_at, 0.0),
        resumed_from=seen.resumed_from,
        kept_step=seen.kept_step,
    )


def _skip(record: RunRecord, why: str) -> RunRecord:
    return record.model_copy(
        update={"next_offer": record.next_offer + 1, "refusals": (*record.refusals, why)},
    )


def _end(record: RunRecord, status: RunStatus, reason: str) -> RunRecord:
    return record.model_copy(update={"status": status, "reason": reason})


def _change(record: RunRecord, **changes: object) -> RunRecord:
    last = record.attempt.model_copy(update=changes)
    return record.model_copy(update={"attempts": (*record.attempts[:-1], last)})


def free_plan(provider: str, gpus: int = 1) -> tuple[PlannedOffer, ...]:
    """The plan where cloudft rents nothing: so many GPUs, or processes, train together."""
    where = "a machine of your own" if provider == "manual" else "this computer"
    return (PlannedOffer(provider=provider, id=provider, name=where, rate_usd=0.0, count=gpus),)
