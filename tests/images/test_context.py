"""The build context: found in a checkout and in a wheel, and nothing in it that the image does not need."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import images.context as context_module
from cloudft.errors import EnvironmentProblem
from images.context import Recipe, recipe, train_context, train_files, tree_sha256
from jobs.backends import Backend


@pytest.fixture
def installation(tmp_path: Path, repo: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the packages as an installed wheel has them, which a test may damage."""
    root = tmp_path / "site-packages"
    for package in ("images", "jobs"):
        shutil.copytree(repo / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "images" / "files").mkdir()
    for name in ("Dockerfile.train", "Dockerfile.serve", "compose.yaml"):
        (root / "images" / "files" / name).write_text(f"# the wheel's {name}\n")
    monkeypatch.setattr(context_module, "_IMAGES", root / "images")
    monkeypatch.setattr(context_module, "_ROOT", root)
    return root


@pytest.mark.parametrize("name", ["Dockerfile.train", "Dockerfile.serve", "compose.yaml"])
def test_a_checkout_has_every_recipe(name: Recipe, repo: Path) -> None:
    assert recipe(name) == repo / name


@pytest.mark.parametrize("name", ["Dockerfile.train", "Dockerfile.serve", "compose.yaml"])
def test_a_wheel_has_its_own_recipes(name: Recipe, installation: Path) -> None:
    # Something of the same name beside the packages, in site-packages, is not ours.
    (installation / name).write_text("somebody else's\n")
    assert recipe(name).read_text() == f"# the wheel's {name}\n"


@pytest.mark.parametrize(("backend", "lock"), [("trl", "train"), ("unsloth", "unsloth")])
def test_the_context_holds_the_dockerfile_the_lock_and_jobs_and_nothing_else(
    repo: Path, backend: Backend, lock: str
) -> None:
    with train_context(backend) as context:
        names = {p.relative_to(context.folder).as_posix() for p in context.folder.rglob("*") if p.is_file()}
        assert (context.folder / context.dockerfile).read_bytes() == (repo / "Dockerfile.train").read_bytes()
        spec = (context.folder / "jobs" / "spec.py").read_bytes()
        assert context.requirements.read_bytes() == (repo / "images" / f"{lock}-requirements.txt").read_bytes()
    assert context.args == {"LOCK": lock}
    locks = {f"images/{lock}-requirements.txt", f"images/{lock}-constraints.txt"}
    sources = {p.relative_to(repo).as_posix() for p in (repo / "jobs").rglob("*.*") if p.suffix != ".pyc"}
    assert names == {"Dockerfile.train"} | locks | sources
    assert spec == (repo / "jobs" / "spec.py").read_bytes()


@pytest.mark.parametrize("backend", get_args(Backend))
def test_every_file_that_the_dockerfile_copies_is_in_the_context(backend: Backend) -> None:
    with train_context(backend) as context:
        text = (context.folder / context.dockerfile).read_text()
        lines = text.replace("${LOCK}", context.args["LOCK"]).splitlines()
        copied = [source for line in lines if line.startswith("COPY ") for source in line.split()[1:-1]]
        assert copied
        assert [source for source in copied if not (context.folder / source).exists()] == []


def test_the_folder_is_gone_afterwards_also_after_an_error() -> None:
    with train_context() as context:
        assert context.folder.is_dir()
    assert not context.folder.exists()
    with pytest.raises(KeyboardInterrupt), train_context() as context:
        raise KeyboardInterrupt
    assert not context.folder.exists()


def test_leftovers_of_python_and_hidden_files_stay_out(installation: Path) -> None:
    before = set(train_files())
    (installation / "jobs" / "__pycache__").mkdir(exist_ok=True)
    (installation / "jobs" / "__pycache__" / "spec.cpython-311.pyc").write_bytes(b"x")
    (installation / "jobs" / ".env").write_text("HF_TOKEN=secret")
    assert set(train_files()) == before


def test_modules_in_sub_packages_of_jobs_are_taken(installation: Path) -> None:
    (installation / "jobs" / "stages").mkdir()
    (installation / "jobs" / "stages" / "dpo.py").write_text("")
    assert "jobs/stages/dpo.py" in train_files()


def test_the_digest_names_the_content(installation: Path) -> None:
    with train_context() as first, train_context() as second:
        assert first.folder != second.folder
        assert first.sha256 == second.sha256 == tree_sha256(first.folder)
    with (installation / "jobs" / "spec.py").open("a") as out:
        out.write("# changed\n")
    with train_context() as changed:
        assert changed.sha256 != first.sha256


def test_two_backends_never_make_equal_images() -> None:
    with train_context("trl") as one, train_context("unsloth") as other:
        assert one.sha256 != other.sha256


def test_the_digest_sees_a_renamed_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    before = tree_sha256(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert tree_sha256(tmp_path) != before


def test_modes_of_the_installation_do_not_matter(installation: Path) -> None:
    source = installation / "jobs" / "spec.py"
    source.chmod(0o755)
    with train_context() as context:
        assert (context.folder / "jobs" / "spec.py").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("gone", "named"),
    [
        ("images/files/Dockerfile.train", "Dockerfile.train"),
        ("images/train-requirements.txt", "train-requirements.txt"),
        ("images/train-constraints.txt", "train-constraints.txt"),
        ("jobs/__init__.py", "jobs"),
    ],
)
def test_an_incomplete_installation_is_named(installation: Path, gone: str, named: str) -> None:
    (installation / gone).unlink()
    with pytest.raises(EnvironmentProblem, match=named) as error, train_context():
        pass
    assert "no image was built" in error.value.effect
    assert "pip install" in error.value.hint


def test_a_temporary_folder_that_cannot_be_written_is_named(
    installation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(EnvironmentProblem, match="No space left on device") as error, train_context():
        pass
    assert "TMPDIR" in error.value.hint


def test_a_users_own_jobs_folder_is_never_built_into_the_image(tmp_path: Path, repo: Path) -> None:
    """A ``jobs`` package that comes first on PYTHONPATH is what ``import jobs`` finds; the context keeps ours."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "__init__.py").write_text("")
    (tmp_path / "jobs" / "mine.py").write_text("SECRET = 1\n")
    code = (
        "import jobs, images.context as c\n"
        "assert 'mine.py' in [p.name for p in __import__('pathlib').Path(jobs.__file__).parent.iterdir()]\n"
        "print('\\n'.join(c.train_files()))"
    )
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{repo}"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=tmp_path, check=True
    )
    names = done.stdout.split()
    assert "jobs/mine.py" not in names
    assert "jobs/spec.py" in names
