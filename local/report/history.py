"""What happened to a run: its training, its money, and the moments in between, from the files that it left behind."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from jobs.curve import read_lines
from jobs.spec import RunSpec
from local.project import RunFolder
from local.report.model import Curve, Moment, Money, Payment, Table, Training
from local.report.words import epoch, percent, seconds
from local.runs.records import Attempt, RunRecord
from local.runs.stage_report import stage_cells
from local.serving.versions import Version

AUDIT = "audit.json"
STAGES = "Stages, and what the gate made of them"


def read_json(path: Path) -> dict[str, Any]:
    """An object from a file that may not be there, or be damaged: then an empty one."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def training(run: RunFolder, spec: RunSpec, record: RunRecord, result: dict[str, Any]) -> Training:
    """How the training went, as far as it has come home."""
    trainer = result.get("trainer") or {}
    lines = [line for line in read_lines(run.metrics) if isinstance(line.get("step"), int)]
    last = lines[-1] if lines else {}
    planned = sum(stage.max_steps for stage in spec.stages)
    return Training(
        status=str(result.get("status") or record.status),
        reason=str(result.get("reason") or record.reason),
        steps=int(trainer.get("steps_done") or last.get("step") or 0),
        planned=int(trainer.get("steps_planned") or last.get("max_steps") or planned),
        tokens=int(trainer.get("trained_tokens") or last.get("tokens") or 0),
        seconds=float(last.get("elapsed_s") or (trainer.get("phases") or {}).get("train") or 0.0),
        curve=_curve(lines),
        tables=tuple(table for table in (_stages(trainer), _audit(read_json(run.root / AUDIT))) if table is not None),
        versions={str(name): str(value) for name, value in (trainer.get("versions") or {}).items()},
    )


def _stages(trainer: dict[str, Any]) -> Table | None:
    """What became of each stage; one that made things worse was kept out, and that must be read here."""
    stages = [stage for stage in trainer.get("stages") or () if isinstance(stage, dict)]
    if not stages:
        return None
    columns, rows = stage_cells(stages)
    return Table(STAGES, columns, rows)


def _audit(audit: dict[str, Any]) -> Table | None:
    """What the loss was taken over, as it was counted before the first step."""
    stages = [stage for stage in audit.get("stages") or () if isinstance(stage, dict)]
    if not stages:
        return None

    def rows_of(stage: dict[str, Any], name: str) -> str:
        return str((stage.get(name) or {}).get("count", 0))

    rows = tuple(
        (
            str(stage.get("stage", "")),
            f"{stage.get('rows', 0)}",
            f"{stage.get('tokens', 0):,}",
            percent(stage.get("trained", 0) / (stage.get("tokens") or 1)),
            f"{stage.get('ended', 0)} of {stage.get('examples', 0)}",
            rows_of(stage, "cut"),
            rows_of(stage, "changed"),
        )
        for stage in stages
    )
    columns = ("stage", "rows", "tokens", "in the loss", "end inside the loss", "rows cut", "rows not given back")
    return Table("Label audit: what the model learned from", columns, rows)


def _curve(lines: list[dict[str, Any]]) -> Curve:
    def points(name: str) -> tuple[tuple[int, float], ...]:
        values = ((line["step"], line.get(name)) for line in lines)
        return tuple((step, float(v)) for step, v in values if isinstance(v, (int, float)) and math.isfinite(v))

    starts, stage = [], None
    for line in lines:
        if line.get("stage", stage) != stage:
            stage = line["stage"]
            starts.append((line["step"], str(stage)))
    return Curve(points("loss"), points("eval_loss"), tuple(starts))


def money(record: RunRecord, now: float) -> Money:
    """What the run has cost at most, machine by machine."""
    real = [attempt for attempt in record.attempts if attempt.state != "refused"]
    rented = record.budget_usd is not None or any(attempt.charge.rate_usd > 0 for attempt in real)
    return Money(
        rented=rented,
        budget_usd=record.budget_usd,
        spent_usd=record.spent(now),
        open=rented and any(attempt.state != "gone" for attempt in real),
        payments=tuple(_payment(attempt) for attempt in real),
    )


def _payment(attempt: Attempt) -> Payment:
    receipt = attempt.receipt
    return Payment(
        attempt=attempt.number,
        machine=f"{attempt.offer.provider}: {attempt.offer.name}",
        machine_id=attempt.machine_id,
        seconds=receipt.seconds if receipt else None,
        rate_usd=receipt.rate_usd if receipt else attempt.charge.rate_usd,
        usd=receipt.usd if receipt else None,
        source=receipt.price_source if receipt else "",
        phases=dict(receipt.phases) if receipt else {},
    )


def timeline(
    record: RunRecord, result: dict[str, Any], version: Version | None, measured_at: str | None
) -> tuple[Moment, ...]:
    """The moments that a person would tell, in order."""
    moments = [Moment(record.created_at, "submitted: data, base, budget and store were checked")]
    for attempt in record.attempts:
        moments.append(Moment(attempt.created_at, f"attempt {attempt.number}: {_begun(attempt)}"))
        if attempt.ended_at is not None:
            moments.append(Moment(attempt.ended_at, f"attempt {attempt.number}: {_ended(attempt)}"))
    if "ended_at" in result:
        reason = f" ({result['reason']})" if result.get("reason") else ""
        moments.append(Moment(float(result["ended_at"]), f"training {result.get('status', 'ended')}{reason}"))
    if version is not None:
        moments.append(Moment(epoch(version.manifest.created_at), f"merged and quantised: {version.name}, verified"))
    if measured_at is not None:
        moments.append(Moment(epoch(measured_at), "measured before and after on the hold-out"))
    return tuple(sorted(moments, key=lambda moment: moment.at))


def _begun(attempt: Attempt) -> str:
    where = f"{attempt.offer.provider}, {attempt.offer.name},"
    return f"{where} refused" if attempt.state == "refused" else f"{where} asked for"


def _ended(attempt: Attempt) -> str:
    after = f" after {seconds(attempt.receipt.seconds)}" if attempt.receipt else ""
    return f"machine gone{after}" + (f": {attempt.ending}" if attempt.ending else "")
