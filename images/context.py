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
from typing import TYPE_CHECKING, Literal

from cloudft.errors import EnvironmentProblem

if TYPE_CHECKING:
    # Not to run: a user's own `jobs` may be what is imported.
    from jobs.backends import Backend

Recipe = Literal["Dockerfile.train", "Dockerfile.serve", "compose.yaml"]

# This package's own folder, and the one that its sibling `jobs` stands in. Found by file, not by import: a
# user's own `jobs` on PYTHONPATH must never be what is built into the image.
_IMAGES = Path(__file__).resolve().parent
_ROOT = _IMAGES.parent

# What the locks are called, and the build argument that names one.
LOCK_ARG = "LOCK"
LOCK_NAMES: dict[Backend, str] = {"trl": "train", "unsloth": "unsloth"}


@dataclass(frozen=True)
class BuildContext:
    """A folder to hand to a builder. ``sha256`` is taken over the names and bytes of all files in it.

    Only the lock of its ``backend`` is there, so that two backends never make equal contexts.
    """

    folder: Path
    dockerfile: str
    sha256: str
    backend: Backend = "trl"

    @property
    def args(self) -> dict[str, str]:
        """The build arguments that belong to it."""
        return {LOCK_ARG: LOCK_NAMES[self.backend]}

    @property
    def requirements(self) -> Path:
        return self.folder / "images" / lock_files(self.backend)[0]


def recipe(name: Recipe) -> Path:
    """The file of that name.

    Raises:
        EnvironmentProblem: this installation does not have it.
    """
    return _existing(name, _IMAGES / "files" / name, _ROOT / name)


def lock_files(backend: Backend) -> tuple[str, str]:
    """The names of a backend's requirements and constraints."""
    name = LOCK_NAMES[backend]
    return f"{name}-requirements.txt", f"{name}-constraints.txt"


def train_files(backend: Backend = "trl") -> dict[str, Path]:
    """Everything that a training image is built from: name in the context → file on this machine.

    Raises:
        EnvironmentProblem: this installation lacks one of them.
    """
    files = {"Dockerfile.train": recipe("Dockerfile.train")}
    for lock in lock_files(backend):
        files[f"images/{lock}"] = _existing(lock, _IMAGES / lock)
    jobs = _existing("jobs/__init__.py", _ROOT / "jobs" / "__init__.py").parent
    for path in sorted(jobs.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("."):
            files[f"jobs/{path.relative_to(jobs).as_posix()}"] = path
    return files


@contextlib.contextmanager
def train_context(backend: Backend = "trl") -> Iterator[BuildContext]:
    """The build context of a backend's training image; its folder is removed at the end.

    Raises:
        EnvironmentProblem: this installation is incomplete, or the temporary folder cannot be written.
    """
    files = train_files(backend)
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
        yield BuildContext(folder, "Dockerfile.train", digest, backend)


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
