"""``make`` and its set-up: what is missing is named before anything is done, and a second run does nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.services.host import ENVIRONMENT

# What the make that runs this suite hands down.
OUTER = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "PYTEST_ARGS", "DEMO_DIR", "CMAKE_ARGS")


@pytest.fixture
def checkout(tmp_path: Path, repo: Path) -> Path:
    """A checkout of which only the building parts are there."""
    folder = tmp_path / "checkout"
    (folder / ".ci").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", ".ci/setup-venv.sh"):
        shutil.copy2(repo / name, folder / name)
    return folder


def stub(path: Path, body: str) -> Path:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def make(checkout: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    outer = {name: value for name, value in ENVIRONMENT.items() if name not in OUTER}
    cache = str(checkout.parent / "cache")
    return subprocess.run(
        ["make", *args],
        cwd=checkout,
        env={**outer, "CLOUDFT_CACHE": cache, "PYTHON": sys.executable, "PYTEST_STATUS": "", **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_no_python(checkout: Path) -> None:
    done = make(checkout, "demo", PYTHON="python-that-is-not-there")
    assert done.returncode != 0
    assert "there is no python-that-is-not-there" in done.stderr
    assert "apt-get install python3 python3-venv" in done.stderr
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize(
    ("refused", "message"),
    [("sys.version_info", "is too old, cloudft needs 3.11"), ("ensurepip", "cannot make virtual environments")],
)
def test_a_python_that_does_not_do(checkout: Path, refused: str, message: str) -> None:
    python = stub(checkout.parent / "python", f'case "$*" in *{refused}*) exit 1;; esac; echo Python 3.9.1')
    done = make(checkout, "test", PYTHON=str(python))
    assert done.returncode != 0
    assert message in done.stderr
    assert not (checkout / ".venv").exists()


def test_no_compiler_is_named_before_anything_is_downloaded(checkout: Path) -> None:
    tools = checkout.parent / "bin"
    tools.mkdir()
    for name in ("make", "sh", "bash", "env", "sed", "head", "find", "uname", "dirname"):
        found = shutil.which(name)
        assert found, name
        (tools / name).symlink_to(found)
    done = make(checkout, "demo", PATH=str(tools))
    assert done.returncode != 0
    assert "there is no compiler (cc)" in done.stderr
    assert "apt-get install build-essential" in done.stderr
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize("target", ["demo", "test"])
def test_a_second_run_installs_nothing_until_a_requirement_changes(checkout: Path, target: str) -> None:
    assert "setup-venv.sh" in make(checkout, "-n", target).stdout
    (checkout / ".venv").mkdir()
    stamps = [checkout / ".venv" / ".ready-demo", checkout / ".venv" / ".ready-dev"]
    for stamp in stamps:
        stamp.touch()
    assert "setup-venv.sh" not in make(checkout, "-n", target).stdout
    later = stamps[0].stat().st_mtime + 5
    os.utime(checkout / "pyproject.toml", (later, later))
    assert "setup-venv.sh" in make(checkout, "-n", target).stdout


@pytest.fixture
def ready(checkout: Path) -> Path:
    """A checkout whose tools all succeed and say what they were called with; its pytest ends with 3."""
    tools = checkout / ".venv" / "bin"
    for name in ("ruff", "mypy", "lint-imports", "cloudft"):
        stub(tools / name, f'echo {name} "$@"')
    stub(tools / "python", 'echo python "$@"; exit 3')
    for name in (".ready-demo", ".ready-dev"):
        (checkout / ".venv" / name).touch()
    return checkout


def test_make_test_fails_with_pytest(ready: Path) -> None:
    done = make(ready, "test", "PYTEST_ARGS=-k one")
    assert done.returncode != 0
    called = [line for line in done.stdout.splitlines() if not line.startswith("make")]
    assert called == [
        "ruff check .",
        "ruff format --check .",
        "mypy",
        "lint-imports",
        "python -m pytest -n 2 --dist loadscope --no-loadscope-reorder -k one",
    ]


def test_ci_gets_pytests_own_exit_code_and_its_line_stays_the_last(ready: Path) -> None:
    status = ready / "status"
    done = make(ready, "--no-print-directory", "test", PYTEST_STATUS=str(status))
    assert done.returncode == 0
    assert status.read_text().strip() == "3"
    last = (done.stdout + done.stderr).splitlines()[-1].strip()
    assert last == "python -m pytest -n 2 --dist loadscope --no-loadscope-reorder"


def test_a_linters_complaint_fails_before_the_tests(ready: Path) -> None:
    stub(ready / ".venv" / "bin" / "mypy", "exit 1")
    done = make(ready, "test", PYTEST_STATUS=str(ready / "status"))
    assert done.returncode != 0
    assert "pytest" not in done.stdout
    assert not (ready / "status").exists()


def test_the_demo_goes_where_demo_dir_says(ready: Path) -> None:
    assert make(ready, "demo").stdout.splitlines()[-1].startswith("cloudft demo --directory demo")
    assert "cloudft demo --directory my project" in make(ready, "demo", "DEMO_DIR=my project").stdout


def test_clean_never_touches_a_folder_that_it_does_not_own(ready: Path) -> None:
    mine = ready.parent / "mine"
    mine.mkdir()
    (ready / "demo").mkdir()
    make(ready, "clean", f"DEMO_DIR={mine}")
    assert mine.is_dir()
    assert not (ready / "demo").exists()
    assert not (ready / ".venv").exists()


def test_plain_make_says_what_there_is(checkout: Path) -> None:
    done = make(checkout)
    assert done.returncode == 0
    for target in ("make demo", "make test", "make lint", "make lock", "make clean"):
        assert target in done.stdout
