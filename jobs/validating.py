"""A trainer's evaluation: the mean loss on the rows that were chosen for it (``jobs.evaluating``).

This module imports transformers, so only ``jobs.trainers`` does so, when the trainer has begun to work.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import Trainer

from jobs import ranks
from jobs.course import Course
from jobs.memory import free, out_of_memory
from jobs.outcome import LESS_MEMORY, OutOfMemory
from jobs.randomness import Randomness
from jobs.rendering import IGNORED
from jobs.runlog import say


class Evaluates(Trainer):  # type: ignore[misc]  # the library has no types
    """Evaluates on ``held`` with the loss that it trains on, weighted by tokens, or by rows for a preference.

    It leaves no trace in the training: the same random numbers are drawn as without it.
    """

    course: Course
    held: Sequence[dict[str, Any]]
    control: Any  # the library's

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        began = time.monotonic()
        with self._aside():
            loss = self._held_loss()
        metrics = {"eval_loss": loss, "eval_runtime": time.monotonic() - began}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """Without dropout and gradients; afterwards everything is as it was."""
        randomness, training = Randomness.now(), self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train(training)
            randomness.restore()
            self._metrics["eval"].clear()  # trl's

    def _held_loss(self) -> float:
        """Halves the rows at once, and begins anew, as long as memory runs out."""
        while True:
            rows = max(1, self.args.per_device_train_batch_size // self.course.evaluation_pieces)
            problem = ""
            try:
                loss, weight = ranks.total(self._sums(rows))
            except RuntimeError as exc:
                problem = out_of_memory(exc)
            if not problem:
                return loss / weight
            if rows == 1 or ranks.count() > 1:
                raise OutOfMemory(
                    f"this machine's memory is too small to evaluate {rows} rows at once: {LESS_MEMORY} ({problem})"
                )
            free()
            self.course.evaluation_pieces *= 2
            note = f"memory ran out in an evaluation: {rows // 2} rows at once instead of {rows}"
            self.course.notes.append(note)
            say(f"{note}; {problem}")

    def _sums(self, rows: int) -> tuple[float, float]:
        """Weighted losses and weights of this rank's batches. All have equally many, since trl gathers in each."""
        batches = [self.held[at : at + rows] for at in range(0, len(self.held), rows)]
        mine = batches[ranks.rank() :: ranks.count()]
        loss, weight = 0.0, 0.0
        for number in range(-(-len(batches) // ranks.count())):
            batch, counts = (mine[number], 1.0) if number < len(mine) else (batches[0], 0.0)
            inputs = self._prepare_inputs(self.collate(list(batch)))
            with self.compute_loss_context_manager():
                found = float(self.compute_loss(self.model, inputs).item())
            of = counts * sum(map(_weight, batch))
            loss, weight = loss + found * of, weight + of
        return loss, weight


def _weight(row: dict[str, Any]) -> int:
    """How much of the loss a row is: the tokens that are trained, or itself."""
    return sum(label != IGNORED for label in row["labels"][1:]) if "labels" in row else 1
