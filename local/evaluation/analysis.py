"""From scored answers to numbers: each metric of each model with its interval, and after against before.

A row is the unit, with all its repeats: these say little about other rows. The number for several repeats is the mean
of the metric over them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from local.evaluation.bootstrap import Array, Spread, Value, resampled_sums, spread_of
from local.evaluation.document.comparison import Changes, Comparison, Outcome
from local.evaluation.document.measurement import FAILED, OTHER, Confusion, Estimate, Tally
from local.evaluation.statistics import ALPHA, holm, mcnemar, newcombe, pairs_needed, rows_needed, spread, wilson
from local.evaluation.tasks.base import MetricDef, Scored

Scores = Sequence[Sequence[Scored]]
"""Of one model: by repeat, then by row."""


@dataclass(frozen=True)
class Analysis:
    """What two models scored. The metrics are those that apply to any row, in the order in which to show them."""

    before: dict[str, Estimate]
    after: dict[str, Estimate]
    comparisons: dict[str, Comparison]
    changes: Changes


def analyse(metrics: Mapping[str, MetricDef], before: Scores, after: Scores, primary: str) -> Analysis:
    """Measure and compare. ``before`` and ``after`` are of the same rows, and repeated as often."""
    sides = [{n: _Measured.of(n, metrics[n], scores) for n in metrics} for scores in (before, after)]
    names = [name for name in metrics if sides[0][name].applies and sides[1][name].applies]
    spreads = _spreads([side[name] for side in sides for name in names])
    first, second = spreads[: len(names)], spreads[len(names) :]
    compared = {n: _compare(sides[0][n], sides[1][n], b, a) for n, b, a in zip(names, first, second, strict=True)}
    return Analysis(
        before={n: sides[0][n].estimate(s) for n, s in zip(names, first, strict=True)},
        after={n: sides[1][n].estimate(s) for n, s in zip(names, second, strict=True)},
        comparisons=_adjusted(compared, primary),
        changes=changes(sides[0][primary], sides[1][primary]),
    )


def measure(metrics: Mapping[str, MetricDef], scores: Scores) -> dict[str, Estimate]:
    """Measure one model alone."""
    measured = [_Measured.of(name, metric, scores) for name, metric in metrics.items()]
    measured = [m for m in measured if m.applies]
    return {m.name: m.estimate(s) for m, s in zip(measured, _spreads(measured), strict=True)}


@dataclass(frozen=True)
class _Measured:
    """What each row adds to one metric: ``parts`` has the shape (repeats, rows, k)."""

    name: str
    metric: MetricDef
    parts: Array

    @classmethod
    def of(cls, name: str, metric: MetricDef, scores: Scores) -> _Measured:
        return cls(name, metric, np.array([[_part(name, metric, s) for s in repeat] for repeat in scores], dtype=float))

    @property
    def applies(self) -> bool:
        """Whether there is any row that it is about."""
        return not np.isnan(self.once(self.parts[0].sum(axis=0)))

    @property
    def once(self) -> Value:
        """Sums of one repeat to the metric."""
        return self.metric.value or _mean

    def value(self, sums: Any) -> Any:
        """Sums of ``rows`` to the mean of the metric over the repeats."""
        return self.once(sums.reshape(*sums.shape[:-1], len(self.parts), -1)).mean(axis=-1)

    @property
    def rows(self) -> Array:
        """The parts of each row, its repeats side by side."""
        return np.concatenate(list(self.parts), axis=1)

    @property
    def about(self) -> int:
        """How many rows it is about."""
        return len(self.rows) if self.scores is None else int(np.sum(~np.isnan(self.scores)))

    @property
    def counts(self) -> bool:
        """Whether it is a count of hits among rows, each asked once."""
        return self.metric.about.unit == "share" and len(self.parts) == 1

    @property
    def hits(self) -> NDArray[np.bool_]:
        """Of the rows that it applies to: whether they hit. Only where it counts."""
        applies, score = self.parts[0].T
        return np.asarray(score[applies > 0] > 0.5)

    @property
    def scores(self) -> Array | None:
        """The rows' own scores, the mean of their repeats; None for a metric that rows have none of. NaN where it does
        not apply."""
        if self.metric.value is not None:
            return None
        applies, score = self.parts.mean(axis=0).T
        return np.asarray(np.where(applies > 0, score / np.where(applies > 0, applies, 1), np.nan))

    def estimate(self, found: Spread | None) -> Estimate:
        values = tuple(float(self.once(repeat.sum(axis=0))) for repeat in self.parts)
        if found is None:
            hits, rows = int(self.hits.sum()), len(self.hits)
            low, high = wilson(hits, rows)
            return Estimate(value=values[0], low=low, high=high, method="wilson", hits=hits, of=rows)
        value = sum(values) / len(values)
        low, high = found.interval()
        bound = found.constant and self.metric.about.unit != "number" and value in (0.0, 1.0)
        if bound:
            # All rows at the end of the scale: resampling shows no spread, but other rows may differ as those of a
            # share may.
            low, high = wilson(self.about if value else 0, self.about)
        several = values if len(values) > 1 else ()
        return Estimate(
            value=value,
            low=min(low, value),
            high=max(high, value),
            method="wilson" if bound else "bootstrap",
            per_repeat=several,
            spread=spread(several),
        )


def _part(name: str, metric: MetricDef, scored: Scored) -> tuple[float, ...]:
    if metric.value is not None:
        return scored.pooled[name]
    return (1.0, scored.score[name]) if name in scored.score else (0.0, 0.0)


def _mean(sums: Any) -> Any:
    """From sums of (rows that it applies to, their scores)."""
    rows, score = sums[..., 0], sums[..., 1]
    return np.where(rows > 0, score / np.where(rows > 0, rows, 1), np.nan)


def _spreads(measured: Sequence[_Measured]) -> list[Spread | None]:
    """Of all that are not simply counted, over one set of resamples."""
    stacked = [m.rows for m in measured if not m.counts]
    if not stacked:
        return [None] * len(measured)
    drawn, at = resampled_sums(np.hstack(stacked)), 0
    found: list[Spread | None] = []
    for m in measured:
        if m.counts:
            found.append(None)
            continue
        width = m.rows.shape[1]
        found.append(spread_of(m.rows, drawn[:, at : at + width], m.value))
        at += width
    return found


def _compare(before: _Measured, after: _Measured, first: Spread | None, second: Spread | None) -> Comparison:
    """One metric, as if it were the only one: ``p_adjusted`` and ``outcome`` are set by ``_adjusted``."""
    if first is None or second is None:
        return _compare_counts(before.hits, after.hits)
    difference, differ = second - first, int(np.sum(np.any(after.rows != before.rows, axis=1)))
    low, high = difference.interval()
    if difference.constant and {first.value, second.value} <= {0.0, 1.0} and before.metric.about.unit != "number":
        rows = before.about
        rose, fell = (rows if difference.value > 0 else 0), (rows if difference.value < 0 else 0)
        low, high = newcombe(0, rose, fell, rows - rose - fell)
    gained, lost = _moved(before, after)
    return Comparison(
        change=difference.value,
        low=min(low, difference.value),
        high=max(high, difference.value),
        test="paired bootstrap",
        # Few rows resample to few differences, and would pass for certain. That all of them differ in one direction
        # has this probability by chance, whatever is measured.
        p_value=max(difference.p_value(), mcnemar(differ, 0)),
        p_adjusted=1.0,
        outcome="undecided",
        gained=gained,
        lost=lost,
        rows_needed=_more_than(
            before.about, rows_needed(difference.value, difference.error, before.about, differ=differ)
        ),
    )


def _compare_counts(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Comparison:
    n = len(before)
    gained, lost = int(np.sum(after & ~before)), int(np.sum(before & ~after))
    both = int(np.sum(after & before))
    low, high = newcombe(both, gained, lost, n - both - gained - lost)
    return Comparison(
        change=(gained - lost) / n,
        low=low,
        high=high,
        test="mcnemar",
        p_value=mcnemar(gained, lost),
        p_adjusted=1.0,
        outcome="undecided",
        gained=gained,
        lost=lost,
        rows_needed=_more_than(n, pairs_needed(gained / n, lost / n)),
    )


def _more_than(rows: int, needed: int | None) -> int | None:
    """The formulas are approximate, the tests are not: rows that did not show it are too few for certain."""
    return None if needed is None else max(needed, rows + 1)


def _moved(before: _Measured, after: _Measured) -> tuple[int | None, int | None]:
    """Rows whose own score rose and fell."""
    was, now = before.scores, after.scores
    if was is None or now is None:
        return None, None
    return int(np.sum(now > was + 1e-12)), int(np.sum(now < was - 1e-12))


def _adjusted(compared: Mapping[str, Comparison], primary: str) -> dict[str, Comparison]:
    """Correct for having looked at many metrics: the primary stands alone, the others are looked at together."""
    others = holm({name: found.p_value for name, found in compared.items() if name != primary})
    return {name: _decided(found, others.get(name, found.p_value), name == primary) for name, found in compared.items()}


def _decided(found: Comparison, p: float, primary: bool) -> Comparison:
    shown = p < ALPHA and found.change != 0
    outcome: Outcome = ("better" if found.change > 0 else "worse") if shown else "undecided"
    needed = None if shown else found.rows_needed
    return found.model_copy(update={"p_adjusted": p, "outcome": outcome, "rows_needed": needed})


def changes(before: _Measured, after: _Measured) -> Changes:
    """Rows that are right, by a score of 1; by a metric that rows have none of, none is."""
    was, now = before.scores, after.scores
    if was is None or now is None:
        return Changes(gained=0, lost=0, right_both_times=0, wrong_both_times=0)
    right, still = was >= 1, now >= 1
    there = ~np.isnan(was)
    return Changes(
        gained=int(np.sum(still & ~right & there)),
        lost=int(np.sum(right & ~still & there)),
        right_both_times=int(np.sum(right & still)),
        wrong_both_times=int(np.sum(~right & ~still & there)),
    )


def tables(names: Mapping[str, Sequence[str]], scores: Scores) -> dict[str, dict[str, Tally]]:
    """Tallies over all answers, the known names first, then those that only the answers have."""
    sums: dict[str, dict[str, list[int]]] = {kind: {name: [0, 0, 0] for name in known} for kind, known in names.items()}
    for scored in (scored for repeat in scores for scored in repeat):
        for kind, counts in scored.tallies.items():
            for name, count in counts.items():
                total = sums[kind].setdefault(name, [0, 0, 0])
                for place, value in enumerate(count):
                    total[place] += value
    return {kind: {name: _tally(*total) for name, total in table.items()} for kind, table in sums.items()}


def _tally(expected: int, answered: int, correct: int) -> Tally:
    return Tally(
        expected=expected,
        answered=answered,
        correct=correct,
        precision=correct / answered if answered else 0.0,
        recall=correct / expected if expected else 0.0,
        f1=2 * correct / (expected + answered) if expected + answered else 0.0,
    )


def confusion(names: Mapping[str, Sequence[str]], scores: Scores) -> dict[str, Confusion]:
    """The matrices over all answers."""
    found = {}
    for what, rows in names.items():
        columns = (*rows, OTHER, FAILED)
        counts = [[0] * len(columns) for _ in rows]
        for scored in (scored for repeat in scores for scored in repeat):
            if pair := scored.pairs.get(what):
                counts[rows.index(pair[0])][columns.index(pair[1])] += 1
        found[what] = Confusion(rows=tuple(rows), columns=columns, counts=tuple(map(tuple, counts)))
    return found
