"""The bootstrap, for every metric that is no plain share: rows are drawn anew, with replacement, from a seed.

A metric is a function of sums over rows, so that one matrix of row counts gives it for all resamples at once. The
same resamples serve all metrics and both models: a row that is drawn for one is drawn for the other.

Intervals are BCa: B. Efron 1987, JASA 82:171-185.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from local.evaluation.statistics import ALPHA

Array = NDArray[np.float64]
Value = Callable[[Any], Any]
"""Sums over rows, of shape (…, k), to the metric, of shape (…)."""

RESAMPLES = 4999
SEED = 0
TIE = 1e-12
"""Equal numbers that were summed in another order differ by less."""
_AT_ONCE = 4_000_000  # row counts in memory
_NORMAL = NormalDist()


@dataclass(frozen=True)
class Spread:
    """A statistic on the rows as they are, on resamples, and on the rows but one, for each of them.

    NaN stands where it is not defined, as on a resample that holds no row it applies to.
    """

    value: float
    resampled: Array
    without_one: Array

    def __sub__(self, other: Spread) -> Spread:
        """The difference of two statistics on the same resamples."""
        return Spread(self.value - other.value, self.resampled - other.resampled, self.without_one - other.without_one)

    @property
    def defined(self) -> Array:
        return self.resampled[~np.isnan(self.resampled)]

    @property
    def error(self) -> float:
        """The standard error."""
        return float(np.std(self.defined, ddof=1)) if len(self.defined) > 1 else 0.0

    @property
    def constant(self) -> bool:
        """Whether no resample differs, as when all rows score alike: it then says nothing about other rows."""
        return len(self.defined) == 0 or bool(np.ptp(self.defined) <= TIE)

    def interval(self) -> tuple[float, float]:
        """The 95 % interval."""
        if self.constant:
            return self.value, self.value
        low, high = np.quantile(self.defined, bca_levels(self))
        return float(low), float(high)

    def p_value(self) -> float:
        """Two-sided, that the statistic is 0: twice the smaller share of resamples on either side of it."""
        below, above = int(np.sum(self.defined <= TIE)), int(np.sum(self.defined >= -TIE))
        return min(1.0, 2 * (1 + min(below, above)) / (1 + len(self.defined)))


def resampled_sums(parts: Array, resamples: int = RESAMPLES, seed: int = SEED) -> Array:
    """Sums over rows that are drawn anew, of shape (resamples, k), of what each row adds, of shape (rows, k)."""
    return np.concatenate([counts @ parts for counts in _counts(len(parts), resamples, seed)])


def spread_of(parts: Array, drawn: Array, value: Value) -> Spread:
    """The spread of one statistic.

    Args:
        parts: what each row adds to the sums, of shape (rows, k).
        drawn: their ``resampled_sums``.
    """
    total = parts.sum(axis=0)
    return Spread(float(value(total)), np.asarray(value(drawn)), np.asarray(value(total - parts)))


def bca_levels(spread: Spread) -> tuple[float, float]:
    """The quantiles of the resamples that bound the interval; those of the plain percentile method where the
    correction is not defined."""
    drawn, without = spread.defined, spread.without_one[~np.isnan(spread.without_one)]
    at = float(np.mean(drawn < spread.value - TIE) + np.mean(drawn <= spread.value + TIE)) / 2
    gaps = without.mean() - without
    scale = float(np.sum(gaps**2)) ** 1.5
    if not 0 < at < 1 or scale == 0:
        return ALPHA / 2, 1 - ALPHA / 2
    bias, skew = _NORMAL.inv_cdf(at), float(np.sum(gaps**3)) / (6 * scale)
    low, high = (_level(bias, skew, _NORMAL.inv_cdf(tail)) for tail in (ALPHA / 2, 1 - ALPHA / 2))
    return low, high


def _level(bias: float, skew: float, z: float) -> float:
    return _NORMAL.cdf(bias + (bias + z) / (1 - skew * (bias + z)))


def _counts(rows: int, resamples: int, seed: int) -> Iterator[Array]:
    """How often each row is drawn: matrices of shape (some resamples, rows)."""
    random = np.random.default_rng(seed)
    step = max(1, _AT_ONCE // rows)
    for done in range(0, resamples, step):
        size = min(step, resamples - done)
        yield random.multinomial(rows, np.full(rows, 1 / rows), size=size).astype(np.float64)
