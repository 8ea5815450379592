"""A training image that builds in seconds: the real Dockerfile and ``jobs/``, and a lock of one small package."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import images.context as context_module
from cloudft.errors import CloudftError
from images.build import BuiltImage, Plan, build_image
from images.extras import Extras, collect
from tests.services.engine import DockerEngine
from tests.services.host import REPO
from tests.services.registry import RegistryServer


@dataclass
class Recorder:
    """A ``Progress`` that keeps what it is told, and can break in."""

    calls: list[tuple[str, float, float | None, str, str]] = field(default_factory=list)
    interrupt: Callable[[str, float, str], bool] = lambda what, done, note: False

    def __call__(self, what: str, done: float = 0, total: float | None = None, unit: str = "", note: str = "") -> None:
        self.calls.append((what, done, total, unit, note))
        if self.interrupt(what, done, note):
            raise KeyboardInterrupt

    def of(self, what: str) -> list[tuple[str, float, float | None, str, str]]:
        return [call for call in self.calls if call[0] == what]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The packages that an image is made from, as a wheel has them, with a lock of one small package."""
    root = tmp_path / "site-packages"
    for package in ("images", "jobs"):
        shutil.copytree(REPO / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "images" / "files").mkdir()
    shutil.copyfile(REPO / "Dockerfile.train", root / "images" / "files" / "Dockerfile.train")
    (root / "images" / "train-requirements.txt").write_text("-c train-constraints.txt\nfilelock\n")
    monkeypatch.setattr(context_module, "_IMAGES", root / "images")
    monkeypatch.setattr(context_module, "_ROOT", root)
    return root


@pytest.fixture
def bare(small: Path) -> None:
    """The lock installs nothing at all, for tests of other bases: each base would install it again."""
    (small / "images" / "train-requirements.txt").write_text("-c train-constraints.txt\n")


@pytest.fixture
def logged_in(registry: RegistryServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DOCKER_CONFIG with a login for the registry, as the user of cloudft has it."""
    folder = registry.config(tmp_path / "docker-config")
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    return folder


@pytest.fixture
def plan(small: Path, logged_in: Path, registry: RegistryServer, base_image: str, request: Any) -> Plan:
    """Build the small image and push it to a repository of this test's own."""
    name = "".join(c if c.isalnum() else "-" for c in request.node.name.lower()).strip("-")
    while "--" in name:
        name = name.replace("--", "-")
    return Plan(repository=f"{registry.host}/me/{name[:60].strip('-')}", base_image=base_image)


def repository_of(plan: Plan) -> str:
    """The repository inside its registry."""
    assert plan.repository is not None
    return plan.repository.partition("/")[2]


def make_image(engine: DockerEngine, folder: Path, tag: str, dockerfile: str, **files: bytes) -> str:
    """Build a small image for a test, with ``files``, all executable, in its context; returns its id."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Dockerfile").write_text(dockerfile)
    for name, content in files.items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o755)
    return str(engine.build(folder, tag, dockerfile="Dockerfile", args={})["Id"])


def in_image(engine: DockerEngine, image: str, code: str) -> str:
    """What ``code`` prints in the image's Python, without a network."""
    command = ["run", "--rm", "--network", "none", "--entrypoint", "python", image, "-c", code]
    return engine.run(*command).stdout.strip()


def packages_in(engine: DockerEngine, image: str) -> dict[str, str]:
    """Name → version, as pip itself lists them."""
    done = engine.run(
        "run", "--rm", "--network", "none", "--entrypoint", "python", image, "-m", "pip", "list", "--format", "json"
    )
    return {item["name"].lower().replace("_", "-"): item["version"] for item in json.loads(done.stdout)}


def build(plan: Plan, progress: Recorder | None = None) -> BuiltImage:
    """Build as the plan says."""
    return build_image(plan, progress or Recorder())


def forget(engine: DockerEngine, built: BuiltImage) -> None:
    """As on another computer: the engine does not know the image."""
    engine.run("rmi", "-f", built.lock.tag)
    engine.run("rmi", "-f", built.lock.image, check=False)
    assert engine.inspect(built.lock.tag) is None


def refused(plan: Plan, kind: type[CloudftError]) -> CloudftError:
    """The error that a build ends with; each says that no money is spent."""
    with pytest.raises(CloudftError) as caught:
        build(plan)
    assert type(caught.value) is kind, caught.value
    assert "nothing was rented" in caught.value.effect or "nothing was built" in caught.value.effect
    return caught.value


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with requirements and a package of its own."""
    root = tmp_path / "project"
    (root / "tools" / "deep").mkdir(parents=True)
    (root / "needs.txt").write_text("# ours\nclick\n")
    (root / "tools" / "__init__.py").write_text("")
    (root / "tools" / "deep" / "words.py").write_text("WORD = 'mine'\n")
    (root / "tools" / ".env").write_text("PRIVATE=1\n")
    return root


# So many bytes that nothing can compress, and that no registry has.
FRESH_BYTES = 20_000_000


@pytest.fixture
def fresh_layer(tmp_path: Path) -> Extras:
    """A file for the image that makes a layer which must be sent: a registry takes others from its neighbours."""
    folder = tmp_path / "fresh"
    folder.mkdir()
    (folder / "random.bin").write_bytes(os.urandom(FRESH_BYTES))
    return collect(folder, [], ["random.bin"])
