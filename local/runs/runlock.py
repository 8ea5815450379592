"""``runs/<id>/run.lock.json``: all that is needed to repeat a run, in one file.

Written with the run's folder, before anything is rented, and completed by what is only known later: what the machine
trained with (at ``pull``), and with what the file was made that is served (at ``quantize``). It holds no secret and no
data, only hashes of it; the data lies beside it in the run's folder.
"""

from __future__ import annotations

import hashlib
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from cloudft import __version__
from cloudft.errors import IntegrityError, NotFound
from images.context import train_files
from images.lock import Contents
from jobs.backends import Backend
from jobs.spec import SHA256, FileRef, Frozen, RunSpec
from local.files import sha256_file, write_json
from local.project import RunFolder


class CodeLock(Frozen):
    """Our own code. ``sha256`` is taken over all that the training image is built from, the trainer among it."""

    cloudft: str
    sha256: str = Field(pattern=SHA256)


class SourceLock(Frozen):
    """The user's data file as it was at submit, and what was found in it. ``holdout``: the share, or the other file.

    ``duplicates``: repeated rows that were left out; ``contaminated``: rows that ask what the hold-out asks, and were
    left out of training; ``conflicts``: questions with several different answers, which were kept.
    """

    path: str
    sha256: str = Field(pattern=SHA256)
    rows: int
    duplicates: int
    contaminated: int
    conflicts: int
    holdout: float | str


class PythonLock(Frozen):
    """An interpreter and every package in it."""

    version: str
    platform: str
    packages: dict[str, str] = Field(description="Name → version.")


class Trained(Frozen):
    """What the machine brought home. ``versions``: of the libraries that it trained with, by its own account."""

    status: str
    adapter_sha256: str | None
    files: dict[str, str]
    versions: dict[str, str] = Field(default={})


class Made(Frozen):
    """A file to be served, and with what it was made."""

    version: str
    type: str
    imatrix: bool
    gguf_sha256: str
    llama_cpp_python: str


class RunLock(Frozen):
    """The whole lock. ``trained`` None: not home yet; ``made`` empty: not quantised yet.

    ``image``: what is inside of the training image, where its lock was at hand; ``python``: this computer's own.
    """

    schema_version: Literal[1] = 1
    run_id: str
    created_at: float
    code: CodeLock
    spec: RunSpec
    spec_sha256: str = Field(pattern=SHA256)
    source: SourceLock | None
    holdout: FileRef
    task_sha256: str = Field(pattern=SHA256)
    provider: str
    python: PythonLock
    image: Contents | None = None
    trained: Trained | None = None
    made: tuple[Made, ...] = ()


def make_lock(
    run: RunFolder, spec: RunSpec, provider: str, source: SourceLock | None, image: Contents | None
) -> RunLock:
    """The lock of a run whose folder is written but for the lock itself."""
    held = run.holdout
    return RunLock(
        run_id=spec.run_id,
        created_at=time.time(),
        code=CodeLock(cloudft=__version__, sha256=code_sha256(spec.backend)),
        spec=spec,
        spec_sha256=spec.sha256(),
        source=source,
        holdout=FileRef(path=held.name, sha256=sha256_file(held), bytes=held.stat().st_size),
        task_sha256=sha256_file(run.task),
        provider=provider,
        python=this_python(),
        image=image,
    )


def read_lock(run: RunFolder) -> RunLock:
    """The lock of a run.

    Raises:
        NotFound: an older cloudft made the run, without a lock.
        IntegrityError: it cannot be read, or a newer cloudft wrote it.
    """
    try:
        return RunLock.model_validate_json(run.run_lock.read_bytes())
    except FileNotFoundError as exc:
        raise NotFound(
            f"{run.run_lock} is not there: run {run.run_id} was made without a lock",
            effect="nothing was started",
            hint="start a new run:  cloudft submit",
        ) from exc
    except ValidationError as exc:
        where = ".".join(str(part) for part in exc.errors()[0]["loc"])
        raise IntegrityError(
            f"{run.run_lock} cannot be read: {where}: {exc.errors()[0]['msg']}",
            effect="nothing was written into it, and the run itself is as it was",
            hint="restore it, or remove it: then nothing but `cloudft reproduce` will miss it",
        ) from exc


def write_lock(run: RunFolder, lock: RunLock) -> None:
    write_json(run.run_lock, lock.model_dump(mode="json"))


def add_trained(run: RunFolder, result: dict[str, Any]) -> None:
    """Complete the lock by what came home. A run of an older cloudft has none, and needs none for its adapter."""
    if not run.run_lock.exists():
        return
    trainer = result.get("trainer") or {}
    trained = Trained(
        status=result["status"],
        adapter_sha256=trainer.get("adapter_sha256"),
        files=result["artifacts"]["adapter"]["files"],
        versions=trainer.get("versions") or {},
    )
    _update(run, {"trained": trained})


def add_made(run: RunFolder, made: list[Made]) -> None:
    """Complete the lock by versions that were made; one that stands there already is replaced."""
    if not run.run_lock.exists():
        return
    new = {item.version for item in made}
    kept = tuple(item for item in read_lock(run).made if item.version not in new)
    _update(run, {"made": (*kept, *made)})


def _update(run: RunFolder, changes: dict[str, Any]) -> None:
    lock = read_lock(run)
    changed = lock.model_copy(update=changes)
    if changed != lock:
        write_lock(run, changed)


def code_sha256(backend: Backend) -> str:
    """sha256 over the names and bytes of all that the backend's training image is made from."""
    total = hashlib.sha256()
    for name, path in sorted(train_files(backend).items()):
        total.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def this_python() -> PythonLock:
    """This interpreter, with every package that it can import."""
    found = {d.metadata["Name"]: d.version for d in metadata.distributions() if d.metadata["Name"]}
    return PythonLock(
        version=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        packages={name: found[name] for name in sorted(found, key=str.lower)},
    )


def source_lock(path: Path, given: str, rows: int, holdout: float | str, left_out: tuple[int, int, int]) -> SourceLock:
    """Args: path, and how the user calls it; rows in it; duplicates, contaminated and conflicts."""
    duplicates, contaminated, conflicts = left_out
    return SourceLock(
        path=given,
        sha256=sha256_file(path),
        rows=rows,
        duplicates=duplicates,
        contaminated=contaminated,
        conflicts=conflicts,
        holdout=holdout,
    )
