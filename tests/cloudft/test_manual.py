"""`cloudft submit --provider manual`: one command, run here and in a container that has none of our code."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.start import LIBRARIES
from local.demo_project import write_demo_project
from local.manual import pack_code
from local.progress import silent
from local.project import Project
from tests.conftest import REPO
from tests.services.engine import DockerEngine
from tests.services.s3 import S3Server
from tests.test_whole_path import cloudft


@pytest.fixture
def project(tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Project:
    project = write_demo_project(tmp_path / "demo", silent)
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    config = yaml.safe_load(project.config_file.read_text())
    config["store"] = {"url": f"s3://{s3_server.create_bucket()}/x", "endpoint_url": s3_server.endpoint}
    config["train"]["max_steps"] = 4
    project.config_file.write_text(yaml.safe_dump(config))
    return project


def ends_with_an_adapter(project: Project, submitted: dict[str, Any], s3_server: S3Server) -> None:
    ended = cloudft(project, "status", "--follow")
    assert (ended["run_id"], ended["status"]) == (submitted["run_id"], "completed"), ended
    assert cloudft(project, "pull")["complete"] is True


@pytest.mark.train
def test_the_command_trains_here(project: Project, s3_server: S3Server, tmp_path: Path) -> None:
    submitted = cloudft(project, "submit", "--provider", "manual")
    command = submitted["command"]
    assert "\n" not in command
    assert s3_server.secret_key not in command
    # A machine that knows nothing of ours: no code, no variable, another folder.
    env = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}", "HOME": str(tmp_path)}
    done = subprocess.run(command, shell=True, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "X-Amz-Signature" not in done.stdout + done.stderr
    ends_with_an_adapter(project, submitted, s3_server)
    assert not list((project.state / "manual").glob("*.json"))


@pytest.mark.train
@pytest.mark.docker
def test_the_command_trains_in_a_container_without_our_code(
    project: Project, s3_server: S3Server, docker_engine: DockerEngine, train_image: str
) -> None:
    """The libraries are there, as in a notebook; what is ours is hidden, and comes with the command alone."""
    submitted = cloudft(project, "submit", "--provider", "manual")
    bare = ["--rm", "--tmpfs", "/opt/cloudft:exec", "-e", "PYTHONPATH=", "-e", "CLOUDFT_WORK=", "-w", "/tmp"]
    inside = f"ls -A /opt/cloudft; {submitted['command']}; cat /proc/[0-9]*/cmdline | tr '\\0' ' '"
    done = docker_engine.run("run", *bare, "--entrypoint", "sh", train_image, "-c", inside, check=False)
    assert "supervisor: end: completed" in done.stdout, done.stdout + done.stderr
    ends_with_an_adapter(project, submitted, s3_server)


def test_a_cancel_reaches_it_through_the_store(project: Project) -> None:
    cloudft(project, "submit", "--provider", "manual")
    status = cloudft(project, "status")
    assert (status["status"], status["billed_now"]) == ("running", False)
    ended = cloudft(project, "cancel", "--now")
    assert ended["status"] == "stopped"


def test_it_needs_a_bucket(project: Project) -> None:
    config = yaml.safe_load(project.config_file.read_text()) | {"store": "./store"}
    project.config_file.write_text(yaml.safe_dump(config))
    said = cloudft(project, "submit", "--provider", "manual", code=3)
    assert "store" in said["what"]


def test_the_whole_package_travels() -> None:
    """Whatever the package holds: a file that is missing there fails on a machine that somebody pays for."""
    tracked = subprocess.run(["git", "ls-files", "jobs"], cwd=REPO, capture_output=True, text=True, check=True)
    packed = zipfile.ZipFile(io.BytesIO(pack_code())).namelist()
    assert {name for name in packed if name.startswith("jobs/")} == set(tracked.stdout.split())


def test_the_script_is_plain_python_and_the_code_packs_the_same_twice() -> None:
    assert pack_code() == pack_code()
    assert "pydantic" in LIBRARIES
    source = (Path(__file__).resolve().parents[2] / "jobs" / "start.py").read_text()
    isolated = [sys.executable, "-I", "-c", f"exec({source!r}); print(start.__name__)"]
    assert subprocess.run(isolated, capture_output=True, text=True, check=True).stdout == "start\n"
