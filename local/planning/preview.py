"""What a run would train on and what that needs, before anything is rented: label audit, memory, time.

It looks at the very rows that would be written beside the run, so it says of the run what the machine will find.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.audit import StageAudit, answers, stage_file
from jobs.spec import RunSpec, Stage
from local.planning.audit import HomeAudit, Rows, audit_at_home, task_notes
from local.planning.data import Row
from local.planning.draft import Draft
from local.planning.estimate import Tokens, Work, tokens_from_characters, work_of
from local.planning.measured import read_speeds
from local.planning.shape import base_shape
from local.progress import Progress
from local.project import Project


@dataclass(frozen=True)
class Preview:
    """``notes``: what a person should know of the answers before money is spent on them."""

    audit: HomeAudit
    work: Work
    notes: tuple[str, ...] = ()


def preview(project: Project, drafted: Draft, progress: Progress) -> Preview:
    """Look at a drafted run. Writes nothing.

    Raises:
        DataError: the chat template refuses rows, or nothing would be learned of some.
    """
    progress("audit the labels")
    spec = drafted.spec
    stages = [_rows(drafted, stage) for stage in spec.stages]
    audit = audit_at_home(spec, project.root, stages)
    counted = audit.audit.stages if audit.audit else (None,) * len(stages)
    tokens = [_tokens(found, rows) for found, rows in zip(counted, stages, strict=True)]
    speeds = [speed for speed in read_speeds() if speed.backend == spec.backend]
    work = work_of(spec, base_shape(spec.base, project.root), tokens, speeds)
    name = spec.data.train.path
    answered = [row for row in drafted.files[name] if isinstance(row, Row)]
    notes = task_notes(answered, drafted.task, drafted.paths.get(name, name)) if _learns(spec) else ()
    return Preview(audit, work, notes)


def _learns(spec: RunSpec) -> bool:
    """Whether a stage trains on the answers of the task's own rows."""
    return any(stage.kind == "sft" for stage in spec.stages)


def _rows(drafted: Draft, stage: Stage) -> Rows:
    """The rows of one stage, with the lines of the file that the user wrote."""
    name = stage_file(drafted.spec, stage).path
    rows = drafted.files[name]
    lines = [getattr(row, "line", 0) or index for index, row in enumerate(rows, 1)]
    return Rows([json.loads(row.canonical()) for row in rows], lines, drafted.paths.get(name, name))


def _tokens(found: StageAudit | None, rows: Rows) -> Tokens:
    """How long the examples are: counted, or by their characters where the base's tokenizer could not be read here."""
    if found is not None and found.examples:
        return Tokens((found.mean, found.mean), (found.longest, found.longest), found.trained_share)
    lengths = [length for row in rows.rows for length in _characters(row)]
    return tokens_from_characters(sum(lengths) / len(lengths), max(lengths))


def _characters(row: dict[str, Any]) -> list[int]:
    """Of each example that a row becomes."""
    if "text" in row:
        return [len(row["text"])]
    if "chosen" in row:
        prompt = _sum(row["prompt"])
        return [prompt + len(row["chosen"]), prompt + len(row["rejected"])]
    return [_sum(messages) for messages in answers(row["messages"])]


def _sum(messages: Sequence[dict[str, str]]) -> int:
    return sum(len(message["content"]) for message in messages)
