"""Packs a folder into one tar, the same bytes for the same files, and back. Standard library only."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from jobs.transfer import PIECE


@dataclass(frozen=True)
class Bundle:
    """A packed folder: the tar's sha256 and size in bytes, and the sha256 of each file inside."""

    path: Path
    sha256: str
    bytes: int
    files: dict[str, str]


def pack(folder: Path, tar_path: Path) -> Bundle:
    """Pack every file below ``folder``, names relative to it, without owners or times. Each byte is read once."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    hashes = {}
    with tar_path.open("wb") as file:
        out = _Hashed(file)
        with tarfile.TarFile(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, copybufsize=PIECE) as tar:
            for path in files:
                info = tarfile.TarInfo(path.relative_to(folder).as_posix())
                info.size = path.stat().st_size
                info.mode = 0o644
                with path.open("rb") as file_in:
                    src = _Hashed(file_in)
                    tar.addfile(info, src)
                hashes[info.name] = src.sha256.hexdigest()
    return Bundle(tar_path, out.sha256.hexdigest(), tar_path.stat().st_size, hashes)


class _Hashed(io.RawIOBase):
    """A file that is read or written from its begin to its end, and its sha256 on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha256 = file, hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        piece = self.file.read(size)
        self.sha256.update(piece)
        return piece

    def write(self, data: Any, /) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def tell(self) -> int:
        return self.file.tell()


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
