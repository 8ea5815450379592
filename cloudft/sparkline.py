"""Numbers as a line of small bars, for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 24
# A loss that falls further than this would be a flat line after its first steps.
LOG_RATIO = 25.0


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """The values from left to right, at most ``width`` bars, each the mean of those that it stands for.

    Their height is the logarithm's where the values differ by orders of magnitude.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    count = min(width, len(finite))
    edges = [round(i * len(finite) / count) for i in range(count + 1)]
    means = [math.fsum(finite[a:b]) / (b - a) for a, b in pairwise(edges)]
    if min(means) > 0 and max(means) / min(means) > LOG_RATIO:
        means = [math.log(mean) for mean in means]
    low, high = min(means), max(means)
    if high == low:
        return BARS[0] * count
    return "".join(BARS[min(int((mean - low) / (high - low) * len(BARS)), len(BARS) - 1)] for mean in means)
