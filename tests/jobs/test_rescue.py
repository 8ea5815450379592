"""What goes home of a trainer that was killed, or failed, before it had saved a result."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from jobs.checkpoints import WEIGHTS, put_aside
from jobs.rescue import Rescue
from jobs.ticket import ADAPTER, RESULT
from tests.jobs.test_checkpoints import write_checkpoint
from tests.jobs.test_supervisor import TRAINER, Machine


def write_best(folder: Path, step: int, run_id: str = "run-1", **changed: int) -> None:
    """The best weights as ``jobs.best`` leaves them; ``changed``: sizes that files should have, and do not."""
    folder.mkdir(parents=True)
    files = {WEIGHTS: f"best of step {step}", "adapter_config.json": "{}", "tokenizer.json": "{}"}
    for name, text in files.items():
        (folder / name).write_text(text)
    sizes = {name: len(text) for name, text in files.items()} | changed
    (folder / "best.json").write_text(json.dumps({"step": step, "run_id": run_id, "files": sizes}))


def taken(work: Path) -> tuple[int | None, str]:
    rescue = Rescue(work, "run-1", print)
    rescue.take()
    weights = work / "out" / "adapter" / WEIGHTS
    return rescue.step, weights.read_text() if weights.exists() else ""


def test_the_best_weights_go_home_where_there_is_no_checkpoint_or_an_older_one(tmp_path: Path) -> None:
    write_best(tmp_path / "a" / "best", 5)
    (tmp_path / "a" / "rejected" / "1-cpt").mkdir(parents=True)
    (tmp_path / "a" / "rejected" / "1-cpt" / WEIGHTS).write_text("kept out")
    assert taken(tmp_path / "a") == (5, "best of step 5")
    home = tmp_path / "a" / "out" / "adapter"
    assert {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()} == {
        WEIGHTS,
        "adapter_config.json",
        "tokenizer.json",
        f"rejected/1-cpt/{WEIGHTS}",
    }
    write_best(tmp_path / "b" / "best", 5)
    write_checkpoint(tmp_path / "b" / "checkpoints", 4)
    assert taken(tmp_path / "b") == (5, "best of step 5")
    write_best(tmp_path / "c" / "best", 5)
    write_checkpoint(tmp_path / "c" / "checkpoints", 6)
    assert taken(tmp_path / "c") == (6, "weights of step 6")


@pytest.mark.parametrize(
    ("aside", "named", "expected"),
    [
        ({}, {WEIGHTS: 99}, (None, "")),  # cut short
        ({}, {"tokenizer.json": 1}, (None, "")),
        ({}, {"gone": 3}, (None, "")),
        ({"step": 5}, {"gone": 3}, (5, "best of step 5")),  # the older one is whole
        ({"step": 5, "run_id": "another"}, {"gone": 3}, (None, "")),
    ],
)
def test_half_of_it_or_another_runs_never_goes_home(
    tmp_path: Path, aside: dict[str, Any], named: dict[str, int], expected: tuple[int | None, str]
) -> None:
    write_best(tmp_path / "best", 9, **named)
    if aside:
        write_best(put_aside(tmp_path / "best"), **aside)
    assert taken(tmp_path) == expected


def test_a_disk_without_links_holds_a_result_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    write_best(tmp_path / "best", 5)
    monkeypatch.setattr("os.link", refuse)
    assert taken(tmp_path) == (5, "best of step 5")


def test_where_the_best_cannot_be_taken_the_checkpoint_is(tmp_path: Path) -> None:
    write_best(tmp_path / "best", 5)
    (tmp_path / "best" / "tokenizer.json").unlink()
    (tmp_path / "best" / "tokenizer.json").mkdir()  # has a size, and is no file
    facts = json.loads((tmp_path / "best" / "best.json").read_text())
    facts["files"]["tokenizer.json"] = (tmp_path / "best" / "tokenizer.json").stat().st_size
    (tmp_path / "best" / "best.json").write_text(json.dumps(facts))
    write_checkpoint(tmp_path / "checkpoints", 4)
    assert taken(tmp_path) == (4, "weights of step 4")


def test_a_measured_results_step_is_that_of_the_best_that_came_with_a_checkpoint(tmp_path: Path) -> None:
    write_best(tmp_path / "best", 5)
    (tmp_path / "best" / "tokenizer.json").unlink()  # of a checkpoint only the weights are there
    (tmp_path / "out" / "candidate").mkdir(parents=True)
    (tmp_path / "out" / "candidate" / WEIGHTS).write_text("the candidate")
    (tmp_path / "out" / "metrics.jsonl").write_text('{"step": 9, "loss": 1.0}\n')
    assert taken(tmp_path) == (5, "the candidate")


def test_a_result_that_is_there_stays(tmp_path: Path) -> None:
    write_best(tmp_path / "best", 5)
    (tmp_path / "out" / "adapter").mkdir(parents=True)
    (tmp_path / "out" / "adapter" / WEIGHTS).write_text("the trainer's")
    assert taken(tmp_path) == (None, "the trainer's")


# Killed at its tenth step, long before its first checkpoint; the best by then was that of the fifth.
KILLED = TRAINER.replace(
    "    if asked: break\n",
    """    if step == 5:
        sys.path.insert(0, REPO)
        from tests.jobs.test_rescue import write_best
        write_best(work / "best", 5, **json.loads((work / "spec.json").read_text())["changed"])
    if step == 10:
        if mode == "measured":
            save(); (out / "adapter").rename(out / "candidate")
        import os; os.kill(os.getpid(), 9)
    if asked: break
""",
).replace("REPO", repr(str(Path(__file__).resolve().parents[2])))


def killed(machine: Machine, **changed: int) -> dict[str, Any]:
    (machine.root / "trainer.py").write_text(KILLED)
    machine.write_ticket(spec={"mode": machine.mode, "changed": changed})
    machine.run()
    return machine.json("outcome.json")


def sent(machine: Machine) -> str:
    with tarfile.open(machine.store / ADAPTER) as tar:
        weights = tar.extractfile(WEIGHTS)
        assert weights is not None
        return weights.read().decode()


def test_a_trainer_that_is_killed_before_its_first_checkpoint_costs_nothing_of_the_best(tmp_path: Path) -> None:
    machine = Machine(tmp_path, mode="long")
    told = killed(machine)
    assert machine.json(RESULT) == told
    assert (told["status"], told["adapter_step"]) == ("stopped", 5)
    assert "signal 9" in told["reason"]
    assert "the result is that of step 5, the best by then" in told["reason"]
    assert sent(machine) == "best of step 5"


def test_a_trainer_that_is_killed_over_half_of_its_best_leaves_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path, mode="long")
    told = killed(machine, **{WEIGHTS: 10_000})
    assert (told["status"], told["artifacts"], told["adapter_step"]) == ("failed", {}, None)
    assert not machine.has(RESULT)
    assert not machine.has(ADAPTER)


def test_a_trainer_that_is_killed_while_its_result_is_measured_leaves_that(tmp_path: Path) -> None:
    machine = Machine(tmp_path, mode="measured")
    told = killed(machine)
    assert (told["status"], told["adapter_step"]) == ("stopped", 5)
    assert "not measured again" in told["reason"]
    assert sent(machine) == "weights"


def test_a_machine_that_is_started_again_sends_what_its_life_before_left_when_it_cannot_train(tmp_path: Path) -> None:
    machine = Machine(tmp_path, mode="long")
    write_best(tmp_path / "work" / "best", 7)
    machine.input_sha = "0" * 64
    told = killed(machine)
    assert (told["status"], told["adapter_step"]) == ("stopped", 7)
    assert "sha256" in told["reason"]
    assert sent(machine) == "best of step 7"
