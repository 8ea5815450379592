"""``runs/<id>/eval.json``, the whole of an evaluation.

It begins with the contract that other programs rely on, ``{"n": …, "before": {metric: value}, "after": {…}}``; all else
explains these numbers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from cloudft.errors import IntegrityError
from jobs.spec import SHA256, Frozen
from local.evaluation.document.comparison import Caveat, Changes, Comparison, Verdict
from local.evaluation.document.forgetting import Forgetting
from local.evaluation.document.judging import Judging, SpotCheck
from local.evaluation.document.ladder import Ladder
from local.evaluation.document.measurement import Decoding, Label, Measurement, Metric
from local.evaluation.document.reading import first_problem, read_bytes
from local.project import RunFolder

SCHEMA_VERSION = 2


class TaskUsed(Frozen):
    """What was measured: the task's kind, and its settings as in the run's ``task.json``.

    ``code_sha256``: of the Python file of a user's own metric, by its path in the project.
    """

    kind: str
    settings: dict[str, Any]
    code_sha256: dict[str, str] = Field(default={})


class Document(Frozen):
    """``eval.json``. ``before`` and ``after`` are the values of ``sides``, for programs that want no more.

    ``n``: rows that were measured, the first of the hold-out's ``held_out_rows``; ``created_at``: UTC, ISO 8601;
    ``primary``: the metric that decides; ``metrics`` explains every name that stands in ``before`` and ``after``;
    ``software``: versions of what took part, by name. ``ladder`` and all after it: only if it was asked for, and only
    as long as ``sides`` are those that it was made from.
    """

    n: int = Field(gt=0)
    before: dict[str, float]
    after: dict[str, float]
    schema_version: Literal[2] = 2
    run_id: str
    created_at: str
    verdict: Verdict
    warnings: tuple[Caveat, ...]
    primary: str
    metrics: dict[str, Metric]
    comparisons: dict[str, Comparison]
    changes: Changes
    held_out_rows: int
    holdout_sha256: str = Field(pattern=SHA256)
    task: TaskUsed
    decoding: Decoding
    sides: dict[Label, Measurement]
    software: dict[str, str]
    ladder: Ladder | None = None
    forgetting: tuple[Forgetting, ...] = ()
    judging: Judging | None = None
    spot_check: SpotCheck | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> Document:
        for label, values in (("before", self.before), ("after", self.after)):
            if label not in self.sides or values != self.sides[label].values():
                raise ValueError(f"the numbers under {label!r} are not those of its measurement")
        if not self.metrics.keys() == self.before.keys() == self.after.keys() == self.comparisons.keys():
            raise ValueError("the two sides have not the same metrics")
        if self.primary not in self.metrics:
            raise ValueError(f"the primary metric {self.primary!r} was not measured")
        return self

    def as_dict(self) -> dict[str, Any]:
        """What ``eval.json`` holds."""
        return self.model_dump(mode="json")


def read_document(run: RunFolder, record: Path | None = None) -> Document:
    """The evaluation of a run, or another one of it that lies at ``record``.

    Raises:
        NotFound: the run was not evaluated.
        IntegrityError: the file is damaged, contradicts itself, or is of another version of cloudft.
    """
    record = record or run.evaluation
    raw = read_bytes(run, record)
    again = f"measure again:  cloudft eval {run.run_id}"
    try:
        found = json.loads(raw)
        version = found["schema_version"]
        if version != SCHEMA_VERSION:
            raise IntegrityError(
                f"{record} is of version {version}, and this cloudft reads version {SCHEMA_VERSION}", hint=again
            )
        return Document.model_validate(found)
    except (ValueError, KeyError, TypeError, ValidationError) as exc:
        raise IntegrityError(f"{record} is damaged: {first_problem(exc)}", hint=again) from exc
