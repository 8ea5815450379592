"""Too little memory halves the rows that are computed at once, and the training goes on where it was.

A micro-batch is then computed in pieces whose gradients add up to the same: the rows of a step, their order, the
schedule and what a checkpoint means stay as they are. The step in which the memory ran out is done again from its
beginning, with the random numbers that it began with, so nothing of it is lost or counted twice. How many pieces it is
stands in the stage's course, so that another machine does not run into it again.

With several ranks the others wait in a collective while one has no memory: there the number is written down, all of
them end, and the supervisor starts them again from the last checkpoint.

This module imports transformers, so only ``jobs.trainers`` does so, when the trainer has begun to work.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from transformers import Trainer

from jobs import ranks
from jobs.course import Course
from jobs.outcome import LESS_MEMORY, OutOfMemory
from jobs.randomness import Randomness
from jobs.runlog import say

KEY = "cloudft_rows"
# In the work folder: what ranks that had too little memory leave for the ones that are started after them.
PIECES_FILE = "pieces"
# What the libraries say beside ``torch.OutOfMemoryError`` and what accelerate knows of.
ALSO = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


class Rows:
    """The rows of a batch as the dataset has them. Opaque: a list would be walked through, token by token."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self.rows = list(rows)


class KeepsRows:
    """A collator that leaves the rows in the batch that it makes of them."""

    def __init__(self, collate: Callable[[Any], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {**self.collate(rows), KEY: Rows(rows)}


def out_of_memory(exc: RuntimeError) -> str:
    """The error's first line, if a GPU's or this machine's memory is full, by whatever name that comes; else raises."""
    known = isinstance(exc, torch.OutOfMemoryError) or should_reduce_batch_size(exc)
    if not known and not any(words in str(exc) for words in ALSO):
        raise exc
    return str(exc).strip().splitlines()[0][:300]


def free() -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def in_pieces(rows: Sequence[Any], pieces: int) -> list[list[Any]]:
    """The rows in order, in so many parts of equal size (the last may be smaller); no more parts than rows."""
    size = -(-len(rows) // pieces)
    return [list(rows[at : at + size]) for at in range(0, len(rows), size)]


def by_length(batches: Sequence[Sequence[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    """The rows of a step in as many batches of the same size, the longest together: so there is less padding.

    The longest come first, where too little memory costs the least.
    """

    def tokens(row: dict[str, Any]) -> int:
        return sum(len(column) for column in row.values() if isinstance(column, Sequence))

    rows = sorted((row for batch in batches for row in batch), key=tokens, reverse=True)
    size = len(batches[0])
    return [rows[at : at + size] for at in range(0, len(rows), size)]


class FitsMemory(Trainer):  # type: ignore[misc]  # the library has no types
    """Computes each micro-batch in ``course.pieces`` parts, and makes them smaller when memory runs out.

    ``work``: the work folder.
    """

    course: Course
    work: Path
    # the library's
    data_collator: Any
    current_gradient_accumulation_steps: Any

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.collate = self.data_collator
        self.data_collator = KeepsRows(self.collate)
        self._begun: _Step | None = None

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        self._begun = None  # the batches of a new step
        batches, items = super().get_batch_samples(*args, **kwargs)
        rows = [batch[KEY].rows for batch in batches]
        if len(batches) > 1 and len({len(each) for each in rows}) == 1:
            # They are computed apart and added up: which of them lie together is free.
            batches = [self.data_collator(each) for each in by_length(rows)]
        return batches, items

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
        rows: list[Any] = inputs.pop(KEY).rows
        if self._begun is None:
            self._begun = _Step(Randomness.now(), self._total_train_tokens)
        step, problem, loss = self._begun, "", None
        try:
            loss = self._computed(model, rows, num_items_in_batch, inputs)
        except RuntimeError as exc:
            problem = out_of_memory(exc)
        # Behind the except: what held the activations is gone with the exception.
        while problem:
            self._smaller(rows, problem, step, model)
            problem = ""
            try:
                for earlier in step.done:
                    self._computed(model, earlier, num_items_in_batch)
                loss = self._computed(model, rows, num_items_in_batch)
            except RuntimeError as exc:
                problem = out_of_memory(exc)
        step.done.append(rows)
        return loss

    def _computed(self, model: Any, rows: list[Any], items: Any, inputs: dict[str, Any] | None = None) -> Any:
        """Forward and backward of a micro-batch; its loss."""
        parts = in_pieces(rows, self.course.pieces)
        if len(parts) == 1:
            return super().training_step(model, self.collate(rows) if inputs is None else inputs, items)
        of_all, loss = self.current_gradient_accumulation_steps, 0.0
        try:
            for number, part in enumerate(parts, 1):
                # A loss that is a mean over its rows counts for as much as it has rows of all.
                self.current_gradient_accumulation_steps = of_all * len(rows) / len(part)
                with contextlib.nullcontext() if number == len(parts) else self.accelerator.no_sync(model):
                    loss = loss + super().training_step(model, self.collate(part), items)
        finally:
            self.current_gradient_accumulation_steps = of_all
        return loss

    def _smaller(self, rows: Sequence[Any], problem: str, step: _Step, model: Any) -> None:
        """Halve what is computed at once, and go back to where the step began."""
        was = len(in_pieces(rows, self.course.pieces)[0])
        if was == 1:
            raise OutOfMemory(f"one row at a time is too much for this machine's memory: {LESS_MEMORY} ({problem})")
        model.zero_grad()
        free()
        self.course.pieces *= 2
        now = len(in_pieces(rows, self.course.pieces)[0])
        note = f"memory ran out in step {self.state.global_step + 1}: {now} rows at once instead of {was}"
        if ranks.count() > 1:
            (self.work / PIECES_FILE).write_text(str(self.course.pieces))
            raise OutOfMemory(note, again=True)
        self.course.notes.append(note)
        say(f"{note}; {problem}")
        self._total_train_tokens = step.tokens
        step.randomness.restore()


class _Step:
    """What an optimiser step began with, and the micro-batches of it that are done."""

    def __init__(self, randomness: Randomness, tokens: int) -> None:
        self.randomness, self.tokens = randomness, tokens
        self.done: list[list[Any]] = []
