"""One stage of a run: measured, trained, measured again, kept or taken back. It reads top to bottom."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import checkpoints, ranks
from jobs.best import Best
from jobs.checkpoints import Checkpoint
from jobs.course import Course
from jobs.delivery import CANDIDATE
from jobs.evaluating import Plan, mean_tokens, plan
from jobs.gate import Broken, Measured, Meter, said, worse
from jobs.hardware import Machine, choose_checkpointing
from jobs.model import Tuned
from jobs.outcome import Outcome, StageOutcome, TrainError
from jobs.progress import START, Progress, stage_name
from jobs.runlog import log, say
from jobs.saving import keep_rejected, save_result, withdraw, write_result
from jobs.spec import RunSpec, Stage
from jobs.stage_data import StageData
from jobs.tracking import tracking_callbacks
from jobs.trl_configs import MAX_GRAD_NORM, trl_config

if TYPE_CHECKING:
    from jobs.guide import Guide
    from jobs.trainers import Keeping


@dataclass(frozen=True)
class Pace:
    """Seconds of training until the first checkpoint, and between one and the next."""

    first: float
    every: float


@dataclass(frozen=True)
class Run:
    """What all stages of a run share.

    ``asked`` says whether this process was told to stop, ``agreed`` whether any rank was. ``until``: epoch second by
    which the training is to have ended; None: whenever it does.
    """

    spec: RunSpec
    work: Path
    pace: Pace
    asked: Callable[[], bool]
    agreed: Callable[[], bool]
    until: float | None = None

    @property
    def inputs(self) -> Path:
        return self.work / "inputs"

    @property
    def metrics(self) -> Path:
        return self.work / "out" / checkpoints.METRICS

    @property
    def checkpoints(self) -> Path:
        return self.work / checkpoints.FOLDER

    @property
    def best(self) -> Path:
        """The best weights of the stage so far."""
        return self.work / checkpoints.BEST

    @property
    def rejected(self) -> Path:
        """Where the weights of stages that were kept out wait until the result is written."""
        return self.work / "rejected"


def run_stage(
    run: Run,
    tuned: Tuned,
    data: Sequence[StageData],
    meter: Meter,
    progress: Progress,
    resume: Checkpoint | None,
    outcome: Outcome,
) -> Progress:
    """One stage of those in ``data``, from its start or from a checkpoint in it; returns where the run stands after it.

    ``tuned`` holds what the stages before made of the model, and then what this one made, or the same as before if the
    stage is kept out.

    Raises:
        Broken: the run was to stop before this stage's first step.
    """
    stage = data[progress.stage].stage
    result = StageOutcome(stage_name(run.spec, progress.stage), stage.kind, stage.method, stage.max_steps)
    log_stage(stage, result.name)

    # 1. What it begins with: weights that it may go back to, and a measurement.
    start = run.work / START
    tuned.write_weights(start)
    ranks.wait()
    with outcome.phase("measure"):
        before = _before(meter, progress, result)
    progress = replace(progress, before=before.as_dict() if before else None)

    # 2. Train.
    with outcome.phase("train"):
        train_stage(run, tuned, data, progress, start, resume, result, outcome)

    # 3. The gate. What it most likely keeps is sent meanwhile (``jobs.delivery``).
    if before and result.whole and progress.stage == len(data) - 1:
        _offer(run, tuned, outcome)
    with outcome.phase("measure"):
        after = _judge(meter, before, stage, result)
    ranks.wait()
    if not result.kept:
        _take_back(run, tuned, start, result)
    say(f"stage {result.name} {_ending(result)}")
    ranks.wait()
    found = after if result.kept else before
    return Progress(
        stage=progress.stage + 1,
        steps_before=progress.steps_before + result.steps_done,
        ended=[*progress.ended, result],
        before=found.as_dict() if found else None,
    )


def _offer(run: Run, tuned: Tuned, outcome: Outcome) -> None:
    """What the last stage made, saved before it is measured."""
    with outcome.phase("save"):
        save_result(tuned, run.work / "out" / CANDIDATE, run.rejected)
    outcome.candidate = True


def _take_back(run: Run, tuned: Tuned, start: Path, result: StageOutcome) -> None:
    """The model is again what the stage began with; nothing that it made can pass for a result."""
    withdraw(run.work / "out" / CANDIDATE)
    Best(run.best, tuned, run.spec.run_id).forget()
    if not result.diverged:
        keep_rejected(tuned, run.rejected / result.name)
    tuned.put_back(start)


def train_stage(
    run: Run,
    tuned: Tuned,
    stages: Sequence[StageData],
    progress: Progress,
    start: Path,
    resume: Checkpoint | None,
    result: StageOutcome,
    outcome: Outcome,
) -> None:
    """The training of a stage; fills in what it came to."""
    from jobs.guide import course_of

    began, data, done = time.monotonic(), stages[progress.stage], progress.step if resume else 0
    stage = shared(data.stage, ranks.count())
    dataset, evaluations = plan(run.inputs, run.spec, tuned, data.stage, data.dataset)
    course, best = course_of(resume if done else None, run.work), Best(run.best, tuned, run.spec.run_id)
    keeping = _keeping(run, tuned, progress, start, course)
    if progress.stage and resume is None:
        keeping.at_start()
    # Not sooner: until that checkpoint is whole, the best of the stage before is what would go home.
    best.take_up(resume.path if resume and done else None)
    guide = _guide(run, stages, progress, result, course, best, evaluations)
    with _as_it_was(tuned.model):
        trainer = _trainer(run, tuned, stage, result.name, dataset, keeping, guide, outcome)
        if tuned.method == "qlora":
            # trl made the adapter bfloat16, where a step that is smaller than a weight's last bit is lost.
            tuned.put_back(start)
        guide.train(trainer, resume, done, result)
    result.seconds = round(time.monotonic() - began, 3)
    outcome.trained_tokens, outcome.train_loss = guide.report.tokens, guide.report.mean_loss()
    del trainer, guide
    _free()
    # The weights are spoiled, and none before were better than at the start.
    if result.diverged and not course.improved:
        result.kept, result.note = False, result.diverged


def _trainer(
    run: Run,
    tuned: Tuned,
    stage: Stage,
    name: str,
    dataset: Any,
    keeping: Keeping,
    guide: Guide,
    outcome: Outcome,
) -> Any:
    """trl's trainer of the stage, with all that watches it."""
    from transformers import PrinterCallback

    from jobs.callbacks import StepTimes
    from jobs.trainers import TRAINERS

    machine = Machine.here(tuned.dtype, tuned.model.config.model_type, tuned.backend)
    # Unsloth's way is in the model already, and its trainers put it to use.
    checkpointing = tuned.backend == "trl" and choose_checkpointing(tuned.model, stage)
    trackers = tracking_callbacks(run.spec, run.work / "out", name) if ranks.first() else []
    trainer = TRAINERS[stage.kind](
        keeping,
        run.work,
        guide.plan.rows,
        model=tuned.model,
        processing_class=tuned.tokenizer,
        train_dataset=dataset,
        args=trl_config(stage, machine, run.spec.seed, run.checkpoints / name, checkpointing=checkpointing),
        callbacks=[StepTimes(outcome), *guide.callbacks, *trackers],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _keeping(run: Run, tuned: Tuned, progress: Progress, start: Path, course: Course) -> Keeping:
    """How the stage's checkpoints are kept."""
    from jobs.trainers import Keeping

    return Keeping(
        run.checkpoints,
        run.spec.sha256(),
        run.metrics,
        lambda folder: write_result(tuned, folder),
        progress,
        start if progress.stage else None,
        run.rejected,
        course,
        run.best,
    )


def _guide(
    run: Run,
    stages: Sequence[StageData],
    progress: Progress,
    result: StageOutcome,
    course: Course,
    best: Best,
    evaluations: Plan,
) -> Guide:
    """What watches over the stage's training."""
    from jobs.callbacks import CheckpointInTime, StepReport, StopAtStep
    from jobs.guide import Guide
    from jobs.steering import Evaluations, FitToTime, Place

    stage, before = stages[progress.stage].stage, progress.steps_before
    later = sum(_work(each) for each in stages[progress.stage + 1 :]) / (
        _work(stages[progress.stage]) / stage.max_steps
    )
    whole = before + sum(each.stage.max_steps for each in stages[progress.stage :])
    report = StepReport(run.metrics, result.name, before, whole, course)
    stopper = StopAtStep(run.agreed)
    return Guide(
        course=course,
        best=best,
        plan=evaluations,
        stopper=stopper,
        report=report,
        fit=FitToTime(run.until, stage.max_steps, course, later, evaluations.every, report),
        evaluations=Evaluations(
            evaluations,
            course,
            best,
            stage.patience,
            Place(result.name, before),
            run.metrics,
            stopping=lambda: stopper.stopped,
            learns=lambda: report.learns,
        ),
        saving=CheckpointInTime(run.pace.first, run.pace.every, stopper),
    )


def _work(data: StageData) -> float:
    """Tokens that a stage computes on. dpo's reference computes them once more, without a backward pass."""
    stage = data.stage
    tokens = mean_tokens(data.dataset) * stage.batch_size * stage.gradient_accumulation * stage.max_steps
    return tokens * 4 / 3 if stage.kind == "dpo" else tokens


def shared(stage: Stage, count: int) -> Stage:
    """The stage as each of ``count`` ranks trains it: all of them together compute the rows of a step.

    Raises:
        TrainError: they cannot be shared out evenly.
    """
    rows = stage.batch_size * stage.gradient_accumulation
    if rows % count:
        raise TrainError(
            f"{count} GPUs cannot share {rows} rows a step evenly: make train.batch_size times "
            f"train.gradient_accumulation a multiple of {count}"
        )
    each = rows // count
    size = next(size for size in range(min(stage.batch_size, each), 0, -1) if each % size == 0)
    if count > 1:
        log("rows of a step", rows, f"{count} GPUs, {size} rows at once on each, {each // size} times")
    return stage.model_copy(update={"batch_size": size, "gradient_accumulation": each // size})


def planned(spec: RunSpec, ended: Sequence[StageOutcome] = ()) -> int:
    """Optimiser steps of all stages, the ended ones as they were."""
    return sum(each.steps_planned for each in ended) + sum(stage.max_steps for stage in spec.stages[len(ended) :])


def log_stage(stage: Stage, name: str) -> None:
    say(f"stage {name}")
    for field, value in stage.model_dump(exclude={"origins", "data", "activation_checkpointing"}).items():
        if value is not None and (field != "rows" or stage.data):
            log(field, value, stage.origins.get(field, "fixed"))
    log("max_grad_norm", MAX_GRAD_NORM, "fixed: the usual guard against a single bad batch")


def _before(meter: Meter, progress: Progress, result: StageOutcome) -> Measured | None:
    """The model as the stage finds it: as it was measured after the stage before, or by a machine that is lost, or now.

    In any case ``tuned`` holds the weights that the stage begins with; those of a checkpoint in it come later.
    """
    if meter.silent:
        say(f"stage {result.name} is not measured: {meter.silent}")
        result.note = f"not measured: {meter.silent}"
        return None
    known = progress.before
    found = Measured.from_dict(known) if known is not None else ranks.from_first(meter.measure)
    result.before = found.numbers()
    say(f"before {result.name}: {said(result.before)}")
    return found


def _judge(meter: Meter, before: Measured | None, stage: Stage, result: StageOutcome) -> Measured | None:
    """Measure again, and keep a stage out that made things worse."""
    if before is None:
        return None
    if not result.whole:
        result.note = result.diverged or "stopped before its end, and not measured again"
        return None
    try:
        after = ranks.from_first(lambda: meter.measure(before, result.seconds))
    except Broken:
        result.note = "not measured again: the run was to stop"
        return None
    result.after = after.numbers()
    say(f"after {result.name}: {said(result.after)}")
    harm = worse(before, after)
    result.kept = not (harm and stage.gate)
    result.note = f"{harm}; kept all the same, since its gate is off" if harm and result.kept else harm
    return after


def _ending(result: StageOutcome) -> str:
    ending = f"{result.steps_done} of {result.steps_planned} steps"
    if not result.kept:
        return f"is kept out: {result.note}; the run goes on with what it had before ({ending})"
    return f"ends: {ending}" + (f"; {result.note}" if result.note else "")


@contextlib.contextmanager
def _as_it_was(model: Any) -> Iterator[None]:
    """dpo switches every dropout off for good, and adds a reference; the next stage gets neither."""
    import torch

    dropouts = [(module, module.p) for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    try:
        yield
    finally:
        for module, p in dropouts:
            module.p = p
        if "ref" in getattr(model, "peft_config", {}):
            model.delete_adapter("ref")


def _free() -> None:
    """The optimiser's memory is worth as much as the next stage needs."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
