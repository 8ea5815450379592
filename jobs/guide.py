"""The training of one stage with all that watches it: stop, evaluations, best weights, steps that fit, checkpoints.

This module imports transformers, so the trainer imports it when it has begun to work, and nobody else does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import ranks
from jobs.best import Best
from jobs.callbacks import CheckpointInTime, Diverged, StepReport, StopAtStep
from jobs.checkpoints import Checkpoint
from jobs.course import Course
from jobs.evaluating import Plan
from jobs.memory import PIECES_FILE
from jobs.outcome import StageOutcome
from jobs.runlog import say
from jobs.steering import Evaluations, FitToTime

# Seconds that a look at what a stopped run has learned may take; the machine is about to end.
LAST_LOOK = 20.0


@dataclass
class Guide:
    """The callbacks of a stage, in the order in which they are asked."""

    course: Course
    best: Best
    plan: Plan
    stopper: StopAtStep
    report: StepReport
    fit: FitToTime
    evaluations: Evaluations
    saving: CheckpointInTime

    @property
    def callbacks(self) -> list[Any]:
        return [self.stopper, self.fit, self.evaluations, self.saving, self.report]

    def train(self, trainer: Any, resume: Checkpoint | None, done: int, result: StageOutcome) -> None:
        """Train from step ``done`` on, to the end or to a stop; what that was is in ``result``.

        The model then holds the best weights.
        """
        last, step = self.fit.schedule.last, done
        if not self.evaluations.over and done < last:
            say(f"stage {result.name}: training {last - done} steps on {trainer.args.device}")
            trainer.args.eval_on_start = self.evaluations.missing(done, last)
            try:
                # A checkpoint at a stage's very start has weights, which are in place, and no trainer's state.
                trainer.train(resume_from_checkpoint=str(resume.path) if resume and done else None)
                if self.stopper.stopped and self._worth_a_look(trainer):
                    trainer.evaluate()
            except Diverged as exc:
                result.diverged = str(exc)
            step = int(trainer.state.global_step)
        self._tell(result, step)

    def _worth_a_look(self, trainer: Any) -> bool:
        """Whether the steps since the last evaluation may have brought something, and finding out is quick."""
        step = int(trainer.state.global_step)
        known = any(e.step == step for e in self.course.evaluations)
        rows = self.plan.rows and not self.plan.trained_on
        if not rows or step == 0 or known:
            return False
        # Each rank has measured by itself: one that evaluates alone would wait for the others for ever.
        return not ranks.agree([self.fit.evaluation_seconds > LAST_LOOK])[0]

    def _tell(self, result: StageOutcome, step: int) -> None:
        course, schedule = self.course, self.fit.schedule
        result.steps_done = step
        result.steps_planned = step if self.evaluations.over else schedule.last
        result.shortened_from = schedule.planned if schedule.cuts else None
        result.notes = list(course.notes)
        result.train_loss = self.report.mean_loss(self.report.steps_before)
        best = course.best
        if best is not None:
            result.best_step, result.validation_loss = best.step, best.loss
            result.validation_began = course.began.loss if course.began else None
            if best.step != step or result.diverged:
                say(f"stage {result.name}: the weights are those of step {best.step}, validation loss {best.loss:.4f}")
                self.best.put_back()


def course_of(resume: Checkpoint | None, work: Path) -> Course:
    """What is known of the stage that a checkpoint stands in."""
    course = Course.read(resume.path) if resume else Course()
    pieces = work / PIECES_FILE
    if pieces.is_file() and (found := int(pieces.read_text())) > course.pieces:
        course.pieces = found
        course.notes.append(f"memory ran out on one of the GPUs: a micro-batch is computed in {found} pieces")
    return course
