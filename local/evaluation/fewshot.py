"""The base with a few examples in its prompt: what could be had without any training."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cloudft.errors import DataError, IntegrityError
from local.evaluation.document.ladder import FewShot
from local.evaluation.tasks.base import Row
from local.project import RunFolder


@dataclass(frozen=True)
class Examples:
    """Rows of the training data, in the order in which they are shown; ``lines``: theirs in ``train.jsonl``, from 1."""

    conversations: tuple[tuple[dict[str, Any], ...], ...]
    lines: tuple[int, ...]
    wanted: int
    seed: int
    train_sha256: str

    def first(self, count: int) -> Examples:
        return replace(self, conversations=self.conversations[:count], lines=self.lines[:count])

    def about(self) -> FewShot:
        return FewShot(
            k=len(self.lines), wanted=self.wanted, seed=self.seed, rows=self.lines, train_sha256=self.train_sha256
        )

    def before(self, row: Row) -> Row:
        """The row with the examples between its system message and its question."""
        system = [message for message in row.prompt[:1] if message.get("role") == "system"]
        shown = [message for conversation in self.conversations for message in conversation]
        return replace(row, prompt=(*system, *shown, *row.prompt[len(system) :]))


def draw_examples(run: RunFolder, sha256: str, count: int, seed: int) -> Examples:
    """Draw examples from the run's own training rows, which share none with its hold-out.

    Args:
        sha256: of the training rows, as the spec has it.

    Raises:
        IntegrityError: the file is not the one that was trained on.
        DataError: it holds fewer conversations with an answer than are wanted.
    """
    try:
        raw = run.train_data.read_bytes()
    except OSError as exc:
        raise IntegrityError(f"{run.train_data} cannot be read: {exc.strerror}") from exc
    if hashlib.sha256(raw).hexdigest() != sha256:
        raise IntegrityError(f"{run.train_data} was changed after submit: it may hold rows of the hold-out now")
    found = [(number, shown) for number, line in enumerate(raw.split(b"\n"), start=1) if (shown := _conversation(line))]
    if len(found) < count:
        raise DataError(f"{run.train_data} has only {len(found)} conversations to show as examples")
    drawn = random.Random(seed).sample(found, count)  # noqa: S311
    return Examples(tuple(shown for _, shown in drawn), tuple(n for n, _ in drawn), count, seed, sha256)


def _conversation(line: bytes) -> tuple[dict[str, Any], ...]:
    """A row's messages without its system message, which the question brings; empty if it has no answer."""
    try:
        messages: Sequence[Any] = json.loads(line)["messages"]
        shown = tuple(dict(message) for message in messages if message["role"] != "system")
        return shown if len(shown) > 1 and shown[-1]["role"] == "assistant" and shown[-1]["content"] else ()
    except (ValueError, KeyError, TypeError):
        return ()
