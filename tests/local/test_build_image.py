"""``cloudft build`` for a project: the image pinned in cloudft.yaml, its lock beside it, and what submit may ask."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from cloudft.errors import ConfigError
from images.context import LOCK_ARG, LOCK_NAMES
from images.lock import ImageLock
from local.build_image import LOCK_NAME, ProjectImage, build_project_image, check_image, read_lock
from local.config import BuildConfig, load_config
from local.progress import silent
from local.project import Project
from local.train_config import TrainConfig
from tests.images.build_fixtures import logged_in, small
from tests.services.engine import DockerEngine
from tests.services.registry import RegistryServer

__all__ = ["logged_in", "small"]

DIGEST = "sha256:" + "0af1" * 16


@pytest.fixture
def make(tmp_path: Path, registry: RegistryServer, base_image: str, small: Path, logged_in: Path) -> Any:
    """Makes the project: ``make(provider=…, build={…})``; the repository is the test's own."""

    def made(build: dict[str, object] | None = None, **keys: object) -> Project:
        root = tmp_path / "project"
        root.mkdir(exist_ok=True)
        name = tmp_path.name.replace("_", "-").strip("-")
        config = {
            "project": "tickets",
            "base": "org/model",
            "data": {"path": "d.jsonl"},
            "task": {"schema": "s.json"},
            "build": {"repository": f"{registry.host}/me/{name}", "base_image": base_image, **(build or {})},
            **keys,
        }
        (root / "cloudft.yaml").write_text(f"# mine\n{yaml.safe_dump(config)}")
        return Project(root)

    return made


Make = Callable[..., Project]


def build(project: Project, **options: Any) -> ProjectImage:
    return build_project_image(project, progress=silent, **options)


def files(project: Project) -> dict[str, str]:
    return {path.name: path.read_text() for path in project.root.iterdir() if path.is_file()}


def test_the_digest_is_pinned_and_the_lock_lies_beside_it(make: Make) -> None:
    project = make(provider="runpod")
    text = project.config_file.read_text()
    built = build(project)
    image = built.image.lock.image
    assert built.written == (LOCK_NAME, "cloudft.yaml")
    assert not built.runs_here_only
    assert load_config(project.config_file).image == image
    after = project.config_file.read_text()
    assert [line for line in after.splitlines() if line not in text.splitlines()] == [f"image: {image}"]
    assert after.startswith("# mine\n")
    assert read_lock(project) == built.image.lock


def test_nothing_is_written_again_when_nothing_changed(make: Make) -> None:
    project = make()
    build(project)
    before = {path: path.stat().st_mtime_ns for path in project.root.iterdir()}
    again = build(project)
    assert (again.image.built, again.image.pushed, again.written) == (False, False, ())
    assert {path: path.stat().st_mtime_ns for path in project.root.iterdir()} == before


def test_requirements_files_and_arguments_come_from_the_config(make: Make, docker_engine: DockerEngine) -> None:
    project = make(
        provider="docker",
        build={"requirements": "needs.txt", "files": ["mine.py"], "args": {"PIP_TRUSTED_HOST": "pip.example.com"}},
    )
    (project.root / "needs.txt").write_text("click\n")
    (project.root / "mine.py").write_text("X = 7\n")
    lock = build(project, push=False).image.lock
    assert lock.contents is not None
    assert "click" in lock.contents.packages
    code = "import mine; print(mine.X)"
    done = docker_engine.run("run", "--rm", "--network", "none", "--entrypoint", "python", lock.tag, "-c", code)
    assert done.stdout == "7\n"


def test_without_push_provider_docker_gets_the_engines_id(make: Make, docker_engine: DockerEngine) -> None:
    project = make(provider="docker", build={"repository": None})
    built = build(project, push=False)
    image = load_config(project.config_file).image
    assert built.runs_here_only
    assert image is not None
    assert image.startswith("sha256:")
    assert docker_engine.inspect(image)
    assert check_image(project, load_config(project.config_file)) is None
    docker_engine.run("rmi", "-f", image)


def test_without_push_a_rented_machine_keeps_the_image_that_it_has(make: Make) -> None:
    project = make(provider="runpod")
    before = files(project)
    built = build(project, push=False)
    assert built.written == ()
    assert files(project) == before


def test_a_build_that_fails_changes_no_file(make: Make) -> None:
    project = make(build={"requirements": ["needs.txt"]})
    (project.root / "needs.txt").write_text("transformers==4.0.0\n")
    before = files(project)
    with pytest.raises(ConfigError, match=r"build\.requirements"):
        build(project)
    assert files(project) == before


def test_a_push_that_is_interrupted_changes_no_file(make: Make) -> None:
    project = make()
    before = files(project)

    def interrupt(what: str, done: float = 0, total: float | None = None, unit: str = "", note: str = "") -> None:
        if what == "push":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_project_image(project, progress=interrupt)
    assert files(project) == before


def test_a_lock_that_is_broken_is_made_anew(make: Make) -> None:
    project = make()
    first = build(project).image.lock
    for broken in ("{", "[]", json.dumps({"schema_version": 99})):
        (project.root / LOCK_NAME).write_text(broken)
        assert read_lock(project) is None
        again = build(project)
        assert (again.image.built, again.image.pushed) == (False, False)
        assert read_lock(project) == first


# What submit may ask, without an engine.


@pytest.mark.parametrize(
    ("image", "says"),
    [
        ("ghcr.io/me/train:1", "names no digest"),
        ("ghcr.io/me/train", "names no digest"),
        (DIGEST, "this computer only"),
    ],
)
def test_a_rented_machine_gets_no_image_that_it_cannot_pull_or_that_may_change(
    tmp_path: Path, image: str, says: str
) -> None:
    project = plain(tmp_path, provider="runpod", image=image)
    with pytest.raises(ConfigError, match=says) as caught:
        check_image(project, load_config(project.config_file))
    assert "nothing was rented" in caught.value.effect
    assert "cloudft build" in caught.value.hint


@pytest.mark.parametrize("keys", [{"provider": "docker", "image": "x:1"}, {"provider": "docker", "image": DIGEST}, {}])
def test_this_computer_may_run_any_image(tmp_path: Path, keys: dict[str, str]) -> None:
    project = plain(tmp_path, **keys)
    assert check_image(project, load_config(project.config_file)) is None


def test_an_image_that_is_out_of_date_is_noted(make: Make, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make(provider="runpod", build={"files": ["mine.py"]})
    (project.root / "mine.py").write_text("X = 1\n")
    build(project)
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere.sock")
    config = load_config(project.config_file)
    assert check_image(project, config) is None
    (project.root / "mine.py").write_text("X = 2\n")
    assert "cloudft build" in str(check_image(project, config))
    (project.root / "mine.py").unlink()
    assert "could not be told" in str(check_image(project, config))
    (project.root / "mine.py").write_text("X = 1\n")
    assert check_image(project, config) is None
    other_base = config.build.model_copy(update={"base_image": "python:3.13-slim"})
    assert "cloudft build" in str(check_image(project, config.model_copy(update={"build": other_base})))
    with (small / "jobs" / "spec.py").open("a") as out:
        out.write("# a newer cloudft\n")
    assert "cloudft build" in str(check_image(project, config))
    # An image that somebody else made is not compared.
    other = config.model_copy(update={"image": f"ghcr.io/me/other@{DIGEST}"})
    assert check_image(project, other) is None


def test_an_image_of_another_backend_is_refused_before_anything_is_rented(tmp_path: Path) -> None:
    image = f"ghcr.io/me/train@{DIGEST}"
    built = {"base": "b", "base_pinned": "b", "platform": "linux/amd64", "python": "3.11.0", "packages": {}}
    project = plain(tmp_path, provider="runpod", image=image, train={"backend": "unsloth"})
    config = load_config(project.config_file)
    # Somebody else's: what is in it is not known here.
    assert "cannot be told" in str(check_image(project, config))
    for backend, other in (("trl", "unsloth"), ("unsloth", "trl")):
        # A lock of an older cloudft says nothing of a backend: it was trl.
        said = {"backend": backend} if backend == "unsloth" else {}
        lock = {"image": image, "tag": "x:1", "content": "0" * 64, "contents": built | said}
        (tmp_path / LOCK_NAME).write_text(json.dumps(lock))
        train = config.train.model_copy(update={"backend": other})
        with pytest.raises(ConfigError, match=f"built for backend {backend}, but train.backend is {other}") as caught:
            check_image(project, config.model_copy(update={"train": train}))
        assert "nothing was started" in caught.value.effect
        assert "cloudft build" in caught.value.hint


def plain(tmp_path: Path, **keys: object) -> Project:
    config = {"project": "t", "base": "org/m", "data": {"path": "d"}, "task": {"schema": "s"}, **keys}
    (tmp_path / "cloudft.yaml").write_text(yaml.safe_dump(config))
    return Project(tmp_path)


def test_the_lock_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    lock = ImageLock(image=DIGEST, tag="x:1", content="0" * 64, contents=None).model_dump(mode="json")
    project = Project(tmp_path)
    (tmp_path / LOCK_NAME).write_text(json.dumps(lock))
    assert read_lock(project) is not None
    (tmp_path / LOCK_NAME).write_text(json.dumps({**lock, "more": 1}))
    assert read_lock(project) is None


def test_the_config_and_the_recipe_agree(repo: Path) -> None:
    """A default in two places, and arguments that a recipe does not know would change nothing."""
    recipe = (repo / "Dockerfile.train").read_text()
    arguments = dict(re.findall(r"^ARG (\w+)=?(\S*)$", recipe, re.M))
    assert arguments.pop("BASE_IMAGE") == BuildConfig().base_image
    assert arguments.pop(LOCK_ARG) == LOCK_NAMES[TrainConfig().backend]  # it follows from train.backend
    allowed = get_args(get_args(BuildConfig.model_fields["args"].annotation)[0])
    assert set(arguments) == set(allowed)
