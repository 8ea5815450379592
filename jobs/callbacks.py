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

LOG_EVERY_S = 5.0  # the log is for people; metrics.jsonl has every step
# However slow the disk, saving takes at most this share of the time.
SAVING_SHARE = 0.05


class Diverged(RuntimeError):
    """The loss is no longer a number; what was learned is lost."""


class StepReport(TrainerCallback):  # type: ignore[misc]  # the library has no types
    """Writes one line of ``metrics.jsonl`` per step, and a line of the log every few seconds.

    A line: ``step``, ``max_steps``, ``loss``, ``learning_rate``, ``tokens`` (seen so far, prompts included,
    padding not), ``elapsed_s`` and ``eta_s`` (seconds of training behind and ahead), ``epoch``.
    Lines that are there already are those of an earlier machine: what it counted is counted on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
        self._losses = [float(line["loss"]) for line in lines]
        self._tokens_before = int(lines[-1]["tokens"]) if lines else 0
        self._elapsed_before = float(lines[-1]["elapsed_s"]) if lines else 0.0
        self._first = len(lines) + 1
        self.tokens = self._tokens_before
        self._began = self._said = time.monotonic()

    @property
    def mean_loss(self) -> float | None:
        """Over all steps, those of earlier machines included."""
        return math.fsum(self._losses) / len(self._losses) if self._losses else None

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
        if not math.isfinite(logs["loss"]):
            raise Diverged(f"the loss became {logs['loss']} at step {state.global_step}")
        elapsed = self._elapsed_before + time.monotonic() - self._began
        if "num_tokens" in logs:  # since this process began
            self.tokens = self._tokens_before + int(logs["num_tokens"])
        self._losses.append(logs["loss"])
        line = {
            "step": state.global_step,
            "max_steps": state.max_steps,
            "loss": logs["loss"],
            "learning_rate": logs["learning_rate"],
            "tokens": self.tokens,
            "elapsed_s": round(elapsed, 3),
            "eta_s": round(elapsed / state.global_step * (state.max_steps - state.global_step), 1),
            "epoch": round(logs.get("epoch", 0.0), 4),
        }
        with self.path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(line) + "\n")
        self._say(line)

    def _say(self, line: dict[str, Any]) -> None:
        now = time.monotonic()
        if line["step"] not in (self._first, line["max_steps"]) and now - self._said < LOG_EVERY_S:
            return
        self._said = now
        minutes, seconds = divmod(round(line["eta_s"]), 60)
        rate = line["tokens"] / max(line["elapsed_s"], 1e-3)
        print(
            f"step {line['step']:>{len(str(line['max_steps']))}}/{line['max_steps']}"
            f"  loss {line['loss']:.4f}  lr {line['learning_rate']:.2e}"
            f"  {rate:,.0f} tokens/s  left {minutes}:{seconds:02d}",
            flush=True,
        )


class StopAtStep(TrainerCallback):  # type: ignore[misc]
    """Ends training after the running step once it is asked to, so that what was learned can be saved."""

    def __init__(self, asked: Callable[[], bool]) -> None:
        self.asked = asked

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.asked():
            control.should_training_stop = True


class CheckpointInTime(TrainerCallback):  # type: ignore[misc]
    """Asks for a checkpoint ``first`` seconds after training began, then each ``every`` seconds, and at a stop.

    Time, not steps, says what a lost machine costs. None after the last step: the adapter itself comes next.
    """

    def __init__(self, first: float, every: float, asked: Callable[[], bool]) -> None:
        self.first, self.every, self.asked = first, every, asked
        self._due = math.inf
        self._saving_since = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._due = time.monotonic() + self.first

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        now = time.monotonic()
        if state.global_step < state.max_steps and (now >= self._due or self.asked()):
            self._saving_since = now
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        now = time.monotonic()
        self._due = now + max(self.every, (now - self._saving_since) / SAVING_SHARE)
