"""What a person wants to know of a run: where it stands, what it costs, what survives if it stops now."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from cloudft.errors import ProviderError, StoreError
from jobs.ticket import LOG
from local.lifecycle import CancelAsked
from local.records import RunRecord, attempt_prefix
from local.session import Session
from local.versions import list_versions

# Seconds between looks: quick on this computer, sparing where a look is a request to a provider and a bucket.
POLL_FREE, POLL_RENTED = 1.0, 5.0
PATIENCE = 10
# So many lines together tell where the log that was shown ends in the one that was read.
OVERLAP = 5
# How long a cancelled run may take to save its adapter before the machine is ended anyway.
SAVE_TIME = 120.0
SAVING = ("stopping", "upload", "record")


@dataclass(frozen=True)
class View:
    """A run at one moment. Times are epoch seconds, money dollars; None where unknown."""

    run_id: str
    status: str
    reason: str
    provider: str
    phase: str
    progress: dict[str, Any]
    heartbeat_age: float | None
    deadline: float | None
    budget_usd: float | None
    spent_usd: float
    worst_case_usd: float
    billed_now: bool
    attempts: tuple[dict[str, Any], ...]
    refusals: tuple[str, ...]
    survives: str
    checkpoint_step: int
    checkpoint_age: float | None
    pulled: bool
    quantized: bool
    evaluated: bool

    @property
    def ended(self) -> bool:
        return self.status not in ("submitting", "running")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def look(session: Session) -> View:
    """One look at a run; brings its record up to date."""
    record = session.observe()
    beat = session.heartbeat(record) if record.attempts else {}
    progress = beat.get("progress") or {}
    # Between two machines, and after a lost one, no heartbeat says it.
    kept = beat.get("checkpoint") or (session.checkpoint() if len(record.attempts) > 1 or record.ended else {})
    return View(
        run_id=record.run_id,
        status=record.status,
        reason=record.reason or (record.attempt.ending if record.attempts and not record.ended else ""),
        provider=record.provider,
        phase=record.status if record.ended else str(beat.get("phase") or "boot"),
        progress=progress,
        heartbeat_age=None if record.ended or "at" not in beat else time.time() - beat["at"],
        deadline=record.attempt.deadline if record.attempts else None,
        budget_usd=record.budget_usd,
        spent_usd=record.spent(time.time()),
        worst_case_usd=record.worst_case(),
        billed_now=billed_now(record),
        attempts=tuple(a.model_dump(mode="json") for a in record.attempts),
        refusals=record.refusals,
        survives=_survives(session, record, progress, kept),
        checkpoint_step=int(kept.get("step", 0)),
        checkpoint_age=time.time() - kept["at"] if "at" in kept else None,
        pulled=session.run.adapter.is_dir(),
        quantized=any(v.manifest.run_id == record.run_id for v in list_versions(session.project)),
        evaluated=session.run.evaluation.is_file(),
    )


def billed_now(record: RunRecord) -> bool:
    """Whether a machine of this run may cost something at this moment; in doubt, yes."""
    return any(a.state not in ("gone", "refused") and a.charge.rate_usd > 0 for a in record.attempts)


def _survives(session: Session, record: RunRecord, progress: dict[str, Any], kept: dict[str, Any]) -> str:
    """What is left if the run stops at this moment, and if its machine is lost."""
    if session.run.adapter.is_dir():
        return "the adapter is on this computer"
    if record.ended and session.result() is not None:
        return "the adapter is in the store"
    if record.ended:
        left = f"the checkpoint of step {kept['step']}, the log and the metrics" if kept else "the log and the metrics"
        return f"{left} are in the store; there is no adapter"
    if kept:
        age = _ago(time.time() - kept["at"])
        lost = f"if the machine is lost now, the checkpoint of step {kept['step']}, {age} old, is in the store"
    else:
        lost = "if the machine is lost now, nothing is left of it: no checkpoint is in the store yet"
    if progress.get("step"):
        return f"a stop saves the adapter of the {progress['step']} steps done so far; {lost}"
    return lost if kept else "nothing is trained yet"


def _ago(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def follow(session: Session) -> Iterator[View]:
    """Looks until the run has ended, the last of them at the ended run. Each look does what the run needs.

    A store or provider that does not answer for a while is waited for; a machine goes on, and so does its deadline.

    Raises:
        StoreError, ProviderError: it did not answer ``PATIENCE`` times in a row.
    """
    silent = 0
    while True:
        try:
            view = look(session)
            silent = 0
            yield view
            if view.ended:
                return
        except (StoreError, ProviderError):
            silent += 1
            if silent >= PATIENCE:
                raise
        time.sleep(POLL_FREE if session.record().budget_usd is None else POLL_RENTED)


def log_lines(session: Session, follow_log: bool = False) -> Iterator[str]:
    """The run's log, line by line; with ``follow_log`` until the run has ended."""
    shown: list[str] = []
    while True:
        record = session.observe()
        if record.attempts:
            key = f"{attempt_prefix(record.run_id, record.attempt.number)}/{LOG}"
            text = session.store.get_bytes(key)
            if text is None and not record.ended:
                # It has not come as far as its first heartbeat: the provider's console may say why.
                text = session.provider.log(record.attempt.name).encode()
            lines = (text or b"").decode(errors="replace").splitlines()
            new = _new_lines(shown, lines)
            yield from new
            shown = lines or shown
        if record.ended or not follow_log:
            return
        time.sleep(POLL_FREE if record.budget_usd is None else POLL_RENTED)


def _new_lines(shown: list[str], lines: list[str]) -> list[str]:
    """What follows the last line that was shown; a long log is cut at its front, so its length says nothing."""
    if not shown or lines[: len(shown)] == shown:
        return lines[len(shown) :]
    for start in range(len(lines), 0, -1):
        if lines[max(0, start - OVERLAP) : start] == shown[-min(OVERLAP, start) :]:
            return lines[start:]
    return lines


def cancel(session: Session, at_once: bool) -> Iterator[View]:
    """End a run: softly, so that what is trained is saved, or at once. Yields until the machine is gone."""
    record = session.observe()
    if record.ended:
        yield look(session)
        return
    session.apply(CancelAsked(at_once=at_once))
    give_up = time.time() + SAVE_TIME
    for view in follow(session):
        yield view
        # A machine that saves and uploads is alive: its heartbeat says so, and its deadline bounds it.
        if view.heartbeat_age is not None and view.heartbeat_age < SAVE_TIME and view.phase in SAVING:
            give_up = time.time() + SAVE_TIME
        if not view.ended and time.time() > give_up:
            session.apply(CancelAsked(at_once=True))
