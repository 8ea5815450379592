"""What comes home beside the adapter, and what it teaches for the next run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs.bundle import pack
from jobs.spec import Data, FileRef, RunSpec
from jobs.ticket import AUDIT, HEARTBEAT, METRICS, RESULT, TRACKING
from local.base import lock_base
from local.planning.measured import read_speeds
from local.progress import silent
from local.runs.pull import pull
from local.runs.records import attempt_prefix, read_spec, run_prefix, write_record
from local.runs.session import Session
from local.runs.watch import draw_loss, follow, look
from tests.jobs.train_fixtures import SETTINGS, Stage
from tests.local.quantize_fixtures import tiny_base
from tests.local.run_fixtures import RUN_ID, make_project, make_run, put_adapter

__all__ = ["tiny_base"]  # a fixture

STEPS = [
    {"stage": "1-sft", "step": n, "max_steps": 40, "loss": 2 / n, "tokens": 500 * n, "elapsed_s": 0.5 * n, "eta_s": 1.0}
    for n in range(1, 41)
]
GPU = {"name": "NVIDIA A10G", "cards": 1, "utilisation": 97.0, "memory_bytes": 9 * 10**9, "peak_memory_bytes": 10**10}


@pytest.fixture
def session(tmp_path: Path, tiny_base: Path) -> Session:
    session = make_run(make_project(tmp_path / "project"))
    shutil.copytree(tiny_base, session.project.root / "base")
    digest = "0" * 64
    spec = RunSpec(
        run_id=RUN_ID,
        project="tickets",
        base=lock_base("./base", None, session.project.root),
        data=Data(
            train=FileRef(path="train.jsonl", sha256=digest, bytes=1),
            train_rows=1,
            holdout_sha256=digest,
            holdout_rows=1,
            split_seed=1,
        ),
        stages=(Stage(**{**SETTINGS, "max_steps": 40, "gradient_accumulation": 2}),),
        max_hours=1,
        seed=1,
    )
    session.run.spec.write_bytes(spec.canonical())
    write_record(session.run, session.record().model_copy(update={"spec_sha256": spec.sha256()}), "test")
    return session


def ended(session: Session, scratch: Path, steps: list[dict[str, Any]] = STEPS, **more: Any) -> None:
    """A run that has ended well, with all that a machine tells."""
    result = put_adapter(session, scratch) | {
        "gpu": GPU,
        "trainer": {"phases": {"load": 8.0, "measure": 5.0, "train": 100.0}},
        **more,
    }
    result |= {"started_at": session.record().attempt.created_at + 60, "phases": {"fetch": 30.0, "train": 113.0}}
    prefix = attempt_prefix(RUN_ID, 1)
    session.store.put_bytes(f"{run_prefix(RUN_ID)}/{RESULT}", json.dumps(result).encode())
    session.store.put_bytes(f"{prefix}/{METRICS}", "".join(json.dumps(line) + "\n" for line in steps).encode())
    session.store.put_bytes(f"{prefix}/{AUDIT}", b'{"where": "machine"}')
    folder = scratch / "tracking" / "tensorboard"
    folder.mkdir(parents=True)
    (folder / "events").write_text("events")
    session.store.put_file(f"{prefix}/{TRACKING}", pack(folder.parent, scratch / TRACKING).path)


def test_pull_brings_picture_audit_and_trackers_files(session: Session, tmp_path: Path) -> None:
    ended(session, tmp_path)
    (session.run.root / AUDIT).write_text('{"where": "home"}')
    pull(session, silent)
    root = session.run.root
    assert (root / "tracking/tensorboard/events").read_text() == "events"
    assert json.loads((root / AUDIT).read_text()) == {"where": "machine"}
    picture = (root / "loss.svg").read_text()
    assert RUN_ID in picture
    assert "./base, sft lora, completed" in picture
    pull(session, silent)
    assert [p.name for p in root.iterdir() if p.name.endswith(".part")] == []


def test_a_run_that_ended_teaches_its_speed_for_the_next(session: Session, tmp_path: Path) -> None:
    ended(session, tmp_path)
    last = list(follow(session))[-1]
    assert last.status == "completed"
    (speed,) = read_speeds()
    assert (speed.run_id, speed.gpu, speed.base, speed.method) == (RUN_ID, "A10G", "./base", "lora")
    # Two passes a step, half a second and 500 tokens each step.
    assert (speed.seconds, speed.tokens) == pytest.approx((0.25, 250))
    assert speed.tokens_per_second == pytest.approx(1000)
    assert (speed.peak_bytes, speed.before) == (10**10, pytest.approx(98))
    pull(session, silent)
    assert len(read_speeds()) == 1


def test_a_speed_is_that_of_one_stage_and_of_no_other(session: Session, tmp_path: Path) -> None:
    """Stages differ in their rows, and the gate measures between them."""
    spec = read_spec(session.run)
    quick, slow = spec.stages[0], spec.stages[0].model_copy(update={"batch_size": 3, "gradient_accumulation": 1})
    several = spec.model_copy(update={"stages": (quick, slow)})
    session.run.spec.write_bytes(several.canonical())
    write_record(session.run, session.record().model_copy(update={"spec_sha256": several.sha256()}), "test")
    # Too few steps of the first, then a minute of measuring, then steps of two seconds and 900 tokens.
    later = [
        {"stage": "2-sft", "step": 5 + n, "loss": 1.0, "tokens": 2500 + 900 * n, "elapsed_s": 60 + 2.0 * n}
        for n in range(1, 31)
    ]
    ended(session, tmp_path, steps=[*STEPS[:5], *later])
    pull(session, silent)
    (speed,) = read_speeds()
    assert (speed.rows, speed.seconds, speed.tokens) == pytest.approx((3, 2.0, 900))
    assert speed.peak_bytes is None


def test_a_result_that_is_the_base_is_not_called_an_adapter_that_survives(session: Session, tmp_path: Path) -> None:
    ended(session, tmp_path, adapter_step=0)
    assert list(follow(session))[-1].survives == "the adapter in the store changes nothing: no step was kept"


def test_a_card_that_is_not_known_teaches_nothing(session: Session, tmp_path: Path) -> None:
    ended(session, tmp_path, gpu={})
    pull(session, silent)
    assert read_speeds() == ()
    assert (session.run.root / "loss.svg").is_file()


def test_damaged_tracking_files_do_not_stop_a_pull(session: Session, tmp_path: Path) -> None:
    ended(session, tmp_path)
    session.store.put_bytes(f"{attempt_prefix(RUN_ID, 1)}/{TRACKING}", b"no tar")
    assert pull(session, silent).complete
    assert not (session.run.root / "tracking").exists()


def test_status_draws_what_there_is_so_far(session: Session) -> None:
    assert draw_loss(session) is None
    prefix = attempt_prefix(RUN_ID, 1)
    session.store.put_bytes(f"{prefix}/{METRICS}", json.dumps(STEPS[0]).encode() + b"\n")
    beat = {"at": 1.0, "phase": "train", "progress": STEPS[0], "losses": [2.0, 1.0], "gpu": GPU}
    session.store.put_bytes(f"{prefix}/{HEARTBEAT}", json.dumps(beat).encode())
    path = draw_loss(session)
    assert path == session.run.root / "loss.svg"
    view = look(session)
    assert (view.losses, view.gpu["utilisation"]) == ((2.0, 1.0), 97.0)
    assert view.as_dict()["tokens_per_second"] == 1000
