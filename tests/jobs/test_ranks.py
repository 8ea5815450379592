"""Two ranks on a CPU, as two GPUs would train: the same as one process, told to stop, killed, and going on."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.best import Best
from jobs.checkpoints import FOLDER, MODEL_WEIGHTS, sealed
from jobs.model import Tuned
from jobs.outcome import TrainError
from jobs.spec import RunSpec, Stage
from jobs.stages import shared
from jobs.ticket import ATTEMPT_OUTPUTS, RESULT, RUN_OUTPUTS, Input, Output, Ticket
from tests.jobs.forked import Training, run_all
from tests.jobs.guided_fixtures import guided_work
from tests.jobs.test_startup import CONTENT, SlowStore, slow, until
from tests.jobs.test_train import base_lock
from tests.jobs.train_fixtures import REPO, SETTINGS, demo_base, metrics, outcome

__all__ = ["demo_base", "slow"]  # fixtures

STEPS = 16
COMMON: dict[str, Any] = {"max_steps": STEPS, "batch_size": 4, "gradient_accumulation": 2, "warmup": 0.1}
FULL: dict[str, Any] = {
    "method": "full",
    "learning_rate": 1e-3,
    "lora_r": None,
    "lora_alpha": None,
    "lora_dropout": None,
}
CHECKPOINTS = ("--first-checkpoint", "0", "--checkpoint-every", "0")


@pytest.fixture(scope="module")
def alone(demo_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same trainings in one process, on all rows of a step at once."""
    root = tmp_path_factory.mktemp("alone")
    whole = {**COMMON, "batch_size": 8, "gradient_accumulation": 1}
    works = {
        "lora": guided_work(root / "lora", demo_base, **whole),
        "full": guided_work(root / "full", demo_base, **whole, **FULL),
    }
    assert run_all([Training(work) for work in works.values()]) == [0, 0]
    return works


def env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}


def launch(work: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "jobs.launch", "2", *CHECKPOINTS, "--work", str(work)]
    with (work / "log").open("ab") as log:
        return subprocess.Popen(command, env=env(), stdout=log, stderr=subprocess.STDOUT)


def wait_for_step(work: Path, beyond: int, log: Path) -> int:
    give_up = time.monotonic() + 240
    while time.monotonic() < give_up:
        if (found := sealed(work / FOLDER)) and found[0].step > beyond:
            return found[0].step
        time.sleep(0.02)
    raise AssertionError(log.read_text()[-3000:])


def same_losses(work: Path, alone: Path) -> None:
    """Every step and evaluation once, the same but for the order in which numbers are added."""
    lines, expected = metrics(work), metrics(alone)
    for name in ("step", "learning_rate", "tokens", "epoch"):
        assert [line.get(name) for line in lines] == [line.get(name) for line in expected], name
    for name in ("loss", "eval_loss"):
        values = [[line[name] for line in each if name in line] for each in (lines, expected)]
        assert values[0] == pytest.approx(values[1], rel=1e-3), name


@pytest.mark.train
@pytest.mark.timeout(900)
def test_all_weights_are_shared_out_and_a_stop_reaches_all_ranks(
    demo_base: Path, tmp_path: Path, alone: dict[str, Path]
) -> None:
    from safetensors.torch import load_file

    work = guided_work(tmp_path / "work", demo_base, **COMMON, **FULL)
    process = launch(work)
    step = wait_for_step(work, 0, work / "log")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=240) == 0, (work / "log").read_text()[-3000:]
    told = outcome(work)
    assert (told["status"], "SIGTERM" in told["reason"]) == ("stopped", True)
    assert step <= told["steps_done"] < STEPS
    second = json.loads((work / "out" / "rank-1.json").read_text())
    assert (second["status"], second["steps_done"]) == ("stopped", told["steps_done"])

    assert launch(work).wait(timeout=240) == 0, (work / "log").read_text()[-3000:]
    assert outcome(work)["status"] == "completed"
    assert outcome(work)["resumed_from"] == told["steps_done"]
    same_losses(work, alone["full"])
    (mine,) = (work / "out" / "adapter").glob(MODEL_WEIGHTS)
    (theirs,) = (alone["full"] / "out" / "adapter").glob(MODEL_WEIGHTS)
    found, wanted = load_file(mine), load_file(theirs)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert (found[name].float() - tensor.float()).abs().max() < 1e-2, name


def supervise(work: Path, store: Path, inputs: tuple[Input, ...] = (), **more: str) -> subprocess.Popen[bytes]:
    """A machine with two GPUs, and its supervisor."""
    store.mkdir()
    urls = {key: (store / key).as_uri() for key in (*ATTEMPT_OUTPUTS, *RUN_OUTPUTS)}
    ticket = Ticket(
        run_id="run-1",
        attempt=1,
        name="machine",
        deadline=time.time() + 3600,
        save_reserve=60,
        heartbeat_every=0.2,
        spec=RunSpec.model_validate_json((work / "spec.json").read_bytes()).model_dump(mode="json"),
        inputs=inputs,
        outputs={key: Output(put=url, get=url) for key, url in urls.items()},
        stop=(store / "stop").as_uri(),
        gpus=2,
    )
    (store / "ticket.json").write_bytes(ticket.to_json())
    code = (
        "import time; from pathlib import Path; from jobs.child import TRAINER; from jobs.supervisor import Supervisor;"
        f"Supervisor(time.time() + 3600, {(store / 'ticket.json').as_uri()!r}, Path({str(work)!r}),"
        f" (*TRAINER, *{CHECKPOINTS!r})).run()"
    )
    return subprocess.Popen([sys.executable, "-c", code], env={**env(), **more}, stdout=subprocess.DEVNULL)


@pytest.mark.train
@pytest.mark.timeout(900)
def test_ranks_wait_for_their_inputs_and_one_that_is_killed_ends_all_and_the_run_goes_on(
    demo_base: Path, tmp_path: Path, alone: dict[str, Path], slow: SlowStore
) -> None:
    work, store = guided_work(tmp_path / "work", demo_base, **COMMON), tmp_path / "store"
    late = Input("more.jsonl", slow.url("more.jsonl"), hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
    process = supervise(work, store, (late,))
    # Both ranks have met, with all that they import, before the input is here.
    until("a request", lambda: slow.asked, 240)
    until("the ranks", lambda: "libraries and device took" in (work / "train.log").read_text(), 240)
    assert not (work / "out" / "metrics.jsonl").exists()
    slow.go.set()
    wait_for_step(work, 0, work / "train.log")
    family = psutil.Process(process.pid).children(recursive=True)
    ranks = [member for member in family if "jobs.train" in member.cmdline()]
    assert len(ranks) == 2
    ranks[1].kill()
    assert process.wait(timeout=400) == 0
    log = (work / "train.log").read_text()
    result = json.loads((store / RESULT).read_text())
    assert result["status"] == "completed", log[-3000:]
    assert result["trainer"]["resumed_from"] > 0
    assert log.count("2 GPUs, 4 rows at once on each, 1 times") == 2
    same_losses(work, alone["lora"])


# Read by every Python that is started: memory is short for the second rank alone.
SHORT_OF_MEMORY = """
import os
if os.environ.get("RANK") == "1":
    from tests.jobs import hooks
    hooks.short_of_memory_later()
"""


@pytest.mark.train
@pytest.mark.timeout(900)
def test_a_rank_without_memory_makes_the_pieces_of_all_smaller_and_the_run_goes_on(
    demo_base: Path, tmp_path: Path, alone: dict[str, Path]
) -> None:
    work, store = guided_work(tmp_path / "work", demo_base, held=0, **COMMON), tmp_path / "store"
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(SHORT_OF_MEMORY)
    process = supervise(work, store, PYTHONPATH=f"{tmp_path / 'hook'}{os.pathsep}{REPO}")
    assert process.wait(timeout=400) == 0
    log = (work / "train.log").read_text()
    result = json.loads((store / RESULT).read_text())
    assert result["status"] == "completed", log[-3000:]
    resumed = result["trainer"]["resumed_from"]
    assert 0 < resumed < 7
    # The hook spares six steps of two layers.
    assert "memory ran out in step 7: 2 rows at once instead of 4" in log
    assert any("2 pieces" in note for note in result["trainer"]["stages"][0]["notes"])
    lines = metrics(work)
    assert [line.get("pieces", 1) for line in lines] == [1] * resumed + [2] * (STEPS - resumed)
    # The same steps as of one process with all the memory it wants, but for the order in which numbers are added.
    expected = [line for line in metrics(alone["lora"]) if "loss" in line]
    for name in ("step", "learning_rate", "tokens", "epoch"):
        assert [line[name] for line in lines] == [line[name] for line in expected], name
    losses = [[line["loss"] for line in each] for each in (lines, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def stage(batch_size: int, accumulation: int) -> Stage:
    return Stage(**{**SETTINGS, "batch_size": batch_size, "gradient_accumulation": accumulation})


@pytest.mark.parametrize(
    ("rows", "count", "each"),
    [((4, 4), 1, (4, 4)), ((4, 4), 2, (4, 2)), ((4, 4), 8, (2, 1)), ((16, 1), 4, (4, 1)), ((6, 2), 3, (4, 1))],
)
def test_the_rows_of_a_step_are_shared_out(rows: tuple[int, int], count: int, each: tuple[int, int]) -> None:
    found = shared(stage(*rows), count)
    assert (found.batch_size, found.gradient_accumulation) == each
    assert found.batch_size * found.gradient_accumulation * count == rows[0] * rows[1]


def test_rows_that_cannot_be_shared_out_evenly_are_refused() -> None:
    with pytest.raises(TrainError, match="multiple of 8"):
        shared(stage(4, 1), 8)


def test_only_the_first_rank_makes_the_folders_that_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = Tuned(None, None, "", frozenset(), (), base_lock(), "lora", "float32")
    monkeypatch.setenv("RANK", "1")
    Best(tmp_path / "best", tuned, "run-1").take({"step": 5})
    assert list(tmp_path.iterdir()) == []
