"""`cloudft reproduce` and `cloudft diff` in bad hands: what is missing or was changed is named, and nothing is begun.

That a run that is reproduced has the same bytes is shown in tests/test_whole_path.py, where one is trained anyway.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloudft.cli import run as cloudft
from local.config import load_config
from local.demo.demo_project import write_demo_project
from local.files import sha256_file
from local.planning.draft import draft
from local.planning.preview import preview
from local.progress import silent
from local.project import Project, RunFolder
from local.runs.records import read_record, write_record
from local.runs.submit import write_run
from tests.doubles.runpod import BootTimes, RunpodDouble
from tests.services.s3 import S3Server

REPO = Path(__file__).resolve().parents[2]


def configure(project: Project, **changes: Any) -> None:
    config = yaml.safe_load(project.config_file.read_text()) | changes
    project.config_file.write_text(yaml.safe_dump(config))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project with a run that has ended, as far as its folder can tell; nothing was trained."""
    project = write_demo_project(tmp_path / "demo", silent)
    config = load_config(project.config_file)
    drafted = draft(project, config, silent)
    run = write_run(project, config, drafted, preview(project, drafted, silent))
    write_record(run, read_record(run).model_copy(update={"status": "completed"}), "made up")
    return project


def the_run(project: Project) -> RunFolder:
    return project.pick_run(None)


def refused(project: Project, capsys: pytest.CaptureFixture[str], code: int, *args: str) -> dict[str, Any]:
    """Reproduce, and hold the refusal against what every refusal owes."""
    before = project.run_ids()
    assert cloudft(["reproduce", before[-1], *args, "-C", str(project.root), "--json"]) == code
    said = capsys.readouterr()
    assert said.out == ""
    error: dict[str, Any] = json.loads(said.err.splitlines()[-1])
    assert "nothing was" in error["effect"]
    assert project.run_ids() == before
    return error


@pytest.mark.parametrize("name", ["train.jsonl", "holdout.jsonl", "task.json"])
def test_a_piece_that_was_changed_or_is_gone_is_named(
    project: Project, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = the_run(project).root / name
    path.write_bytes(path.read_bytes().replace(b"e", b"E", 1))
    assert name in refused(project, capsys, 11)["what"]
    path.unlink()
    assert name in refused(project, capsys, 5)["what"]


def drop_lock(project: Project) -> None:
    the_run(project).run_lock.unlink()


def damage_lock(project: Project) -> None:
    lock = the_run(project).run_lock
    lock.write_text(lock.read_text().replace('"spec_sha256"', '"spec_sha"', 1))


def drop_base(project: Project) -> None:
    shutil.rmtree(project.root / "base")


def change_base(project: Project) -> None:
    path = project.root / "base" / "generation_config.json"
    path.write_text(path.read_text().rstrip().removesuffix("}") + ', "top_k": 7}')


@pytest.mark.parametrize(
    ("harm", "code", "names"),
    [
        (drop_lock, 5, "run.lock.json"),
        (damage_lock, 11, "run.lock.json"),
        (drop_base, 5, "base"),
        (change_base, 11, "generation_config.json"),
    ],
)
def test_without_a_lock_or_its_base_nothing_is_begun(
    project: Project, harm: Callable[[Project], None], code: int, names: str, capsys: pytest.CaptureFixture[str]
) -> None:
    harm(project)
    assert names in refused(project, capsys, code)["what"]


def test_renting_asks_first_and_keeps_to_the_budget(
    project: Project, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable, value in s3_server.env().items():
        monkeypatch.setenv(variable, value)
    configure(
        project,
        image="registry.test/train@sha256:" + "0" * 64,
        store={"url": f"s3://{s3_server.create_bucket()}/x", "endpoint_url": s3_server.endpoint},
    )
    with RunpodDouble(boot=BootTimes(0.1, 0.1, 0.1)) as double:
        for gpu in double.catalog.gpus.values():
            gpu.cuda_versions = ("12.8", "13.0")
        monkeypatch.setenv("RUNPOD_API_BASE_URL", double.url)
        monkeypatch.setenv("RUNPOD_API_KEY", double.api_key)
        asked = refused(project, capsys, 2, "--provider", "runpod", "--budget", "5")
        assert "up to $5.00" in asked["what"]
        assert "--yes" in asked["hint"]
        refused(project, capsys, 9, "--provider", "runpod", "--budget", "0.01", "--yes")
        refused(project, capsys, 9, "--provider", "runpod", "--yes")
        assert double.calls_of("POST /v2/pods") == []


@pytest.mark.train
def test_ctrl_c_says_that_the_training_goes_on_and_how_to_come_to_the_comparison(project: Project) -> None:
    old = the_run(project)
    argv = [sys.executable, "-m", "cloudft"]
    options: Any = {"cwd": project.root, "env": os.environ | {"PYTHONPATH": str(REPO)}, "text": True}
    process = subprocess.Popen([*argv, "reproduce", old.run_id], stderr=subprocess.PIPE, **options)
    assert process.stderr is not None
    begun = False
    while not begun:
        line = process.stderr.readline()
        assert line
        begun = line.strip() == f"run {old.run_id} again"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    ended = subprocess.run([*argv, "cancel", "--now", "--json"], capture_output=True, timeout=60, **options)
    new = the_run(project)
    assert process.returncode == 130, said
    assert "the training goes on by itself" in said
    assert f"cloudft eval {new.run_id} && cloudft diff {old.run_id} {new.run_id}" in said
    assert new.run_id != old.run_id
    assert json.loads(ended.stdout)["data"]["run_id"] == new.run_id


def test_a_run_beside_itself_has_no_difference(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    run = the_run(project)
    assert cloudft(["diff", run.run_id, run.run_id, "-C", str(project.root), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert data["same"] is True
    assert cloudft(["diff", run.run_id, "nosuch", "-C", str(project.root)]) == 5
    assert cloudft(["diff", run.run_id, "-C", str(project.root)]) == 2


def test_the_lock_names_all_that_a_run_was_made_from(project: Project) -> None:
    run = the_run(project)
    lock = json.loads(run.run_lock.read_text())
    spec = json.loads(run.spec.read_text())
    assert lock["spec"] == spec
    assert lock["spec_sha256"] == sha256_file(run.spec)
    assert lock["holdout"]["sha256"] == sha256_file(run.holdout) == spec["data"]["holdout_sha256"]
    assert lock["task_sha256"] == sha256_file(run.task)
    assert lock["source"]["sha256"] == sha256_file(project.root / "data" / "tickets.jsonl")
    assert lock["source"]["rows"] == 700
    for name in ("torch", "transformers", "trl", "peft"):
        assert lock["python"]["packages"][name]
    # Nothing of the user's environment or accounts is in it.
    text = run.run_lock.read_text()
    assert str(Path.home()) not in text
    assert str(project.root) not in text
