"""The files that images are made of, found in a source checkout and in an installed wheel alike.

A checkout keeps ``Dockerfile.train``, ``Dockerfile.serve`` and ``compose.yaml`` at its top; a wheel carries
them in ``images/files/``. The build context is put together in a temporary folder: it holds what the image
copies and nothing else, so no secret, data set or model of the user's can get into a layer.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cloudft.errors import EnvironmentProblem

Recipe = Literal["Dockerfile.train", "Dockerfile.serve", "compose.yaml"]

# This package's own folder, and the one that its sibling `jobs` stands in. Found by file, not by import: a
# user's own `jobs` on PYTHONPATH must never be what is built into the image.
_IMAGES = Path(__file__).resolve().parent
_ROOT = _IMAGES.parent

LOCKS = ("train-requirements.txt", "train-constraints.txt")


@dataclass(frozen=True)
class BuildContext:
    """A folder to hand to a builder. ``sha256`` is taken over the names and bytes of all files in it."""

    folder: Path
    dockerfile: str
    sha256: str


def recipe(name: Recipe) -> Path:
    """The file of that name.

    Raises:
        EnvironmentProblem: this installation does not have it.
    """
    return _existing(name, _IMAGES / "files" / name, _ROOT / name)


def train_files() -> dict[str, Path]:
    """Everything that the training image is built from: name in the context → file on this machine.

    Raises:
        EnvironmentProblem: this installation lacks one of them.
    """
    files = {"Dockerfile.train": recipe("Dockerfile.train")}
    for lock in LOCKS:
        files[f"images/{lock}"] = _existing(lock, _IMAGES / lock)
    jobs = _existing("jobs/__init__.py", _ROOT / "jobs" / "__init__.py").parent
    for path in sorted(jobs.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("."):
            files[f"jobs/{path.relative_to(jobs).as_posix()}"] = path
    return files


@contextlib.contextmanager
def train_context() -> Iterator[BuildContext]:
    """The build context of the training image; its folder is removed at the end.

    Raises:
        EnvironmentProblem: this installation is incomplete, or the temporary folder cannot be written.
    """
    files = train_files()
    with tempfile.TemporaryDirectory(prefix="cloudft-train-", ignore_cleanup_errors=True) as tmp:
        folder = Path(tmp)
        try:
            for name, source in files.items():
                _copy(source, folder / name)
            digest = tree_sha256(folder)
        except OSError as exc:
            raise EnvironmentProblem(
                f"the build context could not be put together in {folder}: {exc.strerror or exc}",
                effect="no image was built",
                hint="free some space there, or name another folder in TMPDIR, then try again",
            ) from exc
        yield BuildContext(folder, "Dockerfile.train", digest)


def tree_sha256(folder: Path) -> str:
    """sha256 over the names and bytes of all files below ``folder``: equal folders, equal images."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return total.hexdigest()


def _copy(source: Path, target: Path) -> None:
    """Copy the bytes and not the mode: an odd umask must not make another image, nor one that cannot be read."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o644)


def _existing(name: str, *places: Path) -> Path:
    for place in places:
        if place.is_file():
            return place
    looked = " and ".join(str(place) for place in places)
    raise EnvironmentProblem(
        f"this installation of cloudft lacks {name} (looked for {looked})",
        effect="no image was built",
        hint="install it again:  pip install --force-reinstall --no-deps cloudft",
    )
