"""General questions, asked before and after."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jobs.spec import SHA256, Frozen
from local.evaluation.document.comparison import Caveat, Comparison
from local.evaluation.document.measurement import Estimate, Label, OutputsRef


class GeneralPart(Frozen):
    """The questions of one kind."""

    n: int
    before: Estimate
    after: Estimate


class GeneralExample(Frozen):
    """A question that was answered rightly before, and wrongly after. ``expected``: what is asked for, in words."""

    id: str
    part: str
    question: str
    expected: str
    before: str
    after: str


class Forgetting(Frozen):
    """General questions, which have nothing to do with the task, asked before and after.

    ``suite``: "cloudft" for the set that comes with cloudft, or "lm-eval:<task>"; ``sha256``: of the questions, None if
    not known; ``metric``: what a hit is; ``outcome``: as of ``comparison``, or "nothing to forget" if the base knows
    too little to show a loss; ``regressions``: the first few of ``comparison.lost`` questions.
    """

    suite: str
    title: str
    licence: str
    n: int = Field(gt=0)
    metric: str
    sha256: str | None = Field(default=None, pattern=SHA256)
    before: Estimate
    after: Estimate
    comparison: Comparison
    parts: dict[str, GeneralPart] = Field(default={})
    outcome: Literal["better", "worse", "undecided", "nothing to forget"]
    sentence: str
    regressions: tuple[GeneralExample, ...] = ()
    outputs: dict[Label, OutputsRef] = Field(default={})
    software: dict[str, str] = Field(default={})
    warnings: tuple[Caveat, ...] = ()
