"""The training image, as a user's ``cloudft build`` makes it, on the base image of the tests."""

from __future__ import annotations

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


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def pip_args(docker_engine: DockerEngine, base_image: str) -> Iterator[dict[str, str]]:
    """Build arguments for our Dockerfiles: the base image, and torch's wheel from a server on the bridge."""
    folder = torch_wheel_folder(docker_engine, base_image)
    port = free_port(PREFERRED_PORT)
    handler = functools.partial(_Quiet, directory=os.fspath(folder))
    with http.server.ThreadingHTTPServer((docker_engine.address, port), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {
            "BASE_IMAGE": base_image,
            "PIP_FIND_LINKS": f"http://{docker_engine.address}:{port}/",
            "PIP_TRUSTED_HOST": docker_engine.address,
        }
        server.shutdown()


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
