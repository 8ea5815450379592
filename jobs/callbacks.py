"""What happens at every step: the metrics' line, the log's line, the checkpoints and the soft stop.

This module imports transformers, so the trainer imports it when it has begun to work, and nobody else does.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from jobs import ranks
from jobs.course import Course
from jobs.divergence import LossWatch
from jobs.outcome import Outcome
from jobs.runlog import say

LOG_EVERY_S = 5.0  # the log is for people; metrics.jsonl has every step
# However slow the disk, saving takes at most this share of the time.
SAVING_SHARE = 0.05


class Diverged(Exception):
    """The loss is no number any more, or has risen for good; what was learned since the best step is lost."""


class StepReport(TrainerCallback):  # type: ignore[misc]  # the library has no types
    """Writes one line of ``metrics.jsonl`` per step, and a line of the log every few seconds.

    A line: ``stage`` (its name), ``step`` and ``max_steps`` (of the whole run), ``loss``, ``learning_rate``, ``tokens``
    (seen so far, prompts included, padding not), ``elapsed_s`` and ``eta_s`` (seconds of training behind and ahead),
    ``epoch`` (of the stage); where steps were cut, ``shortened_from`` (what ``max_steps`` was), and where memory was
    short, ``pieces`` (that a micro-batch is computed in). Lines that are there already are those of earlier stages and
    machines: what they counted is counted on.

    Args:
        steps_before: of the stages before this one.
        planned: steps of the whole run.
    """

    def __init__(self, path: Path, stage: str, steps_before: int, planned: int, course: Course) -> None:
        self.path, self.stage, self.steps_before, self.planned = path, stage, steps_before, planned
        self.course, self.shortened_from = course, 0
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        lines = [line for line in map(json.loads, text.splitlines()) if "loss" in line]
        self._losses = {int(line["step"]): float(line["loss"]) for line in lines}
        self._watch = LossWatch()
        for step, loss in self._losses.items():
            if step > steps_before:
                self._watch.add(loss)
        self._tokens_before = int(lines[-1]["tokens"]) if lines else 0
        self._elapsed_before = float(lines[-1]["elapsed_s"]) if lines else 0.0
        self._said_one = False
        self.tokens = self._tokens_before
        self._began = self._said = time.monotonic()

    @property
    def learns(self) -> bool:
        """Whether the stage's loss is below the one at its beginning; yes, as long as nobody can tell."""
        return self._watch.learns

    def mean_loss(self, beyond: int = 0) -> float | None:
        """Over all steps beyond that one, those of earlier machines included; None for no step."""
        losses = [loss for step, loss in self._losses.items() if step > beyond]
        return round(math.fsum(losses) / len(losses), 6) if losses else None

    def shortened(self, before: int, after: int) -> None:
        """The stage has ``after`` steps instead of the ``before`` that it was planned with."""
        whole = self.shortened_from or self.planned
        self.shortened_from, self.planned = whole, whole - (before - after)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._began = time.monotonic()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if not logs or "loss" not in logs:  # the summary after the last step
            return
        if wrong := self._watch.add(logs["loss"]):
            raise Diverged(f"{wrong}, at step {state.global_step}")
        elapsed = self._elapsed_before + time.monotonic() - self._began
        if "num_tokens" in logs:  # since this process began
            self.tokens = self._tokens_before + int(logs["num_tokens"])
        step = self.steps_before + state.global_step
        self._losses[step] = logs["loss"]
        line = {
            "stage": self.stage,
            "step": step,
            "max_steps": self.planned,
            "loss": logs["loss"],
            "learning_rate": logs["learning_rate"],
            "tokens": self.tokens,
            "elapsed_s": round(elapsed, 3),
            "eta_s": round(elapsed / step * (self.planned - step), 1),
            "epoch": round(logs.get("epoch", 0.0), 4),
        }
        if self.shortened_from:
            line["shortened_from"] = self.shortened_from
        if self.course.pieces > 1:
            line["pieces"] = self.course.pieces
        if ranks.first():
            with self.path.open("a", encoding="utf-8") as out:
                out.write(json.dumps(line) + "\n")
        self._say(line)

    def _say(self, line: dict[str, Any]) -> None:
        now = time.monotonic()
        if self._said_one and line["step"] != line["max_steps"] and now - self._said < LOG_EVERY_S:
            return
        self._said, self._said_one = now, True
        minutes, seconds = divmod(round(line["eta_s"]), 60)
        rate = line["tokens"] / max(line["elapsed_s"], 1e-3)
        say(
            f"step {line['step']:>{len(str(line['max_steps']))}}/{line['max_steps']}"
            f"  loss {line['loss']:.4f}  lr {line['learning_rate']:.2e}"
            f"  {rate:,.0f} tokens/s  left {minutes}:{seconds:02d}"
        )


class StepTimes(TrainerCallback):  # type: ignore[misc]
    """When this process's first step began and its last one ended."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.outcome.step_begins()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.outcome.step_ends()


class StopAtStep(TrainerCallback):  # type: ignore[misc]
    """Ends training after the running step once it is asked to, so that what was learned can be saved.

    ``agreed`` says whether the run is to stop, the same on all ranks. It is asked first: others look at ``stopped``.
    """

    def __init__(self, agreed: Callable[[], bool]) -> None:
        self.agreed = agreed
        self.stopped = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.agreed():
            self.stopped = control.should_training_stop = True


class CheckpointInTime(TrainerCallback):  # type: ignore[misc]
    """Asks for a checkpoint ``first`` seconds after training began, then each ``every`` seconds, and at a stop.

    Time, not steps, says what a lost machine costs. None after the last step: the adapter itself comes next.
    """

    def __init__(self, first: float, every: float, stopper: StopAtStep) -> None:
        self.first, self.every, self.stopper = first, every, stopper
        self._due = math.inf
        self._saving_since = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._due = time.monotonic() + self.first

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        now = time.monotonic()
        due = ranks.agree([now >= self._due])[0] or self.stopper.stopped
        if state.global_step < state.max_steps and due:
            self._saving_since = now
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        now = time.monotonic()
        self._due = now + max(self.every, (now - self._saving_since) / SAVING_SHARE)
