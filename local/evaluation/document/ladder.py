"""The ladder from the base to the served endpoint."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jobs.spec import SHA256, Frozen
from local.evaluation.document.comparison import Caveat, Comparison
from local.evaluation.document.measurement import Measurement

RungName = Literal["base", "few-shot", "adapter", "merge", "quantised", "served"]
Cause = Literal["examples", "training", "training against examples", "merging", "quantisation", "serving"]


class FewShot(Frozen):
    """Examples that stand before every question: ``k`` rows of ``train.jsonl``, drawn with ``seed``.

    ``rows``: their lines, from 1, in the order in which they are shown; ``wanted``: how many were asked for, of which
    ``k`` fit into the context; ``train_sha256``: of the file.
    """

    k: int
    wanted: int
    seed: int
    rows: tuple[int, ...]
    train_sha256: str = Field(pattern=SHA256)


class Rung(Frozen):
    """One rung of the ladder: the same hold-out, prompt and decoding as all others. ``note``: what a reader must know
    of it, such as that its answers are those of the rung before; empty if nothing."""

    name: RungName
    title: str
    measurement: Measurement
    note: str = ""


class Step(Frozen):
    """One rung against an earlier one, in the ladder's metric, row by row.

    ``cause``: the one thing that differs between the two. ``sentence``: to be printed as it is.
    """

    cause: Cause
    before: RungName
    after: RungName
    comparison: Comparison
    sentence: str


class Ladder(Frozen):
    """What each step from the base to the served endpoint gains or costs.

    ``rungs``: in the order of ``RungName``, without those of ``missing``, which has the reason; ``steps``:
    ``p_adjusted`` is corrected over all of them; ``bar``: the most that quantisation may cost, in the metric's unit;
    ``advice``: what to do if it costs more, else empty; ``worth_it`` and ``sentence``: whether examples in the prompt
    would have done as well as the fine-tune, None if one of the two is missing.
    """

    metric: str
    n: int = Field(gt=0)
    rungs: tuple[Rung, ...]
    steps: tuple[Step, ...]
    few_shot: FewShot | None
    missing: dict[RungName, str] = Field(default={})
    bar: float
    advice: str = ""
    worth_it: Literal["yes", "no", "undecided"] | None
    sentence: str
    warnings: tuple[Caveat, ...] = ()
