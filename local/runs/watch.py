"""What a person wants to know of a run: where it stands, what it costs, what survives if it stops now."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cloudft.errors import ProviderError, StoreError
from jobs.ticket import LOG
from local.runs.lifecycle import CancelAsked
from local.runs.records import RunRecord, attempt_prefix
from local.runs.reports import draw, learn, live_metrics
from local.runs.session import Session
from local.runs.stage_report import stages_of
from local.serving.versions import list_versions

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
    """A run at one moment. Times are epoch seconds, money dollars; None where unknown.

    ``losses``: the training's so far, in some points (``jobs.curve``); ``gpu``: how busy it is (``jobs.gpu``), {} where
    no machine tells.
    """

    run_id: str
    status: str
    reason: str
    provider: str
    phase: str
    progress: dict[str, Any]
    losses: tuple[float, ...]
    gpu: dict[str, Any]
    evaluation: dict[str, Any]
    heartbeat_age: float | None
    deadline: float | None
    budget_usd: float | None
    spent_usd: float
    worst_case_usd: float
    billed_now: bool
    build: dict[str, Any] | None
    attempts: tuple[dict[str, Any], ...]
    refusals: tuple[str, ...]
    survives: str
    checkpoint_step: int
    checkpoint_age: float | None
    pulled: bool
    quantized: bool
    evaluated: bool
    # What the gate found of each stage, once the run has a result (``local.runs.stage_report``).
    stages: tuple[dict[str, Any], ...] = ()

    @property
    def tokens_per_second(self) -> float | None:
        """Of the training so far, prompts included, padding not."""
        seconds, tokens = self.progress.get("elapsed_s"), self.progress.get("tokens")
        return tokens / seconds if seconds and tokens else None

    @property
    def ended(self) -> bool:
        return self.status not in ("submitting", "running")

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "tokens_per_second": self.tokens_per_second}


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
        losses=tuple(beat.get("losses") or ()),
        gpu=beat.get("gpu") or {},
        evaluation=beat.get("evaluation") or {},
        heartbeat_age=None if record.ended or "at" not in beat else time.time() - beat["at"],
        deadline=record.attempt.deadline if record.attempts else None,
        budget_usd=record.budget_usd,
        spent_usd=record.spent(time.time()),
        worst_case_usd=record.worst_case(),
        billed_now=billed_now(record),
        build=record.build.model_dump(mode="json") if record.build else None,
        attempts=tuple(a.model_dump(mode="json") for a in record.attempts),
        refusals=record.refusals,
        survives=_survives(session, record, beat, kept),
        checkpoint_step=int(kept.get("step", 0)),
        checkpoint_age=time.time() - kept["at"] if "at" in kept else None,
        pulled=session.run.adapter.is_dir(),
        quantized=any(v.manifest.run_id == record.run_id for v in list_versions(session.project)),
        evaluated=session.run.evaluation.is_file(),
        stages=tuple(dict(stage) for stage in stages_of(session.result() if record.ended else None)),
    )


def billed_now(record: RunRecord) -> bool:
    """Whether a machine of this run may cost something at this moment; in doubt, yes."""
    return any(a.state not in ("gone", "refused") and a.charge.rate_usd > 0 for a in record.attempts)


def _survives(session: Session, record: RunRecord, beat: dict[str, Any], kept: dict[str, Any]) -> str:
    """What is left if the run stops at this moment, and if its machine is lost. ``beat``: the last heartbeat."""
    if session.run.adapter.is_dir():
        return "the adapter is on this computer"
    if record.ended and (result := session.result()) is not None:
        step = result.get("adapter_step")
        if step == 0:
            return "the adapter in the store changes nothing: no step was kept"
        return f"the adapter{f' of step {step}' if step else ''} is in the store"
    if record.ended and not (kept or beat or any(attempt.heartbeat for attempt in record.attempts)):
        return "nothing was trained"
    if record.ended:
        left = f"the checkpoint of step {kept['step']}, the log and the metrics" if kept else "the log and the metrics"
        return f"{left} are in the store; there is no adapter"
    if kept:
        age = _ago(time.time() - kept["at"])
        lost = f"if the machine is lost now, the checkpoint of step {kept['step']}, {age} old, is in the store"
    else:
        lost = "if the machine is lost now, nothing is left of it: no checkpoint is in the store yet"
    done = (beat.get("progress") or {}).get("step")
    if best := (beat.get("evaluation") or {}).get("best_step"):
        return f"a stop saves the best adapter so far, now that of step {best}; {lost}"
    if done:
        return f"a stop saves the adapter of the {done} steps done so far; {lost}"
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
                _keep_what_it_taught(session)
                return
        except (StoreError, ProviderError):
            silent += 1
            if silent >= PATIENCE:
                raise
        time.sleep(POLL_FREE if session.record().budget_usd is None else POLL_RENTED)


def draw_loss(session: Session) -> Path | None:
    """The picture of the loss so far in the run's folder, or None where there is nothing to draw yet."""
    record = session.record()
    return draw(session, record, live_metrics(session, record))


def _keep_what_it_taught(session: Session) -> None:
    """Its loss as a picture, and its speed for the next estimate."""
    record = session.record()
    draw(session, record, live_metrics(session, record))
    told = session.result() or (session.heartbeat(record) if record.attempts else {})
    learn(session, record, told)


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
