"""A training that is broken off again and again ends with the same bytes as one that is not. The real trainer.

It is broken off in every way there is, at steps that a seed draws: its machine is taken away (SIGTERM) and another goes
on from the store, the trainer alone is killed, the supervisor alone, and the whole container, which is started again.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs import train
from jobs.checkpoints import FOLDER, METRICS, WEIGHTS, sealed
from jobs.progress import find_checkpoint
from jobs.ticket import ADAPTER, ATTEMPT_OUTPUTS, CHECKPOINT, OUTCOME, RESULT, RUN_OUTPUTS, Output, Ticket
from tests.jobs.guided_fixtures import ROWS, guided_work
from tests.jobs.test_checkpoints import write_checkpoint
from tests.jobs.train_fixtures import REPO, demo_base, make_work, metrics, outcome, run_trainer
from tests.services.engine import DockerEngine

__all__ = ["demo_base"]  # fixture

SEED = 20261120
FIRST, SECOND = 15, 45
STEPS = FIRST + SECOND
# Everything that could differ: dropout draws from the random state, each optimiser step has two batches, the rate is
# warmed up and decays, the rows are drawn anew in each of the epochs, there are two stages, and each is evaluated.
SETTINGS: dict[str, Any] = {
    "cpt": {"max_steps": FIRST, "max_length": 128, "packing": True},
    "max_steps": SECOND,
    "batch_size": 4,
    "gradient_accumulation": 2,
    "lora_dropout": 0.1,
    "warmup": 0.1,
    "patience": 5,
}
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
        work = guided_work(self.root / name, self.base, **SETTINGS)
        urls = {key: (self.folder / key).as_uri() for key in (*ATTEMPT_OUTPUTS, *RUN_OUTPUTS)}
        ticket = Ticket(
            run_id="run-1",
            attempt=1,
            name=name,
            deadline=time.time() + 3600,
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

    def code(self, work: Path, python: str) -> str:
        """What a machine's first process runs."""
        trainer = [python, "-P", "-m", "jobs.train", *CHECKPOINTS]
        return (
            "import time; from pathlib import Path; from jobs.supervisor import Supervisor;"
            f"Supervisor(time.time() + 3600, {(self.folder / 'ticket.json').as_uri()!r}, Path({str(work)!r}),"
            f" {trainer!r}).run()"
        )

    def start(self, work: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", self.code(work, sys.executable)],
            env={**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def wait_for_step(work: Path, beyond: int) -> int:
    """The step of a checkpoint on the machine's disk, once there is one beyond that step."""
    give_up = time.monotonic() + 240
    while time.monotonic() < give_up:
        if (found := sealed(work / FOLDER)) and found[0].step > beyond:
            return found[0].step
        time.sleep(0.01)
    raise AssertionError(f"no checkpoint beyond step {beyond}: {(work / 'train.log').read_text()[-3000:]}")


def trainer_of(process: subprocess.Popen[str]) -> psutil.Process:
    (child,) = psutil.Process(process.pid).children()
    return child


@pytest.fixture(scope="module")
def unbroken(demo_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = guided_work(tmp_path_factory.mktemp("unbroken") / "work", demo_base, **SETTINGS)
    assert run_trainer(work).returncode == 0
    # Over before the first was due, but for the one between the stages.
    assert [checkpoint.step for checkpoint in sealed(work / FOLDER)] == [FIRST]
    return work


class Breaker:
    """Breaks a run off in one way after the other, and starts it again. ``left``: the step of what each left behind."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.machines = self.left = 0
        self.start(anew=True)

    def start(self, anew: bool) -> None:
        """On another machine, or on the one that there is."""
        if anew:
            self.machines += 1
            self.work = self.store.machine(f"machine-{self.machines}")
        self.process = self.store.start(self.work)

    def after(self, point: int) -> None:
        """Wait until the trainer that runs now has saved a checkpoint, behind that step."""
        wait_for_step(self.work, max(point, self.left))
        assert not self.store.has(RESULT), "the run ended before it was broken off"

    def gone(self, trainer: psutil.Process) -> None:
        psutil.wait_procs([trainer], timeout=60)
        assert not trainer.is_running(), "a trainer without a supervisor keeps no deadline"
        self.left = sealed(self.work / FOLDER)[0].step

    def taken_away(self) -> None:
        trainer = trainer_of(self.process)
        self.process.send_signal(signal.SIGTERM)
        said, _ = self.process.communicate(timeout=240)
        assert "takes this machine away" in said
        assert not self.store.has(OUTCOME)
        self.gone(trainer)
        assert self.store.kept_step() == self.left
        self.start(anew=True)

    def trainer_killed(self) -> None:
        trainer = trainer_of(self.process)
        trainer.kill()
        self.gone(trainer)

    def supervisor_killed(self) -> None:
        trainer = trainer_of(self.process)
        self.process.kill()
        self.process.communicate()
        self.gone(trainer)
        self.start(anew=False)

    def restarted(self) -> None:
        trainer = trainer_of(self.process)
        for member in (psutil.Process(self.process.pid), trainer):
            member.kill()
        self.process.communicate()
        self.gone(trainer)
        self.start(anew=False)

    def finish(self) -> str:
        said, _ = self.process.communicate(timeout=240)
        return said


@pytest.mark.train
@pytest.mark.timeout(900)
def test_a_run_that_is_broken_off_in_every_way_ends_with_the_same_adapter(
    unbroken: Path, demo_base: Path, tmp_path: Path
) -> None:
    draw = random.Random(SEED)
    store = Store(tmp_path, demo_base)
    breaker = Breaker(store)
    each = [breaker.taken_away, breaker.trainer_killed, breaker.supervisor_killed, breaker.restarted]
    ways = [*draw.sample(each, len(each)), draw.choice(each)]
    # One of them between the two stages, and not so late that the run could be over.
    points = sorted([FIRST - 1, *draw.sample(range(3, STEPS - 12), len(ways) - 1)])

    for way, point in zip(ways, points, strict=True):
        breaker.after(point)
        way()
    said = breaker.finish()
    result = store.json(RESULT)
    assert result["status"] == "completed", said
    assert outcome(breaker.work)["resumed_from"] == breaker.left

    with tarfile.open(store.folder / ADAPTER) as tar:
        tar.extractall(tmp_path / "home", filter="data")
    for path in sorted((unbroken / "out" / "adapter").iterdir()):
        assert (tmp_path / "home" / path.name).read_bytes() == path.read_bytes(), path.name
    assert (tmp_path / "home" / WEIGHTS).is_file()
    _told_the_same(breaker.work, unbroken)
    assert (store.folder / METRICS).read_bytes() == (breaker.work / "out" / METRICS).read_bytes()


def _told_the_same(work: Path, unbroken: Path) -> None:
    """Every step and evaluation once, with the same numbers, and the same end."""
    lines, expected = metrics(work), metrics(unbroken)
    for name in ("stage", "step", "loss", "eval_loss", "best_step", "learning_rate", "tokens", "epoch", "max_steps"):
        assert [line.get(name) for line in lines] == [line.get(name) for line in expected], name
    elapsed = [line["elapsed_s"] for line in lines if "elapsed_s" in line]
    assert elapsed == sorted(elapsed)
    found, wanted = outcome(work), outcome(unbroken)
    for name in ("train_loss", "trained_tokens", "steps_done", "adapter_sha256", "adapter_step", "reason"):
        assert found[name] == wanted[name], name
    for name in ("best_step", "validation_loss", "validation_began", "steps_done", "train_loss"):
        assert [s[name] for s in found["stages"]] == [s[name] for s in wanted["stages"]], name


@contextlib.contextmanager
def container(engine: DockerEngine, image: str, store: Store, work: Path) -> Iterator[Any]:
    """A machine that is a container; the store is a folder of this computer."""
    import docker

    client = docker.from_env()
    folders = [store.root, store.base]
    made = client.containers.run(
        image,
        ["-c", store.code(work, "python")],
        entrypoint=["python"],
        environment={"OMP_NUM_THREADS": "1"},
        volumes={str(folder): {"bind": str(folder), "mode": "rw"} for folder in folders},
        user=f"{os.getuid()}:{os.getgid()}",
        detach=True,
    )
    try:
        yield made
    finally:
        made.remove(force=True)
        client.close()


def held_at(work: Path, beyond: int) -> psutil.Process:
    """The container's trainer, held still behind a checkpoint of a step beyond that: an engine takes seconds to act."""
    wait_for_step(work, beyond)
    (trainer,) = (
        p for p in psutil.process_iter(["cmdline"]) if {"jobs.train", str(work)} <= set(p.info["cmdline"] or ())
    )
    trainer.suspend()
    return trainer


def wait_for_log(work: Path, text: str) -> None:
    give_up = time.monotonic() + 240
    while text not in (work / "train.log").read_text():
        assert time.monotonic() < give_up, (work / "train.log").read_text()[-3000:]
        time.sleep(0.05)


@pytest.mark.train
@pytest.mark.docker
@pytest.mark.timeout(900)
def test_a_container_that_is_killed_or_restarted_ends_with_the_same_adapter(
    unbroken: Path, demo_base: Path, tmp_path: Path, docker_engine: DockerEngine, train_image: str
) -> None:
    store = Store(tmp_path, demo_base)
    work = store.machine("machine")
    draw = random.Random(SEED)
    with container(docker_engine, train_image, store, work) as machine:
        held_at(work, draw.randrange(3, 12))
        machine.kill()
        machine.wait()
        left = sealed(work / FOLDER)[0].step
        machine.start()
        # ``docker restart``: SIGTERM, and the container begins again when its first process has ended.
        trainer = held_at(work, max(left, draw.randrange(16, 24)))
        with ThreadPoolExecutor() as beside:
            restarted = beside.submit(machine.restart, timeout=240)
            wait_for_log(work, "takes this machine away")
            trainer.resume()
            restarted.result()
        assert not store.has(RESULT), "the run ended before it was broken off"
        assert machine.wait(timeout=400)["StatusCode"] == 0, machine.logs().decode()[-3000:]
    assert outcome(work)["resumed_from"] > max(left, 16)
    _told_the_same(work, unbroken)


def test_a_damaged_checkpoint_is_said_and_the_one_before_it_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = train.load_spec(make_work(tmp_path / "work", "owner/none", ROWS[:2], max_steps=STEPS) / "spec.json")
    folder = tmp_path / "work" / FOLDER
    for step in (3, 5, 7):
        write_checkpoint(folder, step, spec.sha256())
    write_checkpoint(folder, 9, "0" * 64)
    (folder / "checkpoint-7" / "optimizer.pt").write_bytes(b"")
    (folder / "tmp-checkpoint-8").mkdir()
    found = find_checkpoint(folder, spec)
    assert found is not None
    assert found.step == 5
    assert "the checkpoint of step 7 is not used: the sha256 of optimizer.pt differs" in capsys.readouterr().out
    # Neither another spec's nor a half-written one stays in the way.
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-3", "checkpoint-5"]
    assert find_checkpoint(tmp_path / "nowhere", spec) is None


@pytest.mark.train
def test_a_checkpoint_that_cannot_be_saved_does_not_end_the_training(demo_base: Path, tmp_path: Path) -> None:
    work = make_work(tmp_path / "work", demo_base, ROWS[:16], max_steps=2, batch_size=2)
    (work / FOLDER).mkdir()
    (work / FOLDER / "checkpoint-1").write_text("a file where a folder should be")
    done = run_trainer(work, *CHECKPOINTS)
    assert done.returncode == 0, done.stderr
    assert "warning: no checkpoint at step 1" in done.stdout
    assert outcome(work)["status"] == "completed"
