"""When a training has gone wrong for good: a pure rule over the losses of a stage. Standard library only.

A loss that is no number cannot be learned from. One that is high for a while comes back more often than not; so what
counts is the median over the last ``WINDOW`` steps, which a few bad batches do not move. The training has diverged when
that median is

    above what the stage began with  (the model is worse than the untrained one),
    and above ``TIMES`` its own best (it has lost what it had learned),
    and above ``LEAST`` nats         (small losses are noise in relation to each other).

LLM Foundry's ``KillLossSpike`` is the source of the idea and of the factor: there a loss is an outlier at twice the
mean of the last 100 steps, and five in a row end the run. Fine-tunes are shorter, and their rows differ more: hence a
smaller window, a median instead of a mean, and the comparison with the beginning.

A rate that is far too high spoils the very first losses too, so that nothing is left to compare with. The loss on the
validation rows was measured before: one that rises above ``TIMES`` that, and above ``LEAST``, is the end as well.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median

WINDOW = 20
TIMES = 2.0
LEAST = 1.0
# The median of so many steps is what the stage began with: the rate is being warmed up, and little is learned yet.
BEGINNING = 5


def evaluated(loss: float, began: float | None) -> str:
    """What is wrong with a validation loss; ``began`` is the one before the first step. Empty for nothing."""
    if not math.isfinite(loss):
        return f"the validation loss became {loss}"
    if began is not None and loss > max(TIMES * began, LEAST):
        return f"the validation loss rose to {loss:.3g}, from {began:.3g} before the first step"
    return ""


class LossWatch:
    """The losses of a stage, one by one; after each step it says what is wrong with them."""

    def __init__(self) -> None:
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=WINDOW)
        self._best = math.inf

    def add(self, loss: float) -> str:
        """Why the training is to stop; empty while it may go on."""
        if not math.isfinite(loss):
            return f"the loss became {loss}"
        if len(self._first) < BEGINNING:
            self._first.append(loss)
        self._last.append(loss)
        if len(self._last) < WINDOW:
            return ""
        smooth, began = median(self._last), median(self._first)
        self._best = min(self._best, smooth)
        if smooth > max(began, TIMES * min(self._best, began), LEAST):
            return (
                f"the loss rose to {smooth:.3g} (median of {WINDOW} steps), from {began:.3g} at the beginning "
                f"and {min(self._best, began):.3g} at best"
            )
        return ""
