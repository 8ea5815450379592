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
rows that are evaluated was measured before: one that rises above ``TIMES`` that, and above ``LEAST``, is the end, too.

Where the loss was high to begin with, a spoiled model need not come so far. Its loss stays where it is: it answers the
same whatever it is asked, and has no gradient left. So the training is over, too, when of ``SEVERAL`` evaluations after
the warm-up all are

    above ``WORSE`` times what was measured before the first step, and above ``LEAST``,
    and none after the first of them is lower,

while the loss of the steps is no lower than at the beginning. The same rows are measured each time, without dropout, so
no chance is in it. A rate that is too high but bearable makes the loss rise and then fall; preferences or a few rows
that are learned by heart make it rise on the validation rows only; a rate that is too low changes nothing. None of
these is meant. Axolotl's ``loss_watchdog`` has such a threshold and patience, to be set by hand.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import median

WINDOW = 20
TIMES = 2.0
LEAST = 1.0
SEVERAL = 3
WORSE = 1.1
# Of the loss: less than that is no fall.
FALL = 1e-3
# The median of so many steps is what the stage began with: the rate is being warmed up, and little is learned yet.
BEGINNING = 5


def evaluated(loss: float, began: float | None, what: str = "the validation loss") -> str:
    """What is wrong with such a loss; ``began`` is the one before the first step. Empty for nothing."""
    if not math.isfinite(loss):
        return f"{what} became {loss}"
    if began is not None and loss > max(TIMES * began, LEAST):
        return f"{what} rose to {loss:.3g}, from {began:.3g} before the first step"
    return ""


def stuck(losses: Sequence[float], began: float | None, what: str = "the validation loss") -> str:
    """Whether evaluations stay above ``began``, the one before the first step; empty if not.

    Args:
        losses: of the evaluations since the warm-up, the oldest first.
    """
    last = losses[-SEVERAL:]
    if began is None or len(last) < SEVERAL or min(last) <= max(WORSE * began, LEAST):
        return ""
    if min(last[1:]) < (1 - FALL) * last[0]:
        return ""
    return f"{what} stays at {last[-1]:.3g} in {SEVERAL} evaluations, above the {began:.3g} before the first step"


class LossWatch:
    """The losses of a stage, one by one; after each step it says what is wrong with them."""

    def __init__(self) -> None:
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=WINDOW)
        self._best = math.inf

    @property
    def learns(self) -> bool:
        """Whether the loss is below the one at the beginning. Yes, as long as there are too few to tell."""
        if len(self._last) < WINDOW:
            return True
        # The first loss is that of the model as it was; a high rate spoils the next ones.
        return median(self._last) < min(self._first[0], median(self._first))

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
