"""Intervals, tests and sample sizes for what is measured on a few hundred rows. Pure, and standard library only.

Everything is two-sided at 95 %. Sources:

- ``wilson``: E. B. Wilson 1927, JASA 22:209-212.
- ``newcombe``: R. G. Newcombe 1998, Statistics in Medicine 17:2635-2650, method 10 (paired data).
- ``mcnemar``: the exact binomial form of Q. McNemar 1947, Psychometrika 12:153-157.
- ``holm``: S. Holm 1979, Scandinavian Journal of Statistics 6:65-70.
- ``pairs_needed``: R. J. Connor 1987, Biometrics 43:207-211 (after O. S. Miettinen 1968, Biometrics 24:339-352).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist

LEVEL = 0.95
ALPHA = 1 - LEVEL
POWER = 0.8
Z = NormalDist().inv_cdf(1 - ALPHA / 2)
Z_POWER = NormalDist().inv_cdf(POWER)
# The exact test calls 6 changes in one direction and none in the other a finding (2/2^6 = 0.031), and 5 not (0.063).
FEWEST_CHANGES = 6


def wilson(hits: int, n: int, z: float = Z) -> tuple[float, float]:
    """The score interval of a share. It stays inside 0..1, also at 0 and n of n."""
    p = hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At the ends the formula is exact, but floating point is not.
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == n else min(1.0, centre + half)
    return low, high


def newcombe(both: int, gained: int, lost: int, neither: int) -> tuple[float, float]:
    """The interval of the change of a share, after - before, on the same rows.

    Unlike Wald's it is right at the ends too: 0 → n of n is no certain change of 1.

    Args:
        both: rows that hit before and after.
        gained: rows that hit only after.
        lost: rows that hit only before.
        neither: rows that hit neither time.
    """
    n = both + gained + lost + neither
    before, after = (both + lost) / n, (both + gained) / n
    (low_b, high_b), (low_a, high_a) = wilson(both + lost, n), wilson(both + gained, n)
    phi = _correlation(both, gained, lost, neither)
    down, up = after - low_a, high_a - after
    below, above = before - low_b, high_b - before
    change = after - before
    least = change - math.sqrt(max(0.0, down * down - 2 * phi * down * above + above * above))
    most = change + math.sqrt(max(0.0, up * up - 2 * phi * up * below + below * below))
    return max(-1.0, least), min(1.0, most)


def _correlation(both: int, gained: int, lost: int, neither: int) -> float:
    """Newcombe's continuity-corrected phi of the fourfold table."""
    n = both + gained + lost + neither
    margins = (both + lost) * (gained + neither) * (both + gained) * (lost + neither)
    if margins == 0:
        return 0.0
    product = both * neither - gained * lost
    if product > 0:
        product = max(product - n / 2, 0)  # type: ignore[assignment]
    return product / math.sqrt(margins)


def mcnemar(gained: int, lost: int) -> float:
    """The exact p-value that gains and losses are equally likely; rows that did not change say nothing about it."""
    changed = gained + lost
    if changed == 0:
        return 1.0
    # In integers of any size: 2**changed does not fit into a float for long.
    term = tail = 1
    for k in range(min(gained, lost)):
        term = term * (changed - k) // (k + 1)
        tail += term
    return min(1.0, float(2 * tail / 2**changed))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values such that calling those below 0.05 findings is wrong about any of them in 5 % of cases at most."""
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def pairs_needed(gained: float, lost: float) -> int | None:
    """About how many rows ``mcnemar`` needs to show such a change, with 80 % power.

    Args:
        gained, lost: shares of the rows that change to a hit, and away from it.

    Returns:
        None if as many are gained as lost: no number of rows shows a difference that is not there.
    """
    change, changing = abs(gained - lost), gained + lost
    if change == 0:
        return None
    root = Z * math.sqrt(changing) + Z_POWER * math.sqrt(max(0.0, changing - change * change))
    return math.ceil(max(root * root / (change * change), FEWEST_CHANGES / changing))


def rows_needed(change: float, error: float, n: int, *, differ: int) -> int | None:
    """The same for any other metric, whose change has the standard error ``error`` on ``n`` rows.

    The error falls with the root of the rows, so that they are (z + z_power)^2 (error sqrt(n) / change)^2. Of ``n``
    rows ``differ`` changed at all; below ``FEWEST_CHANGES`` of them nothing is shown.
    """
    if change == 0 or differ == 0:
        return None
    return math.ceil(max((Z + Z_POWER) ** 2 * n * (error / change) ** 2, FEWEST_CHANGES * n / differ))


def smallest_change(n: int) -> float | None:
    """The smallest change of a share that ``n`` rows show with 80 % power, if it is all gain and no loss.

    ``FEWEST_CHANGES`` rows must then have changed, and their number is binomial. None: not even a change of all rows
    would be shown.
    """
    if n < FEWEST_CHANGES:
        return None
    low, high = 0.0, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        too_few = sum(math.comb(n, k) * middle**k * (1 - middle) ** (n - k) for k in range(FEWEST_CHANGES))
        low, high = (middle, high) if 1 - too_few < POWER else (low, middle)
    return high


def spread(values: tuple[float, ...]) -> float | None:
    """The standard deviation (n - 1); None for fewer than two values."""
    if len(values) < 2:
        return None
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
