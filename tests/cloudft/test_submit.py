"""`cloudft submit` in bad hands: a clear error, the right code, nothing started and nothing left behind."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from local.demo.demo_project import write_demo_project
from local.progress import silent
from local.project import Project
from local.runs.session import open_session, submit_lock
from tests.services.s3 import S3Server

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return write_demo_project(tmp_path / "demo", silent)


def configure(project: Project, **changes: Any) -> None:
    config = yaml.safe_load(project.config_file.read_text())
    for key, value in changes.items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) and key != "store" else value
    project.config_file.write_text(yaml.safe_dump(config))


def command(project: Project, *args: str) -> tuple[list[str], dict[str, Any]]:
    env = os.environ | {"PYTHONPATH": str(REPO)}
    return [sys.executable, "-m", "cloudft", *args], {"cwd": project.root, "env": env, "text": True}


def refused(project: Project, code: int, *args: str) -> dict[str, Any]:
    """Submit, and hold the refusal against what every refusal owes."""
    argv, options = command(project, "submit", "--json", *args)
    done = subprocess.run(argv, capture_output=True, timeout=120, **options)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    said: dict[str, Any] = json.loads(done.stderr.splitlines()[-1])
    assert "nothing was" in said["effect"]
    assert not project.runs.exists() or list(project.runs.iterdir()) == []
    return said


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"prompt": "a", "completion": "b"}\n{broken\n', "2"),
        ("", "empty"),
        ('{"question": "a"}\n', "question"),
    ],
)
def test_a_broken_data_file(project: Project, text: str, says: str) -> None:
    (project.root / "data" / "tickets.jsonl").write_text(text)
    said = refused(project, 4)
    assert "tickets.jsonl" in said["what"]
    assert says in said["what"]


def test_a_data_file_that_is_not_there(project: Project) -> None:
    configure(project, data={"path": "data/nothing.jsonl"})
    assert "nothing.jsonl" in refused(project, 5)["what"]


def test_a_schema_that_is_not_there_or_no_schema(project: Project) -> None:
    (project.root / "data" / "schema.json").write_text('{"type": 7}')
    assert "no JSON schema" in refused(project, 3)["what"]
    (project.root / "data" / "schema.json").unlink()
    assert "is not there" in refused(project, 3)["what"]


def test_a_key_to_compare_that_the_schema_lacks(project: Project) -> None:
    configure(project, task={"keys": ["category", "colour"]})
    assert "task.keys: colour" in refused(project, 3)["what"]


def test_a_base_that_is_not_there(project: Project) -> None:
    shutil.rmtree(project.root / "base")
    assert "base" in refused(project, 5)["what"]


def test_a_bucket_that_refuses_and_one_that_is_not_there(
    project: Project, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    configure(project, store={"url": "s3://no-such-bucket/x", "endpoint_url": s3_server.endpoint})
    assert "no-such-bucket" in refused(project, 7)["what"]
    configure(project, store={"url": f"s3://{s3_server.create_bucket()}/x", "endpoint_url": s3_server.endpoint})
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-and-secret")
    said = refused(project, 7)
    assert "wrong-and-secret" not in json.dumps(said)
    assert "X-Amz" not in json.dumps(said)


def test_money_and_machines_that_do_not_go_together(project: Project) -> None:
    assert "needs a training image" in refused(project, 3, "--provider", "runpod")["what"]
    configure(project, image="registry.test/x@sha256:" + "0" * 64)
    assert "cannot see the folder" in refused(project, 3, "--provider", "runpod")["what"]
    configure(project, store={"url": "s3://bucket"})
    said = refused(project, 9, "--provider", "runpod")
    assert "no budget is set" in said["what"]
    assert "--budget" in said["hint"]


def test_a_gpu_that_would_not_be_rented(project: Project) -> None:
    said = refused(project, 2, "--gpu", "H100:2")
    assert "provider local rents nothing" in said["what"]
    assert "machine.gpus" in said["hint"]


def test_a_training_that_is_too_large_for_this_computer(project: Project) -> None:
    shape = {"hidden_size": 65536, "intermediate_size": 262144, "num_hidden_layers": 160}
    path = project.root / "base" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | shape))
    configure(project, train={"lora_r": 4096})
    said = refused(project, 3)
    assert re.search(r"needs [\d,]+ GB of memory or more; this computer has \d+ GB", said["what"])
    assert "a smaller base" in said["hint"]


@pytest.mark.skipif(importlib.util.find_spec("unsloth") is not None, reason="Unsloth is installed here")
def test_unsloth_where_it_cannot_train(project: Project) -> None:
    configure(project, train={"backend": "unsloth"})
    said = refused(project, 12)
    assert "unsloth cannot be imported" in said["what"]
    assert "cloudft[unsloth]" in said["hint"]
    configure(project, store={"url": "s3://bucket"}, image="registry.test/x@sha256:" + "0" * 64, budget=5)
    said = refused(project, 3, "--provider", "runpod", "--gpu", "H100:2")
    assert "trains on one GPU" in said["what"]
    assert "--gpu H100 " in said["hint"]
    configure(project, machine={"gpus": 2})
    said = refused(project, 3, "--provider", "docker")
    assert "machine.gpus: 2: backend unsloth trains on one GPU" in said["what"]


def test_a_second_submit_at_the_same_moment(project: Project) -> None:
    with submit_lock(project):
        assert "another submit" in refused(project, 6)["what"]


def test_a_submit_that_was_killed_before_its_machine_does_not_block_the_next(project: Project) -> None:
    argv, options = command(project, "submit", "--detach")
    # Killed while it writes and uploads: no attempt was ever intended.
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    give_up = time.monotonic() + 60
    while not project.run_ids():
        assert time.monotonic() < give_up
        time.sleep(0.01)
    process.kill()
    process.wait()
    session = open_session(project, project.pick_run(None))
    for attempt in session.record().attempts:
        session.provider.terminate(attempt.name)
    assert session.observe().ended


@pytest.mark.train
def test_ctrl_c_leaves_the_training_running_and_says_so(project: Project) -> None:
    configure(project, train={"max_steps": 3000})
    argv, options = command(project, "submit")
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    assert process.stderr is not None
    line = ""
    while not line.startswith("run "):  # it has begun; what follows is the watching
        line = process.stderr.readline()
        assert line
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    session = open_session(project, project.pick_run(None))
    try:
        assert process.returncode == 130, said
        assert "goes on by itself" in said
        assert "cloudft cancel" in said
        assert "Traceback" not in said
        assert session.observe().status == "running"
        for name in ("logs", "status"):
            argv, options = command(project, name, "--follow")
            follower = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
            first = follower.stdout if name == "logs" else follower.stderr
            assert first is not None
            assert first.readline()
            follower.send_signal(signal.SIGINT)
            _, said = follower.communicate(timeout=60)
            assert follower.returncode == 130, said
            assert "goes on by itself" in said
    finally:
        argv, options = command(project, "cancel", "--now")
        subprocess.run(argv, capture_output=True, timeout=60, **options)
    assert session.observe().status == "stopped"
