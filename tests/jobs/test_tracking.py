from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import tracking
from jobs.spec import Base, Data, FileRef, RunSpec
from jobs.trackers import TRACKERS, Tracking
from tests.jobs.train_fixtures import REPO, SETTINGS, Stage

STEPS = 5


def make_spec(*names: str, **environment: str) -> RunSpec:
    digest = "0" * 64
    return RunSpec(
        run_id="20261120-101010-abcd",
        project="tickets",
        base=Base(source="folder", id="./base", revision=digest),
        data=Data(
            train=FileRef(path="train.jsonl", sha256=digest, bytes=1),
            train_rows=1,
            holdout_sha256=digest,
            holdout_rows=1,
            split_seed=1,
        ),
        stages=(Stage(**SETTINGS),),
        tracking=Tracking(report_to=names, environment=environment),
        max_hours=1,
        seed=1,
    )


@pytest.fixture(autouse=True)
def _same_environment_afterwards() -> Iterator[None]:
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


def train(folder: Path, callbacks: list[Any]) -> list[float]:
    """A real training of a very small model by transformers' own trainer; its losses."""
    import torch
    from transformers import Trainer, TrainingArguments

    class Line(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: Any, y: Any) -> dict[str, Any]:
            return {"loss": ((self.weight * x - y) ** 2).mean()}

    torch.manual_seed(0)
    args = TrainingArguments(
        output_dir=str(folder / "scratch"),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        learning_rate=0.1,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    rows = [{"x": float(i), "y": 2.0 * i} for i in range(1, 5)]
    trainer = Trainer(model=Line(), args=args, train_dataset=rows, callbacks=callbacks)
    trainer.train()
    tracking.settle()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_tensorboard_and_trackio_get_every_loss(tmp_path: Path) -> None:
    spec = make_spec("tensorboard", "trackio")
    losses = train(tmp_path, tracking.tracking_callbacks(spec, tmp_path, "1-sft"))
    assert len(losses) == STEPS
    assert _tensorboard(tmp_path / "tracking" / "tensorboard" / "1-sft") == pytest.approx(losses)
    (database,) = (tmp_path / "tracking" / "trackio").glob("tickets*.db")
    with sqlite3.connect(database) as opened:
        rows = opened.execute("SELECT run_name, metrics FROM metrics ORDER BY step").fetchall()
    logged = [json.loads(metrics) for _, metrics in rows]
    assert {name for name, _ in rows} == {spec.run_id}
    assert [line["train/loss"] for line in logged if "train/loss" in line] == pytest.approx(losses)


def _tensorboard(folder: Path) -> list[float]:
    """The losses of an event file: records of (length, its checksum, payload, its checksum)."""
    import struct

    from tensorboardX.proto.event_pb2 import Event

    (path,) = folder.glob("events.out.tfevents.*")
    raw, at, losses = path.read_bytes(), 0, []
    while at < len(raw):
        (length,) = struct.unpack("<Q", raw[at : at + 8])
        event = Event.FromString(raw[at + 12 : at + 12 + length])
        losses += [value.simple_value for value in event.summary.value if value.tag == "train/loss"]
        at += 16 + length
    return losses


def test_a_tracker_that_is_not_there_costs_no_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callbacks = tracking.tracking_callbacks(make_spec("comet_ml"), tmp_path, "1-sft")
    assert len(train(tmp_path, callbacks)) == STEPS
    assert "comet_ml" in capsys.readouterr().out


class Broken:
    """A tracker's callback whose service is away."""

    calls = 0

    def __getattr__(self, event: str) -> Any:
        def fail(*_: Any, **__: Any) -> None:
            Broken.calls += 1
            raise ConnectionError("no route to the tracker\nsecond line")

        return fail


def test_a_tracker_that_fails_is_let_go_and_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers.integrations import integration_utils

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "mlflow", Broken)
    losses = train(tmp_path, tracking.tracking_callbacks(make_spec("mlflow"), tmp_path, "1-sft"))
    assert len(losses) == STEPS
    assert Broken.calls == tracking.FAILURES
    assert capsys.readouterr().out.count("ConnectionError: no route to the tracker\n") == 1


def test_a_tracker_that_hangs_does_not_hold_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers.integrations import integration_utils

    release = threading.Event()

    class Hanging:
        def __getattr__(self, event: str) -> Any:
            return lambda *_, **__: release.wait(60)

    monkeypatch.setattr(tracking, "PATIENCE", 0.1)
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "mlflow", Hanging)
    try:
        assert len(train(tmp_path, tracking.tracking_callbacks(make_spec("mlflow"), tmp_path, "1-sft"))) == STEPS
        assert not release.is_set()
        assert "mlflow has not taken everything" in capsys.readouterr().out
    finally:
        release.set()


def test_settings_of_the_user_come_first(tmp_path: Path) -> None:
    spec = make_spec("mlflow", MLFLOW_TRACKING_URI="http://127.0.0.1:5000", MLFLOW_EXPERIMENT_NAME="mine")
    tracking.set_environment(spec, tmp_path, "1-sft")
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:5000"
    assert os.environ["MLFLOW_EXPERIMENT_NAME"] == "mine"
    assert os.environ["WANDB_PROJECT"] == "tickets"


ENDLESS = """
import atexit, threading, time
from jobs import environment, tracking
environment.ENDING_PATIENCE = 0.2
{begun}
{hangs}
environment.end_process(3)
"""


@pytest.mark.parametrize(
    ("begun", "hangs"),
    [
        ("tracking._workers.append(None)", "threading.Thread(target=time.sleep, args=(600,)).start()"),
        ("tracking._workers.append(None)", "atexit.register(time.sleep, 600)"),
        ("", "atexit.register(time.sleep, 600)"),
    ],
)
def test_a_library_that_knows_no_end_does_not_hold_the_machine(begun: str, hangs: str) -> None:
    code = ENDLESS.format(begun=begun, hangs=hangs)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO, timeout=60)
    assert done.returncode == 3
    assert "nothing waits for it any longer" in done.stdout


def test_a_run_without_trackers_imports_none() -> None:
    code = "import sys, jobs.stages, jobs.supervisor; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["transformers", *(m for t in TRACKERS.values() for m in t.modules)]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, cwd=REPO, check=True)
    assert done.stdout.strip() == "[]"
