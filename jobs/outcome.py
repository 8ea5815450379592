"""How a training ended, as ``trainer.json`` says it, and what its errors mean."""

from __future__ import annotations

import contextlib
import errno
import json
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from jobs import ranks
from jobs.rendering import RenderError

LESS_MEMORY = (
    "lower train.max_length, set train.method to qlora or train.activation_checkpointing to true, or take a GPU with "
    "more memory"
)
LESS_RATE = "lower train.learning_rate, or look for odd rows in the data"


class TrainError(Exception):
    """The run cannot go on; the message says what is wrong, and what to change."""


class OutOfMemory(TrainError):
    """Too little memory; ``again``: what was tried is written down, and the next try does with less."""

    def __init__(self, what: str, again: bool = False) -> None:
        super().__init__(what)
        self.again = again


class StoppedEarly(Exception):
    """Asked to stop before the first step."""


@dataclass
class StageOutcome:
    """How one stage went. ``name``: number and kind, such as ``2-dpo``; ``train_loss`` over all of its steps.

    ``before`` and ``after``: what the gate measured (``jobs.gate``), None where it did not. ``kept``: whether the run
    went on with what this stage made of the model; ``note`` says why not, or why nothing was measured.

    ``best_step``: the step of the stage whose weights the run went on with, by ``validation_loss``, which was
    ``validation_began`` before the first step; None where nothing was evaluated: then it is the last step.
    ``shortened_from``: the steps it had before they were fitted to the time. ``diverged``: why it was broken off as
    hopeless. ``notes``: what else a person should know of it.
    """

    name: str
    kind: str
    method: str
    steps_planned: int
    steps_done: int = 0
    train_loss: float | None = None
    seconds: float = 0.0
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    kept: bool = True
    note: str = ""
    best_step: int | None = None
    validation_loss: float | None = None
    validation_began: float | None = None
    shortened_from: int | None = None
    diverged: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether the stage came to its end, so that the next one may begin."""
        return self.steps_done >= self.steps_planned and not self.diverged


@dataclass
class Outcome:
    """What ``trainer.json`` says. ``trained_tokens`` are those seen by the model, prompts included.

    ``phases``: seconds since the inputs were here, each of them in one phase at most. What was imported while they came
    is in none. ``load`` goes on to the first step that this process trains; ``first_step_at`` and ``last_step_at`` are
    the epoch seconds at which its steps began and ended, None for no step.

    Steps, tokens and loss are those of the whole run; ``resumed_from`` is the step that this process began at,
    ``adapter_step`` the one that the adapter is from. ``cause`` of an end that is not as usual: *diverged* means that
    no machine should try again, *memory* that the same machine should, with what is written down; *peer* that another
    rank ended, which knows why. ``versions``: Python and the libraries that decide about the numbers.
    """

    status: Literal["completed", "stopped", "failed"] = "failed"
    reason: str = ""
    steps_done: int = 0
    steps_planned: int = 0
    resumed_from: int = 0
    train_loss: float | None = None
    phases: dict[str, float] = field(default_factory=dict)
    first_step_at: float | None = None
    last_step_at: float | None = None
    trained_tokens: int = 0
    adapter_sha256: str | None = None
    adapter_step: int | None = None
    cause: Literal["", "diverged", "memory", "peer"] = ""
    stages: list[StageOutcome] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._phase_began = time.monotonic()
        # Whether what the last stage made was saved before it was measured; none of anybody's business but the saving.
        self.candidate = False

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time inside to the phase: a stage after the first trains again. No phase is inside of another."""
        self._phase_began = time.monotonic()
        try:
            yield
        finally:
            self.add(name, time.monotonic() - self._phase_began)

    def add(self, name: str, seconds: float) -> None:
        """Add to a phase what was measured otherwise."""
        self.phases[name] = round(self.phases.get(name, 0.0) + max(seconds, 0.0), 3)

    def step_begins(self) -> None:
        """The first one of this process: until then its training was still being prepared."""
        if self.first_step_at is None:
            self.first_step_at, now = time.time(), time.monotonic()
            self.add("load", now - self._phase_began)
            self._phase_began = now

    def step_ends(self) -> None:
        self.last_step_at = time.time()

    def write(self, path: Path) -> None:
        part = path.with_name(f".{path.name}.part")
        part.write_text(json.dumps(asdict(self), indent=2, sort_keys=False) + "\n", encoding="utf-8")
        part.replace(path)


def cause(exc: Exception) -> Literal["", "memory", "peer"]:
    """What of an error decides about another try."""
    if isinstance(exc, OutOfMemory) and exc.again:
        return "memory"
    return "peer" if ranks.lost(exc) else ""


def explain(exc: Exception) -> str:
    """The error in a sentence; the traceback goes to the log unless the sentence says it all."""
    if isinstance(exc, TrainError | RenderError):
        return str(exc)
    traceback.print_exc()
    kind = type(exc).__name__
    if kind == "OutOfMemoryError":
        return f"the GPU's memory is full: {LESS_MEMORY} ({exc})"
    if isinstance(exc, OSError) and exc.errno == errno.ENOSPC:
        return f"the machine's disk is full: {exc}"
    return f"{kind}: {exc}"
