"""Docker Compose: the real v2 binary, as the plugin of a private docker configuration."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.services.engine import DockerEngine
from tests.services.host import tool


@dataclass(frozen=True)
class Compose:
    """``docker compose`` on the tests' engine, with the classic builder."""

    engine: DockerEngine

    def run(
        self, folder: Path, *args: str, env: Mapping[str, str] | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """``docker compose ARGS`` in a project's folder; a failure is an AssertionError if ``check``."""
        command = ["compose", "--project-directory", str(folder), "-f", str(folder / "compose.yaml")]
        return self.engine.run(*command, *args, check=check, env={"DOCKER_BUILDKIT": "0", **(env or {})})

    @contextlib.contextmanager
    def project(self, folder: Path, *, env: Mapping[str, str] | None = None) -> Iterator[None]:
        """At the end of the block nothing of that folder's project is left: container, network or volume."""
        try:
            yield
        finally:
            self.run(folder, "down", "--volumes", "--remove-orphans", "--timeout", "5", env=env, check=False)


@pytest.fixture(scope="session")
def compose(docker_engine: DockerEngine) -> Compose:
    """Compose, ready to use."""
    plugins = docker_engine.config / "cli-plugins"
    plugins.mkdir(exist_ok=True)
    plugin = plugins / "docker-compose"
    if not plugin.exists():
        plugin.symlink_to(tool("docker-compose"))
    found = Compose(docker_engine)
    docker_engine.run("compose", "version")
    return found
