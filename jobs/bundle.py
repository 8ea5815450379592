"""Packs a folder into one tar, the same bytes for the same files, and back. Standard library only."""

from __future__ import annotations

import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

from jobs.transfer import sha256_file


@dataclass(frozen=True)
class Bundle:
    """A packed folder: the tar's sha256 and size in bytes, and the sha256 of each file inside."""

    path: Path
    sha256: str
    bytes: int
    files: dict[str, str]


def pack(folder: Path, tar_path: Path) -> Bundle:
    """Pack every file below ``folder``, names relative to it, without owners or times."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    with tarfile.open(tar_path, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in files:
            info = tarfile.TarInfo(path.relative_to(folder).as_posix())
            info.size = path.stat().st_size
            info.mode = 0o644
            with path.open("rb") as src:
                tar.addfile(info, src)
    hashes = {p.relative_to(folder).as_posix(): sha256_file(p) for p in files}
    return Bundle(tar_path, sha256_file(tar_path), tar_path.stat().st_size, hashes)


def unpack(tar_path: Path, target: Path) -> None:
    """The files of a tar that ``pack`` made, at ``target``, which must not be there yet: all of them or none.

    Raises:
        ValueError: it holds something that ``pack`` never writes.
    """
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        with tarfile.open(tar_path, "r:") as tar:
            for member in tar:
                path = (part / member.name).resolve()
                src = tar.extractfile(member) if member.isreg() and path.is_relative_to(part.resolve()) else None
                if src is None:
                    raise ValueError(f"{tar_path.name} holds {member.name!r}, which is no file inside of it")
                path.parent.mkdir(parents=True, exist_ok=True)
                with src, path.open("wb") as out:
                    shutil.copyfileobj(src, out)
        part.rename(target)
    except tarfile.TarError as exc:
        raise ValueError(f"{tar_path.name} is no tar: {exc}") from exc
    finally:
        shutil.rmtree(part, ignore_errors=True)
