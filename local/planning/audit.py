"""The label audit at home: before anything is rented, with the base's tokenizer alone.

It is the machine's own (``jobs.audit``), over the same rows. Where the base's tokenizer cannot be read here, the
audit is left to the machine, and that is said. Answers are also held against the task's schema, which only home knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloudft.errors import CloudftError, DataError
from jobs.audit import Audit, Reader, audit_of
from jobs.progress import stage_name
from jobs.rendering import RenderError, choose_template
from jobs.spec import Base, RunSpec
from local.base import base_folder
from local.evaluation.task import Task, expected_row
from local.planning.data import Row
from local.planning.light_tokenizer import LightTokenizer, NoLightTokenizer

NOTHING = "nothing was rented, and no run was made"
# Of more rows than this, as many are looked at, spread over all: about ten seconds.
LOOKED_AT = 20_000
EXPECTED = "the expected answer does not keep to the task's schema: "
SHOWN = 3


@dataclass(frozen=True)
class Rows:
    """The rows of one stage, as its data file has them, with the lines of the user's own file that they come from."""

    rows: Sequence[dict[str, Any]]
    lines: Sequence[int]
    path: str


@dataclass(frozen=True)
class HomeAudit:
    """What was found; ``audit`` is None where the base's tokenizer could not be read here, and ``why`` says so."""

    audit: Audit | None
    why: str = ""

    def lines(self) -> list[str]:
        """For a person."""
        return self.audit.lines() if self.audit else [f"looked at on the machine, before the first step: {self.why}"]


def conversations(rows: Sequence[Row], path: str) -> Rows:
    """The rows of an sft stage."""
    messages = [{"messages": [{"role": m.role, "content": m.content} for m in row.messages]} for row in rows]
    return Rows(messages, [row.line for row in rows], path)


def audit_at_home(spec: RunSpec, root: Path, stages: Sequence[Rows]) -> HomeAudit:
    """Look at the rows of every stage.

    Raises:
        DataError: the template refuses rows, or of some nothing would be learned; by line of the user's file.
    """
    try:
        reader, origin = _reader(spec, root)
    except (NoLightTokenizer, RenderError) as exc:
        return HomeAudit(None, str(exc))
    found = []
    for number, (stage, data) in enumerate(zip(spec.stages, stages, strict=True)):
        label = stage_name(spec, number)
        told = reader.audit(label, stage.kind, stage.max_length, data.rows, data.lines, LOOKED_AT)
        if told.problem:
            raise DataError(
                f"{data.path}, rows by their line: {told.problem}",
                effect=NOTHING,
                hint="change train.max_length, the template or these rows, then type the same command again",
            )
        found.append(told)
    return HomeAudit(audit_of("home", origin, reader, found))


def _reader(spec: RunSpec, root: Path) -> tuple[Reader, str]:
    """The base's tokenizer with the run's template, and where that came from.

    Raises:
        NoLightTokenizer: it cannot be read here.
        RenderError: the run has no template.
    """
    try:
        tokenizer = LightTokenizer(lambda name: _file(spec.base, root, name))
    except CloudftError as exc:
        raise NoLightTokenizer(exc.what) from exc
    template, origin = choose_template(spec.template, tokenizer)
    if not tokenizer.stops or tokenizer.eos_token_id is None:
        raise NoLightTokenizer("its files name no token that ends an answer")
    return Reader(tokenizer, template, tokenizer.stops), origin


def _file(base: Base, root: Path, name: str) -> Path | None:
    if base.source == "hub":
        from local.hub import small_file

        return small_file(base, name)
    path = base_folder(base.id, root) / name
    return path if path.is_file() else None


def task_notes(rows: Sequence[Row], task: Task, path: str) -> tuple[str, ...]:
    """A warning where answers to be trained on do not keep to the task: the model would learn to break it."""
    scorer = task.scorer()
    wrong: list[tuple[int, str]] = []
    for row in rows:
        try:
            expected_row(scorer, row.line, [{"role": m.role, "content": m.content} for m in row.messages])
        except ValueError as exc:
            wrong.append((row.line, str(exc).removeprefix(EXPECTED)))
    if not wrong:
        return ()
    named = "; ".join(f"line {line}: {problem}" for line, problem in wrong[:SHOWN])
    more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    return (f"{len(wrong)} of {len(rows)} answers in {path} do not keep to the task ({named}{more})",)
