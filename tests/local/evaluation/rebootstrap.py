"""The bootstrap of docs/evaluation.md once more, written from the papers, with none of our code.

A statistic is a function of how often each row counts. That is slow, and hard to get wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

RESAMPLES, SEED = 4999, 0
Statistic = Callable[[Any], float]


@dataclass(frozen=True)
class Bootstrapped:
    value: float
    low: float
    high: float
    drawn: Any

    @property
    def p_value(self) -> float:
        """Two-sided, that it is 0, by the share of resamples on the other side (Davison and Hinkley 1997, 4.11)."""
        sides = (np.sum(self.drawn <= 1e-12), np.sum(self.drawn >= -1e-12))
        return float(min(1.0, 2 * (1 + min(sides)) / (1 + RESAMPLES)))


def bootstrap(statistic: Statistic, rows: int) -> Bootstrapped:
    """The BCa interval of 95 % (Efron 1987, formulas 6.2 to 6.6) on the documented resamples."""
    weights = np.random.default_rng(SEED).multinomial(rows, [1 / rows] * rows, size=RESAMPLES)
    value = statistic(np.ones(rows))
    drawn = np.array([statistic(counts) for counts in weights])
    without = np.array([statistic(1 - np.eye(rows)[row]) for row in range(rows)])
    if np.ptp(drawn) < 1e-12:
        return Bootstrapped(value, value, value, drawn)
    below = (np.mean(drawn < value - 1e-12) + np.mean(drawn <= value + 1e-12)) / 2
    bias, gaps = norm.ppf(below), without.mean() - without
    skew = np.sum(gaps**3) / (6 * np.sum(gaps**2) ** 1.5)
    shifted = [bias + norm.ppf(level) for level in (0.025, 0.975)]
    low, high = np.quantile(drawn, [norm.cdf(bias + z / (1 - skew * z)) for z in shifted])
    return Bootstrapped(value, float(low), float(high), drawn)


def field_f1(counts: Sequence[Sequence[int]]) -> Statistic:
    """F1 over all keys and rows, of (expected, answered, correct) in each row."""
    table = np.array(counts, dtype=float)

    def value(weights: Any) -> float:
        expected, answered, correct = weights @ table
        return float(2 * correct / (expected + answered))

    return value


def paired(before: Sequence[Sequence[int]], after: Sequence[Sequence[int]]) -> Bootstrapped:
    """The change of F1, each resample the same rows for both."""
    was, now = field_f1(before), field_f1(after)
    return bootstrap(lambda weights: now(weights) - was(weights), len(after))


def differ(before: Sequence[Sequence[int]], after: Sequence[Sequence[int]]) -> int:
    """Rows that count otherwise after than before."""
    return sum(tuple(one) != tuple(other) for one, other in zip(before, after, strict=True))
