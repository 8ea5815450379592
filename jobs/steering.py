"""What decides how a stage goes on: evaluations, the best so far, an early end, and steps that fit the time.

This module imports transformers, so the trainer imports it when it has begun to work, and nobody else does.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from jobs import ranks
from jobs.best import Best
from jobs.callbacks import Diverged, StepReport
from jobs.course import Course, Evaluation, at_start
from jobs.divergence import evaluated, stuck
from jobs.evaluating import Plan
from jobs.fitting import EVERY, Schedule, StepClock, fitted
from jobs.runlog import say


@dataclass(frozen=True)
class Place:
    """Where a stage stands in its run: its name, and the steps of the stages before it."""

    stage: str
    steps_before: int


class Evaluations(TrainerCallback):  # type: ignore[misc]  # the library has no types
    """Asks for an evaluation when one is due, keeps the best weights, and ends a stage that gets no better.

    A line of ``metrics.jsonl`` for each: ``stage``, ``step``, ``eval_loss``, ``best_step``, ``best_loss``.

    Args:
        patience: so many evaluations in a row without a better one end the stage; 0: none does.
        stopping: whether the run was asked to stop: then the checkpoint comes first.
        learns: whether the loss of the steps has fallen since the beginning.
    """

    def __init__(
        self,
        plan: Plan,
        course: Course,
        best: Best,
        patience: int,
        place: Place,
        metrics: Path,
        stopping: Callable[[], bool],
        learns: Callable[[], bool],
    ) -> None:
        self.plan, self.course, self.best, self.patience = plan, course, best, patience
        self.place, self.metrics, self.stopping, self.learns = place, metrics, stopping, learns
        self.seen = course.watched if plan.trained_on else course.evaluations

    @property
    def over(self) -> bool:
        """Whether the stage is to end, for it gets no better."""
        return 0 < self.patience <= self.course.stale()

    def missing(self, step: int, last: int) -> bool:
        """Whether an evaluation that was due after that step was not made: the machine was lost, or stopped."""
        return self.plan.due(step, last) and not any(e.step == step for e in self.seen)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.plan.due(state.global_step, state.max_steps) and not self.stopping():
            control.should_evaluate = True

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: dict[str, float], **_: Any
    ) -> None:
        step, loss = int(state.global_step), metrics["eval_loss"]
        if wrong := self._wrong(loss, args.get_warmup_steps(state.max_steps)):
            raise Diverged(f"{wrong}, at step {step}")
        self.seen.append(Evaluation(step, loss))
        if self.plan.trained_on:
            say(f"{_when(step)}: {loss:.4f} is the loss of {len(self.plan.rows)} rows that are trained on")
            return
        best = self.course.best
        if best is not None and best.step == step:
            self.best.take({"stage": self.place.stage, "step": self.place.steps_before + step, "eval_loss": loss})
        self._report(step, loss, best)
        if self.over and step < state.max_steps:
            assert best is not None
            control.should_training_stop = True
            note = (
                f"stopped early after step {step} of {state.max_steps}: {self.patience} "
                f"evaluation{'s' * (self.patience != 1)} without a lower loss than that of step {best.step}"
            )
            self.course.notes.append(note)
            say(note)

    def _wrong(self, loss: float, warmup: int) -> str:
        """Why the training is to stop: this loss, or what the last ones say together."""
        what = f"the loss of {len(self.plan.rows)} training rows" if self.plan.trained_on else "the validation loss"
        first = at_start(self.seen)
        began = first.loss if first else None
        since = [*(e.loss for e in self.seen if e.step > warmup), loss]
        return evaluated(loss, began, what) or ("" if self.learns() else stuck(since, began, what))

    def _report(self, step: int, loss: float, best: Evaluation | None) -> None:
        lowest = f"; the lowest is {best.loss:.4f}, of step {best.step}" if best and best.step != step else ""
        say(f"{_when(step)}: validation loss {loss:.4f}{lowest}")
        line = {"stage": self.place.stage, "step": self.place.steps_before + step, "eval_loss": loss}
        if best is not None:
            line |= {"best_step": self.place.steps_before + best.step, "best_loss": best.loss}
        if ranks.first():
            with self.metrics.open("a", encoding="utf-8") as out:
                out.write(json.dumps(line) + "\n")


def _when(step: int) -> str:
    return "before the first step" if step == 0 else f"after step {step}"


class FitToTime(TrainerCallback):  # type: ignore[misc]
    """Cuts the steps that are left, schedule and all, when they would not fit into the time: ``jobs.fitting``.

    Args:
        until: epoch second by which the training must have ended; None: whenever it does.
        planned: steps of the stage.
        later: work of the stages after this one, in steps of this one.
        every: steps between two evaluations, 0 for none.
    """

    def __init__(
        self, until: float | None, planned: int, course: Course, later: float, every: int, report: StepReport
    ) -> None:
        self.until, self.course, self.later, self.every, self.report = until, course, later, every, report
        self.schedule = Schedule.from_list(planned, course.cuts)
        self.clock = StepClock()
        self.evaluation_seconds = 0.0
        self._bent = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, lr_scheduler: Any = None, **_: Any
    ) -> None:
        if self.schedule.cuts:
            self._follow(state, lr_scheduler)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: dict[str, float], **_: Any
    ) -> None:
        self.evaluation_seconds = metrics["eval_runtime"]
        self.clock.beside(self.evaluation_seconds)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, lr_scheduler: Any = None, **_: Any
    ) -> None:
        self.clock.step(time.monotonic())
        seconds, step = self.clock.seconds, int(state.global_step)
        if self.until is None or seconds is None or step % EVERY:
            return
        per_step = seconds + (self.evaluation_seconds / self.every if self.every else 0.0)
        wanted = fitted(self.schedule, step, per_step, self.until - time.time() - self.evaluation_seconds, self.later)
        # The ranks' clocks differ: the shortest that any of them wants is what all do.
        last = self.schedule.planned - ranks.agree([self.schedule.planned - wanted.last])[0]
        if last >= self.schedule.last:
            return
        before = self.schedule.last
        self.schedule = self.schedule.cut(step, last)
        self.course.cuts = self.schedule.as_list()
        note = f"shortened from {before} to {last} steps to fit the budget: a step takes {per_step:.3g} s"
        self.course.notes.append(note)
        say(note)
        self._follow(state, lr_scheduler)

    def _follow(self, state: TrainerState, lr_scheduler: Any) -> None:
        """End with the schedule's last step, and let the learning rate follow it."""
        state.max_steps = self.schedule.last
        self.report.shortened(self.schedule.planned, self.schedule.last)
        if self._bent:
            return
        self._bent = True
        # Functions, which the scheduler does not try to save, unlike objects.
        lr_scheduler.lr_lambdas = [self._bend(each) for each in lr_scheduler.lr_lambdas]

    def _bend(self, rate: Callable[[float], float]) -> Callable[[int], float]:
        def bent(step: int) -> float:
            return rate(self.schedule.position(step))

        return bent
