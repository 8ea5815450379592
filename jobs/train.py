"""The trainer: from a spec to an adapter, stage by stage. It reads top to bottom.

    python -m jobs.train --work DIR [--wait] [--first-checkpoint S] [--checkpoint-every S] [--until EPOCH]

With ``--wait`` only ``DIR/spec.json`` needs to be there: it imports its libraries, makes the GPU ready, and then waits
until the supervisor says that all the rest is there too (``jobs.ready``).

Reads ``DIR/spec.json`` (``jobs.spec.RunSpec``), the data files in ``DIR/inputs`` and, for a base that is a folder,
``DIR/inputs/base/``. Writes into ``DIR/out``:

    metrics.jsonl   a line per step (``jobs.callbacks.StepReport``) and evaluation (``jobs.steering.Evaluations``)
    adapter/        adapter_model.safetensors and adapter_config.json, or for a full fine-tune the 16-bit model;
                    the base's tokenizer files as they are, and chat_template.jinja, the template that was trained
                    with; it appears whole or not at all
    audit.json      what was found in the tokens before the first step (``jobs.audit``)
    trainer.json    last: how it ended (``jobs.outcome.Outcome``)

and checkpoints into ``DIR/checkpoints`` (``jobs.checkpoints``). If one of this spec is there at the start, it goes on
from it, exactly: same stage, data order, schedule, random state and optimizer as if it had never stopped.

Ends with 0 for completed and stopped, 1 for failed. SIGTERM or Ctrl-C is a soft stop: the running step ends, and
a checkpoint and the best adapter so far are saved.

On several GPUs ``jobs.launch`` starts one process for each. The first of them writes all of this; each of the others
says in ``out/rank-<n>.json`` how it ended.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from jobs import ranks, ready, tracking, unsloth_backend
from jobs.audit import Reader, audit_inputs
from jobs.delivery import CANDIDATE, RESULT
from jobs.environment import STOP_FILE, StopFlag, end_process, end_with_parent, log_versions, set_environment
from jobs.gate import Broken, Meter
from jobs.hardware import warm_up
from jobs.model import load_tuned
from jobs.outcome import LESS_RATE, Outcome, StageOutcome, StoppedEarly, TrainError, cause, explain
from jobs.progress import START, Progress, find_checkpoint, take_up
from jobs.runlog import log, say
from jobs.saving import final_result
from jobs.spec import RunSpec
from jobs.stage_data import stage_data
from jobs.stages import Pace, Run, planned, run_stage

# Seconds of training. The first comes soon: young machines are taken away too, and it shows early whether the store
# takes checkpoints. Then a lost machine costs five minutes at most, and a save of a second or two less than a percent.
FIRST_CHECKPOINT, CHECKPOINT_EVERY = 60.0, 300.0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.train", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder with spec.json and inputs/")
    for name, default in (("--first-checkpoint", FIRST_CHECKPOINT), ("--checkpoint-every", CHECKPOINT_EVERY)):
        parser.add_argument(name, type=float, default=default, metavar="S", help=f"seconds (default {default:.0f})")
    parser.add_argument("--until", type=float, metavar="EPOCH", help="when the schedule must have come to its end")
    parser.add_argument("--wait", action="store_true", help="for the supervisor's word that the inputs are here")
    given = parser.parse_args(argv)
    end_with_parent()
    work: Path = given.work.resolve()
    stop, outcome, out = StopFlag(work / STOP_FILE), Outcome(), work / "out"
    pace = Pace(given.first_checkpoint, given.checkpoint_every)
    try:
        if not given.wait:
            fresh(out)
        train(work, stop, outcome, pace, given.until, wait=given.wait)
    except StoppedEarly as exc:
        outcome.status, outcome.reason = "stopped", str(exc)
    except Exception as exc:  # whatever it is, it must reach trainer.json and the log
        outcome.status, outcome.reason = "failed", explain(exc)
        outcome.cause = outcome.cause or cause(exc)
    if outcome.status == "failed":
        print(f"error: {outcome.reason}", file=sys.stderr, flush=True)
    else:
        say(f"{outcome.status}: {outcome.reason}")
    with contextlib.suppress(OSError):  # a full disk; the exit code still tells
        out.mkdir(parents=True, exist_ok=True)
        outcome.write(out / ("trainer.json" if ranks.first() else f"rank-{ranks.rank()}.json"))
    tracking.settle()
    ranks.leave()
    return 1 if outcome.status == "failed" else 0


def train(work: Path, stop: StopFlag, outcome: Outcome, pace: Pace, until: float | None, *, wait: bool = False) -> None:
    """The whole run; fills in ``outcome``. Raises what goes wrong."""
    # 1. What to do, with which libraries, and the other ranks. The inputs may come meanwhile.
    spec = load_spec(work / "spec.json")
    run = Run(spec, work, pace, stop.asked, stop.agreed, until)
    log_spec(spec)
    outcome.add("import", begin(spec, work, stop, wait))
    outcome.versions = log_versions(spec.backend)

    # 2. Where to go on.
    resume = find_checkpoint(run.checkpoints, spec)
    progress = take_up(resume, run.metrics, run.rejected) if resume else Progress()
    count(outcome, spec, progress)
    outcome.resumed_from = progress.steps
    stop.check(outcome.resumed_from)

    # 3. Base, tokenizer, template, adapter; then the tokens of every stage, and of the rows to measure on.
    with outcome.phase("load"):
        tuned = load_tuned(spec, run.inputs / "base" if spec.base.source == "folder" else None)
        stop.check(outcome.resumed_from)
        audit_inputs(run.inputs, work / "out", spec, Reader(tuned.tokenizer, tuned.template, tuned.stops))
        data = stage_data(run.inputs, spec, tuned)
        meter = Meter(spec, run.inputs, tuned, stop.asked)
        if resume and progress.stage:
            tuned.put_back(resume.path / START)
    stop.check(outcome.resumed_from)

    # 4. One stage after the other, each on what the one before made.
    while progress.stage < len(spec.stages) and not (outcome.stages and stop.agreed()):
        try:
            progress = run_stage(run, tuned, data, meter, progress, resume, outcome)
        except Broken:
            break
        resume = None
        count(outcome, spec, progress)
        if not outcome.stages[-1].whole:
            break
    if not outcome.stages:
        stop.check(outcome.resumed_from)
    refuse_spoiled(outcome)

    # 5. Save, and only then call it done.
    with outcome.phase("save"):
        outcome.adapter_sha256 = final_result(
            tuned, work / "out", run.rejected, saved=outcome.candidate, kept=outcome.stages[-1].kept
        )
    outcome.adapter_step = adapter_step(outcome.stages)
    stopped = not outcome.stages[-1].whole or len(outcome.stages) < len(spec.stages)
    outcome.status = "stopped" if stopped else "completed"
    outcome.reason = ending(outcome) + (f" ({stop.name})" if stop.name and stopped else "")


def begin(spec: RunSpec, work: Path, stop: StopFlag, wait: bool) -> float:
    """Import, make the GPU ready, find the other ranks, and wait for the inputs.

    Returns the seconds that this took beyond the inputs' coming; without waiting, all of them.
    """
    began = time.time()
    set_environment(spec)
    if spec.backend == "unsloth":
        unsloth_backend.begin(work)  # before the libraries that it changes
    import jobs.guide
    import jobs.trainers  # noqa: F401

    ranks.join()
    warm_up()
    ended = time.time()
    if not wait:
        return ended - began
    say(f"libraries and device took {ended - began:.1f} s, with {time.process_time():.1f} s of a processor's time")
    here = ready.wait(work, stop.asked)
    # All ranks, or none: one that was told to stop leaves no other alone.
    stop.check()
    # Not sooner: what an earlier life left is worth something until this one trains.
    fresh(work / "out")
    return ended - max(began, here)


def count(outcome: Outcome, spec: RunSpec, progress: Progress) -> None:
    """How far the run has come."""
    outcome.stages = list(progress.ended)
    outcome.steps_done = progress.steps
    outcome.steps_planned = planned(spec, outcome.stages)


def refuse_spoiled(outcome: Outcome) -> None:
    """Raises ``TrainError`` for a training that diverged and leaves nothing that is worth saving."""
    if diverged := outcome.stages[-1].diverged:
        outcome.cause = "diverged"
        if not any(stage.kept for stage in outcome.stages):
            raise TrainError(f"{diverged}; no step before had made the model better, so nothing is saved: {LESS_RATE}")


def adapter_step(stages: Sequence[StageOutcome]) -> int:
    """The step of the run whose weights go home."""
    before = found = 0
    for stage in stages:
        if stage.kept:
            found = before + (stage.steps_done if stage.best_step is None else stage.best_step)
        before += stage.steps_done
    return found


def ending(outcome: Outcome) -> str:
    """How far it came, and which stages were kept out."""
    steps = f"{outcome.steps_done} of {outcome.steps_planned} steps"
    if outcome.adapter_step != outcome.steps_done:
        steps += f", the result is that of step {outcome.adapter_step}"
    told = [note for stage in outcome.stages for note in (stage.kept and stage.diverged, *stage.notes) if note]
    out = [f"stage {stage.name} is kept out: {stage.note}" for stage in outcome.stages if not stage.kept]
    if out and len(out) == len(outcome.stages):
        out.append("no stage made the model better, so the result is the base")
    return "; ".join([steps, *told, *out])


def load_spec(path: Path) -> RunSpec:
    try:
        return RunSpec.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as exc:
        raise TrainError(f"{path.name} is no run spec that this version can read: {exc}") from exc


def log_spec(spec: RunSpec) -> None:
    say(f"run {spec.run_id} of project {spec.project}, spec {spec.sha256()[:12]}")
    say(f"base {spec.base.id} ({spec.base.source}, {spec.base.revision[:12]}), {spec.data.train_rows} rows")
    log("seed", spec.seed, "cloudft.yaml")


def fresh(out: Path) -> None:
    """An empty ``out``: what an earlier try left there must not pass for this one's."""
    if not ranks.first():
        return
    for name in ("metrics.jsonl", "trainer.json"):
        (out / name).unlink(missing_ok=True)
    for folder in (out / RESULT, out / CANDIDATE, out.parent / "rejected"):
        shutil.rmtree(folder, ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)


if __name__ == "__main__":
    end_process(main())
