"""A Docker engine that runs on this computer, through its own command line, and the base image of all builds."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.services.host import ENVIRONMENT, REPO, bridge_address, unavailable

DEFAULT_BASE = "cloudft-base:local"
SECONDS = 1000


@dataclass(frozen=True)
class DockerEngine:
    """The engine. ``address`` is where its containers reach this computer.

    ``config`` is a private DOCKER_CONFIG: a developer's logins, contexts and plugins stay out of the tests.
    """

    cli: str
    config: Path
    address: str

    def env(self) -> dict[str, str]:
        """The environment in which ``docker`` talks to this engine."""
        return {**ENVIRONMENT, "DOCKER_CONFIG": str(self.config)}

    def run(
        self,
        *args: str,
        check: bool = True,
        cli: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = SECONDS,
    ) -> subprocess.CompletedProcess[str]:
        """``docker ARGS``. With ``check``, a failure is an AssertionError with the end of what it printed."""
        done = subprocess.run(
            [cli or self.cli, *args],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env={**self.env(), **(env or {})},
            timeout=timeout,
        )
        if check and done.returncode != 0:
            shown = (done.stdout + done.stderr)[-4000:]
            raise AssertionError(f"docker {' '.join(args)} ended with {done.returncode}:\n{shown}")
        return done

    def inspect(self, image: str) -> dict[str, Any] | None:
        """What the engine knows of an image; None when it has no such image."""
        done = self.run("image", "inspect", image, check=False)
        if done.returncode != 0:
            return None
        found: dict[str, Any] = json.loads(done.stdout)[0]
        return found

    def build(
        self,
        context: Path,
        tag: str,
        *,
        dockerfile: str,
        args: Mapping[str, str],
        buildkit: bool = False,
    ) -> dict[str, Any]:
        """Build ``context`` with the classic builder, or with BuildKit, and return what the image is."""
        command = ["build", "-f", str(context / dockerfile), "-t", tag]
        for name, value in args.items():
            command += ["--build-arg", f"{name}={value}"]
        cli = buildkit_cli() if buildkit else None
        self.run(*command, str(context), cli=cli, env={"DOCKER_BUILDKIT": "1" if buildkit else "0"})
        image = self.inspect(tag)
        assert image is not None
        return image


def buildkit_cli() -> str:
    """A ``docker`` with BuildKit: the older ones have it built in, the newer ones need the plugin buildx."""
    folders = ENVIRONMENT.get("PATH", "").split(os.pathsep)
    commands = filter(None, (shutil.which("docker", path=folder) for folder in folders))
    found = next((cli for cli in commands if _has_buildkit(cli)), None)
    if found is None:
        unavailable("a docker command with BuildKit (Debian: docker.io, or docker-buildx beside it)")
    return found


def _has_buildkit(cli: str) -> bool:
    version = subprocess.run([cli, "--version"], capture_output=True, text=True, check=False).stdout
    major = re.search(r"version (\d+)", version)
    if major and int(major[1]) < 23:
        return True
    return subprocess.run([cli, "buildx", "version"], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="session")
def docker_engine(tmp_path_factory: pytest.TempPathFactory) -> DockerEngine:
    """The engine that ``docker`` reaches by default."""
    cli = shutil.which("docker", path=ENVIRONMENT.get("PATH"))
    if cli is None:
        unavailable("the docker command")
    config = tmp_path_factory.mktemp("docker-config")
    (config / "config.json").write_text("{}")
    engine = DockerEngine(cli, config, bridge_address() or "")
    if engine.run("info", check=False).returncode != 0:
        unavailable("a Docker engine (docker info fails)")
    if not engine.address:
        unavailable("the bridge docker0: the engine must run on this computer")
    return engine


@pytest.fixture(scope="session")
def base_image(docker_engine: DockerEngine) -> str:
    """An image with Python and pip that stands in for ``python:3.11-slim``.

    CLOUDFT_TEST_BASE_IMAGE names one; else it is made of this computer's own packages, on Debian as root.
    """
    named = ENVIRONMENT.get("CLOUDFT_TEST_BASE_IMAGE", DEFAULT_BASE)
    if docker_engine.inspect(named) is None:
        script = REPO / ".ci" / "base-image.sh"
        done = subprocess.run(
            [script, named], capture_output=True, text=True, env=docker_engine.env(), check=False, timeout=300
        )
        if done.returncode != 0:
            unavailable(f"the base image {named}, and it could not be made: {done.stderr[-1500:]}")
    return named
