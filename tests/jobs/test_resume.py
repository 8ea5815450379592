"""A training that is broken off again and again ends with the same bytes as one that is not. The real trainer.

It is broken off in every way there is: its machine is taken away (SIGTERM) and another goes on from the store, the
trainer alone is killed, and the whole container is killed and started again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs import train
from jobs.checkpoints import FOLDER, METRICS, WEIGHTS, sealed
from jobs.ticket import ADAPTER, ATTEMPT_OUTPUTS, CHECKPOINT, OUTCOME, RESULT, RUN_OUTPUTS, Output, Ticket
from local.demo_tickets import tickets
from tests.jobs.test_checkpoints import write_checkpoint
from tests.jobs.train_fixtures import REPO, demo_base, make_work, metrics, outcome, run_trainer

__all__ = ["demo_base"]  # fixture

STEPS = 60
# Everything that could differ: dropout draws from the random state, each optimiser step has two batches, the rate is
# warmed up and decays, and the rows are drawn anew in each of the epochs.
SETTINGS: dict[str, Any] = {
    "max_steps": STEPS,
    "batch_size": 4,
    "gradient_accumulation": 2,
    "lora_dropout": 0.1,
    "warmup": 0.1,
}
ROWS = [ticket.messages() for ticket in tickets(72, 1)]
# Often, so that every kill finds one; not at every step, so that steps are lost and done again.
CHECKPOINTS = ("--first-checkpoint", "0", "--checkpoint-every", "0")


class Store:
    """A run's objects in a folder, and its machines: each a work folder with its inputs in place."""

    def __init__(self, root: Path, base: Path) -> None:
        self.root, self.base = root, base
        self.folder = root / "store"
        self.folder.mkdir()

    def has(self, name: str) -> bool:
        return (self.folder / name).exists()

    def json(self, name: str) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.folder / name).read_text())
        return value

    def kept_step(self) -> int:
        return int(self.json(CHECKPOINT)["step"]) if self.has(CHECKPOINT) else 0

    def machine(self, name: str) -> Path:
        work = make_work(self.root / name, self.base, ROWS, **SETTINGS)
        urls = {key: (self.folder / key).as_uri() for key in (*ATTEMPT_OUTPUTS, *RUN_OUTPUTS)}
        ticket = Ticket(
            run_id="run-1",
            attempt=1,
            name=name,
            deadline=time.time() + 600,
            save_reserve=60,
            heartbeat_every=0.2,
            spec=json.loads((work / "spec.json").read_text()),
            inputs=(),
            outputs={key: Output(put=url, get=url) for key, url in urls.items()},
            stop=(self.folder / "stop").as_uri(),
            rented=True,
        )
        (self.folder / "ticket.json").write_bytes(ticket.to_json())
        return work

    def start(self, work: Path) -> subprocess.Popen[str]:
        trainer = [sys.executable, "-P", "-m", "jobs.train", *CHECKPOINTS]
        code = (
            "import time; from pathlib import Path; from jobs.supervisor import Supervisor;"
            f"Supervisor(time.time() + 600, {(self.folder / 'ticket.json').as_uri()!r}, Path({str(work)!r}),"
            f" {trainer!r}).run()"
        )
        return subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def wait_for_step(work: Path, process: subprocess.Popen[str], beyond: int) -> int:
    """The step of a checkpoint on the machine's disk, once there is one beyond that step."""
    give_up = time.monotonic() + 200
    while time.monotonic() < give_up and process.poll() is None:
        if (found := sealed(work / FOLDER)) and found[0].step > beyond:
            return found[0].step
        time.sleep(0.01)
    raise AssertionError(f"no checkpoint beyond step {beyond}: {(work / 'train.log').read_text()[-3000:]}")


def trainer_of(process: subprocess.Popen[str]) -> psutil.Process:
    (child,) = psutil.Process(process.pid).children()
    return child


@pytest.mark.train
@pytest.mark.timeout(600)
def test_a_run_that_is_broken_off_in_every_way_ends_with_the_same_adapter(demo_base: Path, tmp_path: Path) -> None:
    unbroken = make_work(tmp_path / "unbroken", demo_base, ROWS, **SETTINGS)
    assert run_trainer(unbroken).returncode == 0
    assert sealed(unbroken / FOLDER) == []  # Over before the first was due.

    store = Store(tmp_path, demo_base)
    first = store.machine("first")
    process = store.start(first)
    wait_for_step(first, process, 3)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=200)
    assert "takes this machine away" in said
    assert not store.has(OUTCOME)
    assert not store.has(RESULT)
    taken_at = store.kept_step()
    assert 3 < taken_at < STEPS, said

    second = store.machine("second")
    process = store.start(second)
    step = wait_for_step(second, process, taken_at)
    trainer_of(process).send_signal(signal.SIGKILL)
    step = wait_for_step(second, process, step)
    for member in (psutil.Process(process.pid), trainer_of(process)):
        member.kill()
    process.communicate()
    assert not store.has(RESULT), "the run ended before it was broken off"

    process = store.start(second)
    said, _ = process.communicate(timeout=200)
    result = store.json(RESULT)
    assert result["status"] == "completed", said
    assert taken_at < step <= result["resumed_from"] < STEPS
    assert outcome(second)["steps_done"] == STEPS

    with tarfile.open(store.folder / ADAPTER) as tar:
        tar.extractall(tmp_path / "home", filter="data")
    for path in sorted((unbroken / "out" / "adapter").iterdir()):
        assert (tmp_path / "home" / path.name).read_bytes() == path.read_bytes(), path.name
    assert result["trainer"]["adapter_sha256"] == outcome(unbroken)["adapter_sha256"]
    assert (tmp_path / "home" / WEIGHTS).is_file()

    lines, expected = metrics(second), metrics(unbroken)
    assert (store.folder / METRICS).read_bytes() == (second / "out" / METRICS).read_bytes()
    for name in ("step", "loss", "learning_rate", "tokens", "epoch", "max_steps"):
        assert [line[name] for line in lines] == [line[name] for line in expected], name
    assert [line["elapsed_s"] for line in lines] == sorted(line["elapsed_s"] for line in lines)
    for name in ("train_loss", "trained_tokens", "steps_done"):
        assert outcome(second)[name] == outcome(unbroken)[name], name


def test_a_damaged_checkpoint_is_said_and_the_one_before_it_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = train.load_spec(make_work(tmp_path / "work", "owner/none", ROWS[:2], **SETTINGS) / "spec.json")
    folder, lines = tmp_path / "work" / FOLDER, tmp_path / METRICS
    for step in (3, 5, 7):
        write_checkpoint(folder, step, spec.sha256())
    write_checkpoint(folder, 9, "0" * 64)
    (folder / "checkpoint-7" / "optimizer.pt").write_bytes(b"")
    (folder / "tmp-checkpoint-8").mkdir()
    found = train.find_checkpoint(folder, spec, lines)
    assert found is not None
    assert found.step == 5
    assert "the checkpoint of step 7 is not used: the sha256 of optimizer.pt differs" in capsys.readouterr().out
    # Neither another spec's nor a half-written one stays in the way.
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-3", "checkpoint-5"]
    assert train.find_checkpoint(tmp_path / "nowhere", spec, lines) is None


@pytest.mark.train
def test_a_checkpoint_that_cannot_be_saved_does_not_end_the_training(demo_base: Path, tmp_path: Path) -> None:
    work = make_work(tmp_path / "work", demo_base, ROWS[:16], max_steps=2, batch_size=2)
    (work / FOLDER).mkdir()
    (work / FOLDER / "checkpoint-1").write_text("a file where a folder should be")
    done = run_trainer(work, *CHECKPOINTS)
    assert done.returncode == 0, done.stderr
    assert "warning: no checkpoint at step 1" in done.stdout
    assert outcome(work)["status"] == "completed"
