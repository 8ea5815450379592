"""What a stage finds out and decides on its way, and must not forget: it travels in each checkpoint as ``course.json``.

Evaluations, the steps that were cut, how many rows fit into memory: a machine that goes on from the checkpoint decides
the same as the one before would have. Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

COURSE = "course.json"


@dataclass(frozen=True)
class Evaluation:
    """Mean loss on the validation rows after ``step`` steps of the stage; step 0 is what the stage began with."""

    step: int
    loss: float


def at_start(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """The one before the first step."""
    return next((e for e in evaluations if e.step == 0), None)


@dataclass
class Course:
    """``cuts``: as in ``jobs.fitting``. ``notes``: what a person should know of it, in a few words each.

    ``evaluations`` are of rows that are not trained on; ``watched``, where there are no such, of some that are: those
    only show a training that goes wrong. ``pieces``, ``evaluation_pieces``: so many parts a micro-batch is computed in,
    for want of memory.
    """

    evaluations: list[Evaluation] = field(default_factory=list)
    watched: list[Evaluation] = field(default_factory=list)
    cuts: list[list[float]] = field(default_factory=list)
    pieces: int = 1
    evaluation_pieces: int = 1
    notes: list[str] = field(default_factory=list)

    @property
    def began(self) -> Evaluation | None:
        """The evaluation before the first step."""
        return at_start(self.evaluations)

    @property
    def best(self) -> Evaluation | None:
        """The lowest loss after some training, the earliest if several are equal; None before the first."""
        return min((e for e in self.evaluations if e.step > 0), key=lambda e: e.loss, default=None)

    @property
    def improved(self) -> bool:
        """Whether the best is better than what the stage began with; without a measurement nobody knows, so no."""
        return self.best is not None and self.began is not None and self.best.loss < self.began.loss

    def stale(self) -> int:
        """Evaluations since the best one."""
        best = self.best
        return sum(e.step > best.step for e in self.evaluations) if best else 0

    def write(self, folder: Path) -> None:
        (folder / COURSE).write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Course:
        """The course of a checkpoint; an empty one where it has none."""
        try:
            value = json.loads((folder / COURSE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls()
        evaluations = {name: [Evaluation(**e) for e in value.get(name, ())] for name in ("evaluations", "watched")}
        return cls(**{**value, **evaluations})
