"""A folder as store: the embedded default, with ``file://`` URLs in place of presigned ones."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from cloudft.errors import StoreError
from jobs.transfer import atomic

PIECE = 1 << 20


class FolderStore:
    """Objects are files below ``root``; each is written to a temporary name and renamed."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def url(self) -> str:
        return str(self.root)

    def put_file(self, key: str, path: Path, sent: Callable[[int], None] | None = None) -> None:
        with self._translated(f"write {key}"), path.open("rb") as src, atomic(self._path(key)) as out:
            while piece := src.read(PIECE):
                out.write(piece)
                if sent:
                    sent(len(piece))

    def put_bytes(self, key: str, data: bytes) -> None:
        with self._translated(f"write {key}"), atomic(self._path(key)) as out:
            out.write(data)

    def get_bytes(self, key: str) -> bytes | None:
        with self._translated(f"read {key}"):
            try:
                return self._path(key).read_bytes()
            except FileNotFoundError:
                return None

    def size(self, key: str) -> int | None:
        with self._translated(f"look at {key}"):
            try:
                return self._path(key).stat().st_size
            except FileNotFoundError:
                return None

    def read(self, key: str, offset: int = 0) -> Iterator[bytes]:
        with self._translated(f"read {key}"), self._path(key).open("rb") as src:
            src.seek(offset)
            while piece := src.read(PIECE):
                yield piece

    def keys(self, prefix: str) -> list[str]:
        folder = self._path(prefix)
        return sorted(
            str(p.relative_to(self.root)) for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")
        )

    def delete(self, key: str) -> None:
        with self._translated(f"delete {key}"):
            self._path(key).unlink(missing_ok=True)

    def url_to_get(self, key: str, until: float) -> str:
        return self._path(key).as_uri()

    url_to_put = url_to_get

    def _path(self, key: str) -> Path:
        path = (self.root / key).resolve()
        if not path.is_relative_to(self.root):
            raise StoreError(f"key {key!r} leaves the store {self.root}")
        return path

    @contextlib.contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            free = shutil.disk_usage(self.root).free if self.root.exists() else None
            room = f" ({free // 1_000_000} MB free)" if free is not None else ""
            raise StoreError(
                f"store {self.root}: cannot {doing}: {exc.strerror or exc}{room}",
                effect="nothing is half-written",
                hint="check the folder's rights and the disk, then type the same command again",
            ) from exc
