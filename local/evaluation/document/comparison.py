"""Two models, compared row by row, and what is to be said about it in words."""

from __future__ import annotations

from typing import Literal

from jobs.spec import Frozen

Outcome = Literal["better", "worse", "undecided"]


class Comparison(Frozen):
    """One metric after against before, row by row.

    ``change`` = after - before, in the metric's unit, with its interval. ``gained`` and ``lost``: rows whose own score
    rose and fell, None for a metric that a row has no part of. ``p_value``: two-sided, of the paired test, as it
    stands; ``p_adjusted``: the same for the primary metric, corrected by Holm's method over all the others. ``outcome``
    is "better" or "worse" only if ``p_adjusted`` < 0.05. ``rows_needed``: about how many rows would show a
    change of this size (80 % power); None where there is none, or it is shown already.
    """

    change: float
    low: float
    high: float
    test: Literal["mcnemar", "paired bootstrap"]
    p_value: float
    p_adjusted: float
    outcome: Outcome
    gained: int | None = None
    lost: int | None = None
    rows_needed: int | None = None


class Verdict(Frozen):
    """The plain answer. ``metric``: the primary one, which alone decides; ``sentence``: to be printed as it is;
    ``worse``: other metrics that got worse beyond chance; ``rows_needed`` as in the primary's ``Comparison``."""

    outcome: Outcome
    metric: str
    sentence: str
    worse: tuple[str, ...] = ()
    rows_needed: int | None = None


class Changes(Frozen):
    """Rows by the primary metric, before and after. *Right* is a score of 1; a gain on the whole can hide losses."""

    gained: int
    lost: int
    right_both_times: int
    wrong_both_times: int


class Caveat(Frozen):
    """What a reader must know before believing the numbers. ``code`` is for programs, ``text`` one or two sentences.

    Codes: *small-holdout* too few rows to show a change worth having; *partial* not all rows of the hold-out;
    *failed-requests* some count as wrong because no answer came; *cut-off* answers that ended at ``max_tokens``;
    *worse* the primary metric fell; *regression* another metric fell; *engines-differ* served by different servers;
    *template-given* a base without a chat template got the trained one.
    """

    code: str
    text: str
