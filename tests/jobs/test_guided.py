"""Trainings that are steered: the best adapter, an early end, steps that fit the time, memory, a loss that diverges.

Real ones of the demo's model, all forked from one process: the libraries are imported once.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from jobs.checkpoints import FOLDER, WEIGHTS, result_of, result_step, seal, sealed
from jobs.rescue import Rescue
from tests.jobs.forked import Training, run_all
from tests.jobs.guided_fixtures import HELD, guided_work
from tests.jobs.train_fixtures import FULL, demo_base, metrics, outcome
from tests.jobs.train_fixtures import SETTINGS as DEMO

__all__ = ["demo_base"]  # fixture
pytestmark = [pytest.mark.train, pytest.mark.timeout(900)]

# Two micro-batches a step, and dropout, which draws from the random state.
SETTINGS: dict[str, Any] = {"max_steps": 20, "batch_size": 4, "gradient_accumulation": 2, "warmup": 0.1}
# More steps than any computer makes in the time that it is given.
LONG = 20_000


def _wrong_answers() -> list[list[dict[str, str]]]:
    """Rows that look right and are not: whoever learns the task comes to do worse on them."""
    answers = [row[-1]["content"] for row in HELD]
    random.Random(3).shuffle(answers)
    return [[*row[:-1], {"role": "assistant", "content": answer}] for row, answer in zip(HELD, answers, strict=True)]


@pytest.fixture(scope="module")
def runs(demo_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Training, int]]:
    """Each training with its exit code."""
    root = tmp_path_factory.mktemp("guided")
    trainings: dict[str, Training] = {}

    def add(name: str, *options: str, hook: str = "", **settings: Any) -> None:
        work = guided_work(root / name, demo_base, **{**SETTINGS, **settings})
        trainings[name] = Training(work, options, hook)

    add("alone", held=0, lora_dropout=0.1)
    add("watched", lora_dropout=0.1)
    add("forward", hook="short_of_memory_forward", lora_dropout=0.1)
    add("backward", hook="short_of_memory_backward", lora_dropout=0.1)
    add("roomy", lora_dropout=0.0)
    add("at once", held=0, lora_dropout=0.0, batch_size=8, gradient_accumulation=1)
    add("tight", hook="short_of_memory_forward", lora_dropout=0.0)
    add("too tight", hook="no_memory")
    add("early", max_steps=60, patience=1, rows=_wrong_answers())
    add("full", "--first-checkpoint", "0", "--checkpoint-every", "0", **FULL, learning_rate=1e-3)
    add("in time", "--until", "now+12", max_steps=LONG, batch_size=2)
    add("killed", hook="killed_between_two_bests", lora_dropout=0.1)
    for name, rate, held in (("flat", 300.0, 24), ("flat, own rows", 300.0, 0), ("hot", 0.5, 24), ("slow", 1e-6, 0)):
        add(name, batch_size=4, gradient_accumulation=1, max_steps=90, warmup=0.05, learning_rate=rate, held=held)
    add("no number", learning_rate=1e30, held=0)
    first = {"max_steps": 10, "max_length": 128, "learning_rate": 0.005}
    add("killed at a start", hook="killed_as_a_stage_begins", cpt=first)
    add("spoiled", cpt=first, learning_rate=50.0, scheduler="constant", max_steps=60)
    return dict(zip(trainings, zip(trainings.values(), run_all(list(trainings.values())), strict=True), strict=True))


def work_of(runs: dict[str, tuple[Training, int]], name: str, code: int = 0) -> Path:
    training, ended = runs[name]
    assert ended == code, training.log.read_text()[-3000:]
    return training.work


def weights(work: Path) -> bytes:
    return (work / "out" / "adapter" / WEIGHTS).read_bytes()


def evaluations(work: Path) -> list[dict[str, Any]]:
    return [line for line in metrics(work) if "eval_loss" in line]


def steps(work: Path) -> list[dict[str, Any]]:
    return [line for line in metrics(work) if "loss" in line]


def test_to_watch_a_training_changes_nothing_in_it(runs: dict[str, tuple[Training, int]]) -> None:
    alone, watched = work_of(runs, "alone"), work_of(runs, "watched")
    assert weights(watched) == weights(alone)
    assert evaluations(alone) == []
    seen = evaluations(watched)
    assert [line["step"] for line in seen][:: len(seen) - 1] == [0, 20]
    assert seen[-1]["eval_loss"] < seen[0]["eval_loss"]
    (stage,) = outcome(watched)["stages"]
    assert stage["validation_began"] == seen[0]["eval_loss"]
    assert (stage["best_step"], stage["validation_loss"]) == (20, seen[-1]["eval_loss"])
    assert outcome(alone)["adapter_step"] == 20


def test_what_goes_home_is_the_best_and_a_stage_that_gets_no_better_ends_early(
    runs: dict[str, tuple[Training, int]],
) -> None:
    work = work_of(runs, "early")
    told = outcome(work)
    (stage,) = told["stages"]
    seen = evaluations(work)
    best = min(seen[1:], key=lambda line: line["eval_loss"])
    assert told["status"] == "completed"
    assert told["steps_done"] == told["steps_planned"] == seen[-1]["step"] < 60
    assert seen[-2] == best  # one evaluation without a lower loss was the patience
    assert told["adapter_step"] == stage["best_step"] == best["step"]
    assert f"stopped early after step {told['steps_done']} of 60" in told["reason"]
    assert f"the result is that of step {best['step']}" in told["reason"]
    assert weights(work) == (work / "best" / WEIGHTS).read_bytes()


def test_the_best_of_a_full_fine_tune_is_in_its_checkpoints_as_it_goes_home(
    runs: dict[str, tuple[Training, int]], tmp_path: Path
) -> None:
    work = work_of(runs, "full")
    (stage,) = outcome(work)["stages"]
    home = (work / "out" / "adapter" / "model.safetensors").read_bytes()
    assert stage["best_step"] == 20
    assert (work / "best" / "model.safetensors").read_bytes() == home
    # A checkpoint that was made now would hold it, and the supervisor of a trainer that is killed takes it from there.
    now = tmp_path / "checkpoint-20"
    shutil.copytree(sealed(work / FOLDER)[0].path, now)
    shutil.copytree(work / "best", now / "best", dirs_exist_ok=True)
    seal(now, 20, "", at=0)
    (checkpoint,) = sealed(tmp_path)
    assert result_step(checkpoint) == 20
    result_of(checkpoint, tmp_path / "taken")
    assert {path.name for path in (tmp_path / "taken").iterdir()} == {
        path.name for path in (work / "out" / "adapter").iterdir()
    }
    assert (tmp_path / "taken" / "model.safetensors").read_bytes() == home


def test_a_trainer_that_is_killed_before_its_first_checkpoint_leaves_the_best(
    runs: dict[str, tuple[Training, int]],
) -> None:
    work = work_of(runs, "killed", code=-signal.SIGKILL)
    assert sealed(work / FOLDER) == []
    assert not (work / "out" / "adapter").exists()
    (first,) = [line for line in evaluations(work) if line["step"] > 0]
    run_id = json.loads((work / "spec.json").read_text())["run_id"]
    assert Rescue(work, "another", print).take() == ""
    rescue = Rescue(work, run_id, print)
    assert rescue.take() == f"the result is that of step {first['step']}, the best by then"
    assert rescue.step == first["step"] < steps(work)[-1]["step"]
    # Whole, and what the trainer itself would have left.
    home, whole = work / "out" / "adapter", work_of(runs, "watched") / "out" / "adapter"
    names = {path.name for path in whole.iterdir()}
    assert {path.name for path in home.iterdir()} == names
    for name in names - {WEIGHTS}:
        assert (home / name).read_bytes() == (whole / name).read_bytes()
    assert _norm(home / WEIGHTS) > 0


def test_a_trainer_that_is_killed_between_two_stages_leaves_the_best_of_the_first(
    runs: dict[str, tuple[Training, int]],
) -> None:
    work = work_of(runs, "killed at a start", code=-signal.SIGKILL)
    assert sealed(work / FOLDER) == []
    best = min((line for line in evaluations(work) if line["step"] > 0), key=lambda line: line["eval_loss"])
    rescue = Rescue(work, json.loads((work / "spec.json").read_text())["run_id"], print)
    assert rescue.take() == f"the result is that of step {best['step']}, the best by then"
    assert weights(work) == (work / "best" / WEIGHTS).read_bytes()


def _norm(path: Path) -> float:
    from safetensors.torch import load_file

    return sum(float(tensor.norm()) for name, tensor in load_file(path).items() if "lora_B" in name)


def test_memory_that_runs_out_costs_nothing_but_time(runs: dict[str, tuple[Training, int]]) -> None:
    forward, backward = work_of(runs, "forward"), work_of(runs, "backward")
    # One fails before a gradient is there, the other in the middle of them: the step is done again from its beginning.
    assert weights(forward) == weights(backward)
    assert outcome(backward)["stages"][0]["notes"] == ["memory ran out in step 1: 2 rows at once instead of 4"]
    assert "memory ran out in an evaluation: 2 rows at once instead of 4" in outcome(forward)["reason"]
    assert {line["pieces"] for line in steps(forward)} == {2}
    # The same rows in the same order, and the same gradients but for the last bits.
    roomy, tight = work_of(runs, "roomy"), work_of(runs, "tight")
    for name in ("step", "tokens", "learning_rate", "epoch"):
        assert [line[name] for line in steps(tight)] == [line[name] for line in steps(roomy)]
    losses = [[line["loss"] for line in steps(work)] for work in (tight, roomy)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_rows_of_a_length_lie_together_and_a_step_stays_what_it_is(runs: dict[str, tuple[Training, int]]) -> None:
    from jobs.memory import by_length  # takes the libraries' seconds

    draw = random.Random(1)
    rows = [{"input_ids": list(range(n)), "labels": list(range(n))} for n in draw.sample(range(1, 200), 12)]
    batches = [rows[at : at + 4] for at in range(0, 12, 4)]
    found = by_length(batches)
    assert sorted(row["input_ids"] for batch in found for row in batch) == sorted(row["input_ids"] for row in rows)
    assert [len(batch) for batch in found] == [4, 4, 4]
    tall = [[max(len(row["labels"]) for row in batch) for batch in each] for each in (found, batches)]
    assert sum(tall[0]) < sum(tall[1])
    assert tall[0] == sorted(tall[0], reverse=True)
    # Two batches of four, and all eight at once: the same gradients but for the last bits.
    losses = [[line["loss"] for line in steps(work_of(runs, name))] for name in ("roomy", "at once")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_a_machine_that_is_too_small_says_what_would_help(runs: dict[str, tuple[Training, int]]) -> None:
    work = work_of(runs, "too tight", code=1)
    reason = outcome(work)["reason"]
    assert "one row at a time is too much" in reason or "evaluate 1 rows at once" in reason
    assert "train.max_length" in reason
    assert "can't allocate memory" in reason
    assert not (work / "out" / "adapter").exists()


def test_steps_are_cut_so_that_the_schedule_comes_to_its_end_in_time(runs: dict[str, tuple[Training, int]]) -> None:
    work = work_of(runs, "in time")
    told, lines = outcome(work), steps(work)
    (stage,) = told["stages"]
    assert told["status"] == "completed"
    assert stage["shortened_from"] == LONG
    assert stage["steps_done"] == stage["steps_planned"] == told["steps_planned"] < LONG
    assert f"shortened from {LONG} to " in told["reason"]
    assert lines[-1]["step"] == lines[-1]["max_steps"] == stage["steps_done"]
    assert lines[-1]["shortened_from"] == LONG
    # The warm-up of all those steps would not be over yet; now the rate went up, and down to the schedule's end.
    rates = [line["learning_rate"] for line in lines]
    if len(rates) > 30:
        assert max(rates) > 0.9 * DEMO["learning_rate"]
        assert rates[-1] < 0.1 * DEMO["learning_rate"]


def test_a_loss_that_is_no_number_ends_the_run_without_an_adapter(runs: dict[str, tuple[Training, int]]) -> None:
    work = work_of(runs, "no number", code=1)
    told = outcome(work)
    assert (told["status"], told["cause"]) == ("failed", "diverged")
    assert "learning_rate" in told["reason"]
    assert not (work / "out" / "adapter").exists()
    assert all(line["loss"] == line["loss"] for line in steps(work))


@pytest.mark.parametrize(
    ("name", "what"),
    [("flat", "the validation loss stays at"), ("flat, own rows", "the loss of 8 training rows stays")],
)
def test_a_loss_that_stays_above_its_beginning_ends_the_run_before_its_end(
    runs: dict[str, tuple[Training, int]], name: str, what: str
) -> None:
    work = work_of(runs, name, code=1)
    told = outcome(work)
    assert (told["status"], told["cause"]) == ("failed", "diverged")
    assert what in told["reason"]
    assert "in 3 evaluations, above the " in told["reason"]
    assert "learning_rate" in told["reason"]
    assert steps(work)[-1]["step"] < 75  # of 90, evaluated four times
    assert not (work / "out" / "adapter").exists()


def test_a_rate_that_is_bearable_or_too_low_ends_no_run(runs: dict[str, tuple[Training, int]]) -> None:
    hot, slow = work_of(runs, "hot"), work_of(runs, "slow")
    began, *later = [line["eval_loss"] for line in evaluations(hot)]
    losses = [line["loss"] for line in steps(hot)]
    assert max(losses) > 1.1 * began > began > later[-1]
    assert outcome(hot)["status"] == outcome(slow)["status"] == "completed"
    # It was looked at, by rows that say nothing about the best.
    assert "rows that are trained on" in runs["slow"][0].log.read_text()
    assert evaluations(slow) == []
    assert outcome(slow)["adapter_step"] == 90
    assert outcome(slow)["stages"][0]["best_step"] is None


def test_a_stage_that_diverges_leaves_what_was_good_before_it(runs: dict[str, tuple[Training, int]]) -> None:
    work = work_of(runs, "spoiled")
    told = outcome(work)
    first, second = told["stages"]
    assert (told["status"], told["cause"]) == ("stopped", "diverged")
    assert first["kept"]
    assert not second["kept"]
    assert "loss rose to" in second["diverged"]
    assert told["reason"].count(second["diverged"]) == 1
    assert told["adapter_step"] == first["steps_done"] == 10
    assert second["steps_done"] < 60
    assert (work / "out" / "adapter" / WEIGHTS).is_file()


def test_the_log_says_where_each_decision_came_from(runs: dict[str, tuple[Training, int]]) -> None:
    log = runs["watched"][0].log.read_text()
    assert "steps, on 8 rows: at most 5% of the time" in log
    assert "before the first step: validation loss" in log
    assert json.loads((runs["watched"][0].work / "spec.json").read_text())["stages"][0]["patience"] == 0
