"""Builds that fail or are interrupted: each says why, and leaves nothing half-made."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from cloudft.errors import EnvironmentProblem
from images.build import Plan, build_image
from images.extras import Extras, collect
from tests.images.build_fixtures import (
    Recorder,
    build,
    make_image,
    refused,
    repository_of,
)
from tests.services.engine import DockerEngine
from tests.services.host import unavailable
from tests.services.registry import RegistryServer


def running(engine: DockerEngine, marker: str) -> list[str]:
    listed = engine.run("ps", "-a", "--no-trunc", "--format", "{{.ID}} {{.Command}}").stdout.splitlines()
    return [line for line in listed if marker in line]


def gone(engine: DockerEngine, marker: str) -> bool:
    """Whether the container of that command ends; the engine takes a moment."""
    command = [
        "timeout",
        "60",
        "sh",
        "-c",
        f"while {engine.cli} ps -a --no-trunc | grep -q {marker}; do sleep .2; done",
    ]
    return subprocess.run(command, env=engine.env(), check=False).returncode == 0


def test_ctrl_c_in_a_build_ends_its_container_and_leaves_no_image(
    plan: Plan, docker_engine: DockerEngine, small: Path, tmp_path: Path, registry: RegistryServer
) -> None:
    marker = f"build-marker-{tmp_path.name}"
    dockerfile = small / "images" / "files" / "Dockerfile.train"
    text = dockerfile.read_text()
    dockerfile.write_text(text.replace("COPY jobs/", f"RUN echo {marker} && sleep 600\nCOPY jobs/"))
    progress = Recorder(interrupt=lambda what, done, note: what == "build" and note.endswith(f": {marker}"))
    with pytest.raises(KeyboardInterrupt):
        build(plan, progress)
    assert gone(docker_engine, marker), running(docker_engine, marker)
    assert f"{plan.repository}" not in docker_engine.run("image", "ls", "--format", "{{.Repository}}").stdout
    assert registry.tags(repository_of(plan)) == []
    # What was finished is kept: the next build begins after the libraries.
    dockerfile.write_text(text)
    again = Recorder()
    assert build(plan, again).built
    assert not any("Collecting filelock" in note for *_, note in again.of("build"))


def test_ctrl_c_in_a_push_leaves_no_half_image_and_the_next_one_finishes_it(
    plan: Plan, registry: RegistryServer, fresh_layer: Extras
) -> None:
    plan = replace(plan, extras=fresh_layer)

    def first_bytes(what: str, done: float, note: str) -> bool:
        return what == "push" and done > 0

    with pytest.raises(KeyboardInterrupt):
        build(plan, Recorder(interrupt=first_bytes))
    assert registry.tags(repository_of(plan)) == []
    built = build(plan)
    assert (built.built, built.pushed) == (False, True)
    assert registry.tags(repository_of(plan)) == [built.lock.content[:16]]


def test_a_full_disk_is_named(plan: Plan, small: Path) -> None:
    dockerfile = small / "images" / "files" / "Dockerfile.train"
    # The one small disk in a build: 64 MB of shared memory.
    fill = "RUN dd if=/dev/zero of=/dev/shm/x bs=1M count=100\nCOPY jobs/"
    dockerfile.write_text(dockerfile.read_text().replace("COPY jobs/", fill))
    error = refused(plan, EnvironmentProblem)
    assert "disk is full" in error.what
    assert "docker system df" in error.hint


def test_a_step_that_fails_shows_what_it_printed(plan: Plan, small: Path) -> None:
    dockerfile = small / "images" / "files" / "Dockerfile.train"
    dockerfile.write_text(dockerfile.read_text().replace("COPY jobs/", "RUN echo because-of-this; exit 3\nCOPY jobs/"))
    error = refused(plan, EnvironmentProblem)
    assert "because-of-this" in error.what
    assert "RUN echo because-of-this" in error.what


def test_an_index_that_cannot_be_reached_is_no_fault_of_the_requirements(
    plan: Plan, project: Path, docker_engine: DockerEngine, base_image: str, tmp_path: Path
) -> None:
    (project / "needs.txt").write_text("--index-url http://127.0.0.1:9/simple\ncloudft-nonesuch\n")
    tag = f"cloudft-test-base:{tmp_path.name.replace('_', '-')}"
    make_image(docker_engine, tmp_path / "base", tag, f"FROM {base_image}\nENV PIP_RETRIES=1\n")
    try:
        extras = collect(project, ["needs.txt"], [])
        error = refused(replace(plan, base_image=tag, extras=extras), EnvironmentProblem)
    finally:
        docker_engine.run("rmi", "-f", tag)
    assert error.what.startswith("build.requirements")
    assert "cannot reach its package index" in error.what


class EngineProxy:
    """The engine behind a socket that can be cut, as when somebody restarts Docker."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: list[socket.socket] = []
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def cut(self) -> None:
        for sock in (self._server, *self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect("/var/run/docker.sock")
                self._open += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._copy, args=(source, target), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("moment", ["build", "push"])
def test_an_engine_that_goes_away_is_named(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, fresh_layer: Extras, registry: RegistryServer, moment: str
) -> None:
    if not Path("/var/run/docker.sock").is_socket():
        unavailable("the engine's socket in its usual place")
    with tempfile.TemporaryDirectory() as folder:
        proxy = EngineProxy(Path(folder) / "docker.sock")
        monkeypatch.setenv("DOCKER_HOST", f"unix://{proxy.path}")

        def cut(what: str, done: float, note: str) -> bool:
            if what == moment:
                proxy.cut()
            return False

        with pytest.raises(EnvironmentProblem) as caught:
            build_image(replace(plan, extras=fresh_layer), Recorder(interrupt=cut))
    assert "engine" in caught.value.what
    assert "nothing was rented" in caught.value.effect
    assert "docker info" in caught.value.hint
    assert registry.tags(repository_of(plan)) == []
