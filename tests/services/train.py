"""The training image, as a user's ``cloudft build`` makes it, on the base image of the tests."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from images.context import train_context
from tests.services.engine import DockerEngine
from tests.services.host import ENVIRONMENT, REPO, cache_folder, free_port

# The address is an argument of the build, so another port would make the builder forget its layers: the same one
# is tried first each time.
PREFERRED_PORT = 38917


def torch_wheel_folder(engine: DockerEngine, base: str) -> Path:
    """A folder with the wheel of torch that this computer's pip chooses, for the base image's Python.

    Where pip is set up to find the CPU wheel, that is a few hundred megabytes rather than some gigabytes.
    """
    show = "import sys; print('%d.%d' % sys.version_info[:2])"
    python = engine.run("run", "--rm", "--entrypoint", "python", base, "-c", show).stdout.strip()
    lock = (REPO / "images" / "train-requirements.txt").read_text().splitlines()
    pinned = next(line for line in lock if line.startswith("torch=="))
    folder = cache_folder() / "test-wheels" / f"py{python}"
    if not list(folder.glob(f"{pinned.replace('==', '-')}*.whl")):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as part:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", part]
            command += ["--only-binary", ":all:", "--python-version", python, pinned]
            subprocess.run(command, check=True, env=dict(ENVIRONMENT), timeout=900)
            for wheel in Path(part).iterdir():
                shutil.move(wheel, folder / wheel.name)
    return folder


def train_wheel_folder(engine: DockerEngine, base: str) -> Path:
    """A folder with a wheel of every library that the training needs, for the base image's Python."""
    torch = torch_wheel_folder(engine, base)
    lock = b"".join((REPO / "images" / f"train-{name}.txt").read_bytes() for name in ("requirements", "constraints"))
    folder = torch.parent / f"{torch.name}-{hashlib.sha256(lock).hexdigest()[:12]}"
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=torch.parent) as part:
            command = [sys.executable, "-m", "pip", "download", "-q", "--dest", part, "--find-links", str(torch)]
            command += ["--only-binary", ":all:", "--python-version", torch.name.removeprefix("py")]
            command += ["-r", str(REPO / "images" / "train-requirements.txt")]
            subprocess.run(command, check=True, env=dict(ENVIRONMENT), timeout=900)
            shutil.copytree(part, f"{folder}.part", dirs_exist_ok=True)
        Path(f"{folder}.part").rename(folder)
    return folder


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def _served(folder: Path, address: str, port: int) -> Iterator[dict[str, str]]:
    """A folder of wheels over HTTP, as pip's variables."""
    handler = functools.partial(_Quiet, directory=os.fspath(folder))
    with http.server.ThreadingHTTPServer((address, port), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {"PIP_FIND_LINKS": f"http://{address}:{port}/", "PIP_TRUSTED_HOST": address}
        server.shutdown()


@pytest.fixture(scope="session")
def pip_args(docker_engine: DockerEngine, base_image: str) -> Iterator[dict[str, str]]:
    """Build arguments for our Dockerfiles: the base image, and torch's wheel from a server on the bridge."""
    folder = torch_wheel_folder(docker_engine, base_image)
    with _served(folder, docker_engine.address, free_port(PREFERRED_PORT)) as links:
        yield {"BASE_IMAGE": base_image, **links}


@pytest.fixture(scope="session")
def pip_offline(docker_engine: DockerEngine, base_image: str) -> Iterator[dict[str, str]]:
    """Variables with which pip in a container finds every library of the training on the bridge, and asks nobody."""
    folder = train_wheel_folder(docker_engine, base_image)
    with _served(folder, docker_engine.address, free_port()) as links:
        yield {**links, "PIP_NO_INDEX": "1"}


@pytest.fixture(scope="session")
def train_image(docker_engine: DockerEngine, base_image: str, pip_args: dict[str, str]) -> str:
    """Tag of the training image. The tag names its content, so an image that is there is not built again."""
    base = docker_engine.inspect(base_image)
    assert base is not None
    with train_context() as context:
        content = hashlib.sha256(f"{context.sha256} {base['Id']}".encode()).hexdigest()
        tag = f"cloudft-train:test-{content[:16]}"
        if docker_engine.inspect(tag) is None:
            docker_engine.build(context.folder, tag, dockerfile=context.dockerfile, args=pip_args)
    return tag
