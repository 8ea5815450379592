"""Fits the steps of a stage to the time that is left, so that the schedule decays to its end. Pure, standard library.

A training that is cut off at its deadline stops at a high learning rate, which costs quality. So the steps are
measured, and if the rest would not fit, there are fewer of them: the rest of the *schedule* is kept, in fewer steps,
without a jump in the learning rate. A cut is a fact of the run from then on: it travels in the checkpoints, and a
machine that goes on keeps it. It may cut again, and never stretches. Where the time is enough, nothing changes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

# The first steps of a process compile, allocate and warm up: they say little about the others.
UNCOUNTED = 2
# A cut is decided from so many steps; the mean of the last RECENT ones is what a step takes.
MEASURED, RECENT = 8, 20
# Steps between two looks at the clock.
EVERY = 10
# A cut leaves this share of the time unused, or the next slow step would need another.
MARGIN = 0.05


@dataclass(frozen=True)
class Cut:
    """From ``step`` on, the schedule from position ``at`` to its end is run through by step ``last``."""

    step: int
    at: float
    last: int


@dataclass(frozen=True)
class Schedule:
    """The steps of a stage, and what became of them."""

    planned: int
    cuts: tuple[Cut, ...] = ()

    @property
    def last(self) -> int:
        """The stage ends with this step."""
        return self.cuts[-1].last if self.cuts else self.planned

    def position(self, step: int) -> float:
        """Where in the planned schedule a step stands; the step itself before any cut."""
        cut = next((cut for cut in reversed(self.cuts) if cut.step <= step), None)
        if cut is None:
            return float(step)
        share = (step - cut.step) / max(cut.last - cut.step, 1)
        return cut.at + min(share, 1.0) * (self.planned - cut.at)

    def cut(self, step: int, last: int) -> Schedule:
        """Ending with step ``last``; ``step`` are done."""
        return replace(self, cuts=(*self.cuts, Cut(step, self.position(step), last)))

    def as_list(self) -> list[list[float]]:
        """For a checkpoint."""
        return [[cut.step, cut.at, cut.last] for cut in self.cuts]

    @classmethod
    def from_list(cls, planned: int, cuts: Sequence[Sequence[float]]) -> Schedule:
        return cls(planned, tuple(Cut(int(step), float(at), int(last)) for step, at, last in cuts))


class StepClock:
    """What a step takes, in seconds, by the last ones; what is done beside the steps is counted apart."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._seen = 0
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._beside = 0.0

    def beside(self, seconds: float) -> None:
        """So long something else was done since the last step, such as an evaluation."""
        self._beside += seconds

    def step(self, now: float) -> None:
        """A step has ended. ``now``: seconds of a clock that never goes back."""
        if self._last is not None:
            self._seen += 1
            if self._seen > UNCOUNTED:
                self._recent.append(max(now - self._last - self._beside, 0.0))
        self._last, self._beside = now, 0.0

    @property
    def seconds(self) -> float | None:
        """Mean of the recent ones; None for too few."""
        if len(self._recent) < MEASURED:
            return None
        return math.fsum(self._recent) / len(self._recent)


def fitted(schedule: Schedule, step: int, per_step: float, available: float, later: float = 0.0) -> Schedule:
    """The schedule, cut if the steps that are left do not fit into the time.

    Args:
        step: steps of the stage that are done.
        per_step: seconds that a step takes, with its share of what is done beside it.
        available: seconds until training must have ended.
        later: work of the stages after this one, in steps of this one; they get their share of the time.
    """
    left = schedule.last - step
    if left <= 1 or (left + later) * per_step <= available:
        return schedule
    room = max(available, 0.0) * (1 - MARGIN) / per_step
    fit = max(1, int(room * left / (left + later)))
    return schedule.cut(step, step + fit) if fit < left else schedule
