"""Pull: bring the adapter home, resumable, checked by sha256, and in place only when it is whole."""

from __future__ import annotations

import hashlib
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloudft.errors import Busy, EnvironmentProblem, IntegrityError, RunFailed
from infra.store import Store
from local.files import atomic_folder, need_space, sha256_file
from local.progress import Progress
from local.runs.records import RunRecord, attempt_prefix, locked
from local.runs.reports import fetch_reports
from local.runs.session import Session
from local.runs.stage_report import Stages, stages_of

STAYS = "the adapter stays in the store"


@dataclass(frozen=True)
class Pulled:
    """An adapter that is home. ``complete`` is False for a run that was stopped."""

    folder: Path
    files: dict[str, str]
    bytes: int
    complete: bool
    reason: str
    already_here: bool
    stages: Stages = ()


def pull(session: Session, progress: Progress) -> Pulled:
    """Fetch the adapter of an ended run into ``runs/<id>/adapter``.

    Raises:
        Busy: the run has not ended.
        RunFailed: it ended without an adapter.
        IntegrityError: what is in the store is not what the machine sent.
        EnvironmentProblem: no room on the disk.
        StoreError: the store refuses or is away; what came so far is kept, and the next pull goes on from there.
    """
    record = session.observe()
    result = session.result()
    if result is None:
        raise _no_result(record)
    artifact = result["artifacts"]["adapter"]
    with locked(session.run, "pull"):
        already = _is_here(session.run.adapter, artifact["files"])
        if not already:
            need_space(session.run.root, 2 * artifact["bytes"], "the adapter")
            prefix = attempt_prefix(record.run_id, result["attempt"])
            try:
                tar = _download(session.store, prefix, session.run.root / ".adapter.tar.part", artifact, progress)
                _unpack(tar, session.run.adapter, artifact["files"])
            except OSError as exc:
                raise EnvironmentProblem(
                    f"cannot write to {session.run.root}: {exc.strerror or exc}",
                    effect=f"nothing is half-written, and {STAYS}",
                    hint="free some space or mend the folder's rights, then:  cloudft pull",
                ) from exc
            tar.unlink()
        fetch_reports(session, record, result)
    complete = result["status"] == "completed"
    return Pulled(
        session.run.adapter,
        artifact["files"],
        artifact["bytes"],
        complete,
        result["reason"],
        already,
        stages_of(result),
    )


def _no_result(record: RunRecord) -> Busy | RunFailed:
    if not record.ended:
        return Busy(
            f"run {record.run_id} is still {record.status}: there is no adapter to pull yet",
            effect="the run goes on",
            hint="watch it:  cloudft status --follow    or wait for it:  cloudft pull --wait",
        )
    return RunFailed(
        f"run {record.run_id} {record.status} without an adapter: {record.reason}",
        effect="the log and the metrics are in the store; nothing else is left of it",
        hint="see why:  cloudft logs    then:  cloudft submit",
    )


def _is_here(folder: Path, files: dict[str, str]) -> bool:
    return folder.is_dir() and all(
        (folder / name).is_file() and sha256_file(folder / name) == sha256 for name, sha256 in files.items()
    )


def _download(store: Store, prefix: str, part: Path, artifact: dict[str, Any], progress: Progress) -> Path:
    """Fetch all pieces into ``part``, going on where an earlier pull broke off."""
    size = artifact["bytes"]
    keys = [f"{prefix}/{name}" for name in artifact.get("pieces") or [artifact["key"]]]
    each = artifact.get("piece_bytes") or max(size, 1)
    if part.exists() and part.stat().st_size > size:
        part.unlink()
    done = part.stat().st_size if part.exists() else 0
    for number, key in enumerate(keys):
        expected = min(each, size - number * each)
        stored = store.size(key)
        if stored != expected:
            raise _damaged(f"{key} has {stored if stored is not None else 'no'} bytes instead of {expected}")
    with part.open("ab") as out:
        while done < size:
            number = done // each
            for piece in store.read(keys[number], done - number * each):
                out.write(piece)
                done += len(piece)
                progress("download", done, size, "bytes")
            if done < min((number + 1) * each, size):
                raise _damaged(f"{keys[number]} ended early")
    with part.open("rb") as src:
        sha256 = hashlib.file_digest(src, "sha256").hexdigest()
    if sha256 != artifact["sha256"]:
        part.unlink()
        raise _damaged(f"{keys[0]} has sha256 {sha256[:12]}… instead of {artifact['sha256'][:12]}…")
    return part


def _damaged(what: str) -> IntegrityError:
    return IntegrityError(
        f"the adapter in the store is not the one that was trained: {what}",
        effect="nothing was written into the run's folder",
        hint="try once more:  cloudft pull    if it stays so, the object was changed after the run",
    )


def _unpack(tar_path: Path, folder: Path, files: dict[str, str]) -> None:
    with atomic_folder(folder) as fresh:
        try:
            with tarfile.open(tar_path) as tar:
                tar.extractall(fresh, filter="data")
        except tarfile.TarError as exc:
            raise _damaged(str(exc)) from exc
        if not _is_here(fresh, files):
            raise _damaged("a file inside has another sha256")
