"""What every kind of task has in common: rows in, scores out. Nothing here asks a model or reads a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from local.evaluation.document.measurement import Metric
from local.evaluation.document.outputs import prompt_sha256
from local.evaluation.endpoint import Fim, Question, Reply

FAILED_REQUEST = "the request failed"
Count = tuple[int, int, int]
"""How often something was expected, answered, and both alike."""


@dataclass(frozen=True)
class Row:
    """One hold-out row. ``number``: its line, from 1; ``prompt``: the messages to send; ``text``: the expected answer
    as it stands there; ``expected``: the same, parsed as the task has it."""

    number: int
    prompt: tuple[dict[str, Any], ...]
    text: str
    expected: Any
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def prompt_sha256(self) -> str:
        return prompt_sha256(self.prompt, self.tools)


@dataclass(frozen=True)
class Scored:
    """How one answer did.

    ``score``: its part of each metric that is a mean over rows; one that does not apply to the row is left out.
    ``pooled``: what it adds to the sums of each metric that is not. ``tallies``: by kind and name. ``pairs``: expected
    and answered label of each confusion matrix. ``problem``: why it is not right.
    """

    score: Mapping[str, float]
    problem: str = ""
    pooled: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    tallies: Mapping[str, Mapping[str, Count]] = field(default_factory=dict)
    pairs: Mapping[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class MetricDef:
    """``value``: from sums over rows of shape (…, k) to the metric of shape (…); None: the mean of rows' scores."""

    about: Metric
    value: Callable[[Any], Any] | None = None


def share(definition: str) -> MetricDef:
    return MetricDef(Metric(unit="share", definition=definition))


def ratio(definition: str, value: Callable[[Any], Any] | None = None) -> MetricDef:
    return MetricDef(Metric(unit="ratio", definition=definition), value)


class Scorer(Protocol):
    """One kind of task.

    ``metrics``: in the order in which to show them; ``primary``: the one that decides unless the user says otherwise;
    ``tables`` and ``matrices``: the names, in order, of each kind of tally and of each confusion matrix.
    """

    @property
    def metrics(self) -> Mapping[str, MetricDef]: ...

    @property
    def primary(self) -> str: ...

    @property
    def tables(self) -> Mapping[str, tuple[str, ...]]: ...

    @property
    def matrices(self) -> Mapping[str, tuple[str, ...]]: ...

    def expect(self, text: str) -> Any:
        """The expected answer, parsed. Raises ``ValueError`` that says why it does not keep to the task."""

    def question(self, row: Row, fim: Fim | None) -> Question:
        """What a model is asked. ``fim``: its tokens for fill-in-the-middle."""

    def score(self, reply: Reply | None, row: Row) -> Scored:
        """Score one answer; None stands for a request that failed, and fails on everything."""


def micro_f1(sums: Any) -> Any:
    """F1 over all names together, from sums of (expected, answered, correct)."""
    import numpy as np

    expected, answered, correct = sums[..., 0], sums[..., 1], sums[..., 2]
    both = expected + answered
    return np.where(both > 0, 2 * correct / np.where(both > 0, both, 1), np.nan)


def macro_f1(sums: Any) -> Any:
    """The mean F1 of names, from sums of (expected, answered, correct) of each, one after the other.

    A name that is neither expected nor answered in these rows has none, and is left out.
    """
    import numpy as np

    counts = sums.reshape(*sums.shape[:-1], -1, 3)
    both = counts[..., 0] + counts[..., 1]
    there = both > 0
    f1 = np.where(there, 2 * counts[..., 2] / np.where(there, both, 1), 0)
    names = there.sum(axis=-1)
    return np.where(names > 0, f1.sum(axis=-1) / np.where(names > 0, names, 1), np.nan)
