"""How far two raters of the same pairs agree, beyond chance.

Kappa: J. Cohen 1960, Educational and Psychological Measurement 20:37-46. Its interval is Wilson's of the share of
agreement, on kappa's scale with the chance agreement as it was observed. Cohen's own approximation does the same with a
normal interval, which is certain of itself where all pairs agree; a few dozen pairs never make one certain.
"""

from __future__ import annotations

from collections.abc import Sequence

from local.evaluation.document.judging import Agreement
from local.evaluation.statistics import wilson

# Where nearly all pairs go one way, chance explains even good agreement, and kappa is small; then the share decides.
ENOUGH_SHARE = 2 / 3


def agreement(labels: Sequence[str], person: Sequence[str], judge: Sequence[str]) -> Agreement | None:
    """Agreement on pairs, in order; None if there are none."""
    n = len(person)
    if n == 0:
        return None
    counts = [[0] * len(labels) for _ in labels]
    for said, judged in zip(person, judge, strict=True):
        counts[labels.index(said)][labels.index(judged)] += 1
    agreed = sum(counts[i][i] for i in range(len(labels)))
    kappa, low, high = _kappa(counts, agreed, n)
    return Agreement(
        n=n,
        labels=tuple(labels),
        counts=tuple(tuple(row) for row in counts),
        share=agreed / n,
        kappa=kappa,
        low=low,
        high=high,
    )


def _kappa(counts: Sequence[Sequence[int]], agreed: int, n: int) -> tuple[float | None, float | None, float | None]:
    columns = [sum(row[j] for row in counts) for j in range(len(counts))]
    chance = sum(sum(row) * column for row, column in zip(counts, columns, strict=True)) / n**2
    if chance == 1:
        return None, None, None

    def beyond(share: float) -> float:
        return (share - chance) / (1 - chance)

    low, high = wilson(agreed, n)
    return beyond(agreed / n), max(-1.0, beyond(low)), min(1.0, beyond(high))


def beyond_chance(found: Agreement) -> bool:
    """Whether the two agree, as far as so many pairs can show it."""
    if found.low is not None and found.low > 0:
        return True
    return wilson(round(found.share * found.n), found.n)[0] >= ENOUGH_SHARE
