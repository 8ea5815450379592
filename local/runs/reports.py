"""What a run tells beside its adapter, brought home: log, metrics, audit, trackers' files, the picture of its loss.

None of it is worth a failure: what is not there is left out.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from cloudft.errors import CloudftError
from jobs.bundle import unpack
from jobs.curve import parse_lines, read_lines
from jobs.ticket import AUDIT, LOG, METRICS, TRACKING
from local.files import atomic_open, write_json, write_text
from local.planning.measured import keep_speed, speed_of
from local.planning.shape import base_shape
from local.runs.loss_picture import loss_picture
from local.runs.records import RunRecord, attempt_prefix, read_spec
from local.runs.runlock import add_trained
from local.runs.session import Session

PICTURE = "loss.svg"


def fetch_reports(session: Session, record: RunRecord, result: dict[str, Any]) -> None:
    """Everything of an ended run, into its folder; ``result``: what the machine recorded last."""
    prefix = attempt_prefix(record.run_id, result["attempt"])
    for name in (LOG, METRICS, AUDIT):
        data = session.store.get_bytes(f"{prefix}/{name}")
        if data is not None:
            with atomic_open(session.run.root / name) as out:
                out.write(data)
    _tracking(session, f"{prefix}/{TRACKING}")
    write_json(session.run.result, result)
    add_trained(session.run, result)
    draw(session, record, read_lines(session.run.root / METRICS))
    learn(session, record, result)


def _tracking(session: Session, key: str) -> None:
    """The trackers' files, at ``tracking/``, as a whole."""
    size = session.store.size(key)
    target = session.run.root / "tracking"
    if size is None or target.exists():
        return
    tar = session.run.root / ".tracking.tar.part"
    try:
        with tar.open("wb") as out:
            for piece in session.store.read(key, 0):
                out.write(piece)
        with contextlib.suppress(ValueError):
            unpack(tar, target)
    finally:
        tar.unlink(missing_ok=True)


def live_metrics(session: Session, record: RunRecord) -> list[dict[str, Any]]:
    """The steps so far: from this computer when the run was pulled, else from the store; [] where there are none."""
    home = session.run.root / METRICS
    if home.is_file():
        return read_lines(home)
    if not record.attempts:
        return []
    raw = session.store.get_bytes(f"{attempt_prefix(record.run_id, record.attempt.number)}/{METRICS}")
    return parse_lines(raw or b"")


def draw(session: Session, record: RunRecord, lines: list[dict[str, Any]]) -> Path | None:
    """The loss as a picture in the run's folder; None for a run without a step, or where it can't be written."""
    note = f"{record.project}, {record.status}"
    with contextlib.suppress(CloudftError):
        spec = read_spec(session.run)
        note = f"{spec.base.id}, {' → '.join(f'{s.kind} {s.method}' for s in spec.stages)}, {record.status}"
    picture = loss_picture(lines, f"run {record.run_id}", note)
    path = session.run.root / PICTURE
    if picture is None:
        return None
    try:
        if not path.is_file() or path.read_text(encoding="utf-8") != picture:
            write_text(path, picture)
    except OSError:
        return None
    return path


def learn(session: Session, record: RunRecord, told: dict[str, Any]) -> None:
    """Keep the speed that a run measured on its card, for the estimates of the next."""
    with contextlib.suppress(CloudftError, KeyError, TypeError, ValueError):
        spec = read_spec(session.run)
        shape = base_shape(spec.base, session.project.root)
        lines = live_metrics(session, record)
        speed = speed_of(record, spec, shape, lines, told) if shape else None
        if speed is not None:
            keep_speed(speed)
