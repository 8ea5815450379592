"""The rows that training never saw, as they were put aside at submit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from cloudft.errors import DataError, IntegrityError, NotFound
from local.evaluation.task import expected_row
from local.evaluation.tasks.base import Row, Scorer

NOTHING_WRITTEN = "no result was written; an earlier evaluation of this run is unchanged"


def read_holdout(path: Path, sha256: str, scorer: Scorer) -> list[Row]:
    """The hold-out rows, checked: what is measured must be what was held out.

    Raises:
        NotFound: there is no such file.
        IntegrityError: it is not the file that was put aside at submit.
        DataError: it is empty, or a line is not a conversation with an expected answer that keeps to the task.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError as exc:
        raise NotFound(
            f"{path} is not there: the run has no hold-out", effect=NOTHING_WRITTEN, hint="restore it from a backup"
        ) from exc
    if hashlib.sha256(raw).hexdigest() != sha256:
        raise IntegrityError(
            f"{path} was changed after submit: the model may have been trained on what is in it now",
            effect=NOTHING_WRITTEN,
            hint="restore the file, or submit again",
        )
    # Not splitlines(): it also cuts at characters that may stand inside a JSON string.
    lines = enumerate(raw.split(b"\n"), start=1)
    rows = [_read_row(path, number, line, scorer) for number, line in lines if line.strip()]
    if not rows:
        raise DataError(
            f"{path} is empty: there is nothing to measure",
            effect=NOTHING_WRITTEN,
            hint="hold out some rows: data.holdout in cloudft.yaml, then submit again",
        )
    return rows


def _read_row(path: Path, number: int, line: bytes, scorer: Scorer) -> Row:
    def broken(why: str) -> DataError:
        return DataError(f"{path}, line {number}: {why}", effect=NOTHING_WRITTEN)

    try:
        messages = json.loads(line)["messages"]
        *prompt, answer = messages
        role, content = answer["role"], answer["content"]
    except (ValueError, KeyError, TypeError) as exc:
        raise broken(f"this is no conversation ({exc!r})") from exc
    if role != "assistant" or not prompt or not isinstance(content, str):
        raise broken("the last message must be the expected answer, as text, after at least one other")
    try:
        return expected_row(scorer, number, messages)
    except ValueError as exc:
        raise broken(str(exc)) from exc
