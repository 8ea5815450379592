"""What an installed cloudft carries: everything that its commands need, and nothing of ours beside it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.services.host import ENVIRONMENT

PACKAGES = ("cloudft", "images", "infra", "jobs", "local")
RECIPES = ("Dockerfile.train", "Dockerfile.serve", "compose.yaml")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this checkout as `pip install .` does."""
    repo = Path(__file__).resolve().parent.parent
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(repo)]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(ENVIRONMENT), check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    [path] = folder.glob("cloudft-*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new virtual environment that holds the wheel, and none of its dependencies."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    [site] = folder.glob("lib/python*/site-packages")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--target", str(site)]
    subprocess.run([*command, str(wheel)], env=dict(ENVIRONMENT), check=True, capture_output=True)
    return python


def run(python: Path, code: str) -> str:
    done = subprocess.run([python, "-P", "-c", code], capture_output=True, text=True, env={"HOME": "/"}, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


@pytest.mark.parametrize("name", RECIPES)
def test_the_wheel_carries_the_recipes_unchanged(name: str, wheel: Path, repo: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(f"images/files/{name}") == (repo / name).read_bytes()


def test_the_wheel_carries_every_file_of_the_packages(names: set[str], repo: Path) -> None:
    files = {p.relative_to(repo).as_posix() for package in PACKAGES for p in (repo / package).rglob("*.*")}
    ours = {name for name in files if not name.endswith(".pyc")}
    locks = {f"images/{name}-{what}.txt" for name in ("train", "unsloth") for what in ("requirements", "constraints")}
    assert locks <= ours
    assert {f"{package}/py.typed" for package in PACKAGES} <= ours
    assert ours - names == set()


def test_the_wheel_carries_nothing_else(names: set[str]) -> None:
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not re.fullmatch(r"cloudft-.*\.dist-info", top)} == set(PACKAGES)
    assert not [n for n in names if "test" in Path(n).parts[0] or n.endswith((".pyc", ".env")) or "__pycache__" in n]


def test_the_metadata_name_the_command_the_licence_and_the_extras(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [info] = {n.partition("/")[0] for n in archive.namelist() if ".dist-info/" in n}
        metadata = archive.read(f"{info}/METADATA").decode()
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    assert "cloudft = cloudft.__main__:main" in entry_points
    assert "License-Expression: MIT" in metadata
    extras = set(re.findall(r"^Provides-Extra: (\S+)$", metadata, re.MULTILINE))
    assert extras == {"train", "unsloth", "local", "runpod", "modal", "text", "lm-eval", "all"}


def test_an_installed_wheel_finds_its_recipes_and_makes_a_build_context(installed: Path) -> None:
    code = (
        "import images.context as c, json\n"
        f"recipes = [str(c.recipe(name)) for name in {RECIPES!r}]\n"
        "with c.train_context() as context:\n"
        "    names = [p.relative_to(context.folder).as_posix() for p in context.folder.rglob('*') if p.is_file()]\n"
        "print(json.dumps([recipes, names, context.sha256]))"
    )
    recipes, names, digest = json.loads(run(installed, code))
    assert [Path(path).parent.name for path in recipes] == ["files"] * len(RECIPES)
    assert all(str(installed.parent.parent) in path for path in recipes)
    assert {"Dockerfile.train", "images/train-requirements.txt", "images/train-constraints.txt"} <= set(names)
    assert {"jobs/__init__.py", "jobs/spec.py", "jobs/ticket.py"} <= set(names)
    # The same image from a wheel as from the checkout that it was built from.
    from images.context import train_context

    with train_context() as context:
        assert digest == context.sha256


def test_the_machines_side_starts_with_the_standard_library_alone(installed: Path) -> None:
    """The rented machine's first steps must not depend on anything that can fail to be installed."""
    code = (
        "import jobs.supervisor, sys\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names))"
    )
    assert run(installed, code) == "['__main__', 'jobs']"
