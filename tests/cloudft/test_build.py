"""``cloudft build`` as it is typed: what it prints, how it ends, and what Ctrl-C leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cloudft.cli import run
from tests.images.build_fixtures import logged_in, small
from tests.services.engine import DockerEngine
from tests.services.host import REPO, end
from tests.services.registry import RegistryServer

__all__ = ["logged_in", "small"]


@pytest.fixture
def folder(tmp_path: Path, registry: RegistryServer, base_image: str) -> Path:
    """A project with a repository of its own."""
    root = tmp_path / "project"
    root.mkdir()
    name = tmp_path.name.replace("_", "-").strip("-")
    config = {
        "project": "tickets",
        "base": "org/model",
        "data": {"path": "d.jsonl"},
        "task": {"schema": "s.json"},
        "provider": "runpod",
        "build": {"repository": f"{registry.host}/me/{name}", "base_image": base_image},
    }
    (root / "cloudft.yaml").write_text(f"# mine\n{yaml.safe_dump(config)}")
    return root


@pytest.mark.usefixtures("small", "logged_in")
def test_what_it_prints(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["build", "-C", str(folder)]) == 0
    said = capsys.readouterr()
    pinned = yaml.safe_load((folder / "cloudft.yaml").read_text())["image"]
    assert said.out.startswith(f"image {pinned}\n")
    for part in ("(built; pushed)", "Python 3.", "packages, linux/amd64", "to pull", "image.lock.json, cloudft.yaml"):
        assert part in said.out
    assert "build: step 1 of " in said.err
    assert "push" in said.err
    assert "cloudft submit" in said.err

    assert run(["build", "--json", "-C", str(folder)]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    data = json.loads(said.out)["data"]
    assert (data["image"], data["built"], data["pushed"], data["written"]) == (pinned, False, False, [])
    assert data == {**json.loads((folder / "image.lock.json").read_text()), **data}

    assert run(["build", "-C", str(folder)]) == 0
    assert "(nothing changed, not built again; in the registry already)" in capsys.readouterr().out

    assert run(["build", "--no-push", "-C", str(folder)]) == 0
    said = capsys.readouterr()
    assert "not pushed" in said.out
    assert "pushes it, so that a rented machine can pull it" in said.err


@pytest.mark.usefixtures("small")
def test_how_it_refuses(
    folder: Path, registry: RegistryServer, logged_in: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "cloudft.yaml").read_text()
    registry.config(logged_in, password="wrong")
    assert run(["build", "-C", str(folder)]) == 8
    said = capsys.readouterr().err
    assert "nothing was rented, and cloudft.yaml is as it was" in said
    assert f"next: log in with an account that may do that:  docker login {registry.host}" in said
    assert run(["build", "-C", str(folder), "--platform", "windows"]) == 2
    assert "--platform" in capsys.readouterr().err
    config = yaml.safe_load(before)
    (folder / "cloudft.yaml").write_text(yaml.safe_dump({**config, "build": {}}))
    assert run(["build", "-C", str(folder), "--json"]) == 3
    assert "build.repository is not set" in json.loads(capsys.readouterr().err)["what"]
    (folder / "cloudft.yaml").write_text(yaml.safe_dump({**config, "build": {"repositry": "x/y"}}))
    assert run(["build", "-C", str(folder)]) == 3
    assert "build.repositry: unknown key; did you mean 'repository'?" in capsys.readouterr().err
    assert not (folder / "image.lock.json").exists()


def test_ctrl_c_ends_the_build_and_says_what_is_left(
    folder: Path, docker_engine: DockerEngine, registry: RegistryServer, tmp_path: Path
) -> None:
    root, marker = tmp_path / "site-packages", f"marker-{tmp_path.name}"
    for package in ("cloudft", "images", "infra", "jobs", "local"):
        shutil.copytree(REPO / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    recipe = (REPO / "Dockerfile.train").read_text()
    (root / "Dockerfile.train").write_text(recipe.replace("COPY jobs/", f"RUN echo {marker} && sleep 600\nCOPY jobs/"))
    (root / "images" / "train-requirements.txt").write_text("-c train-constraints.txt\nfilelock\n")
    before = (folder / "cloudft.yaml").read_text()
    login = registry.config(tmp_path / "docker-config")
    env = {**os.environ, "PYTHONPATH": str(root), "DOCKER_CONFIG": str(login)}
    command = [sys.executable, "-m", "cloudft", "build", "-C", str(folder)]
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    try:
        assert in_time(lambda: marker in containers(docker_engine) or process.poll() is not None)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        end(process)
    assert process.returncode == 130, err
    assert out == ""
    assert "nothing was rented, and cloudft.yaml is as it was; no half image is in the registry" in err
    assert "finished steps and layers are kept" in err
    assert "Traceback" not in err
    assert in_time(lambda: marker not in containers(docker_engine))
    assert [path.name for path in folder.iterdir()] == ["cloudft.yaml"]
    assert (folder / "cloudft.yaml").read_text() == before


def containers(engine: DockerEngine) -> str:
    return engine.run("ps", "-a", "--no-trunc", "--format", "{{.Command}}").stdout


def in_time(done: Callable[[], bool]) -> bool:
    """Whether it comes true within two minutes."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if done():
            return True
        time.sleep(0.2)
    return False
