"""Reading and writing single objects through ``file://`` and presigned ``http(s)://`` URLs. Standard library only.

A URL here is a capability: its query string holds a signature. No message of this module shows one.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import http.client
import io
import os
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, TypeVar

T = TypeVar("T")
PIECE = 1 << 20
TIMEOUT = 60.0
# Some services refuse urllib's default agent outright.
HEADERS = {"User-Agent": "cloudft-supervisor/1"}


class TransferError(Exception):
    """``final``: trying again cannot help; ``missing``: there is no such object; ``empty``: it has no bytes."""

    def __init__(self, what: str, *, final: bool = False, missing: bool = False, empty: bool = False) -> None:
        super().__init__(what)
        self.final = final or missing
        self.missing = missing
        self.empty = empty


def shown(url: str) -> str:
    """The URL without its query, fit for a log."""
    return url.partition("?")[0]


def read_bytes(url: str) -> bytes:
    """A small object. Raises ``TransferError``."""
    with _opened(url) as src:
        return src.read()


def exists(url: str) -> bool:
    """Whether there is such an object. Raises ``TransferError`` when that cannot be found out."""
    try:
        with _opened(url, offset=0, last=0):
            return True
    except TransferError as exc:
        if exc.missing or exc.empty:
            return exc.empty
        raise


@dataclass(frozen=True)
class Window:
    """Some bytes of a file."""

    path: Path
    start: int
    size: int

    @classmethod
    def whole(cls, path: Path) -> Window:
        return cls(path, 0, path.stat().st_size)

    def digest(self, name: str) -> str:
        """Of these bytes, as hexadecimal digits."""
        digest = hashlib.new(name, usedforsecurity=False)
        left = self.size
        with self.path.open("rb") as src:
            src.seek(self.start)
            while left and (piece := src.read(min(PIECE, left))):
                digest.update(piece)
                left -= len(piece)
        return digest.hexdigest()


def fetch(
    urls: str | Sequence[str],
    path: Path,
    sha256: str,
    size: int,
    got: Callable[[int], None] | None = None,
    *,
    piece_bytes: int = 0,
) -> None:
    """Download to ``path``, resuming from ``path + '.part'``, and take its place only when the sha256 agrees.

    Args:
        urls: of the object, or of the pieces that it was cut into, each of ``piece_bytes`` but the last.

    Raises:
        TransferError: the source fails, or (final) what came is not what was promised.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    if have > size:
        part.unlink()
        have = 0
    pieces = [urls] if isinstance(urls, str) else list(urls)
    part.touch()
    for number, url in enumerate(pieces):
        begin = number * piece_bytes
        _append(url, part, begin, size if number == len(pieces) - 1 else begin + piece_bytes, got)
    if sha256_file(part) != sha256:
        part.unlink()
        raise TransferError(f"{shown(pieces[0])}: the sha256 is not the one that was promised", final=True)
    part.replace(path)


def _append(url: str, part: Path, begin: int, end: int, got: Callable[[int], None] | None) -> None:
    """The bytes from ``begin`` to ``end`` of a file, but for those that are there; the object holds no others."""
    if (there := part.stat().st_size) < end:
        with _opened(url, offset=there - begin) as src, part.open("ab") as out:
            while piece := src.read(PIECE):
                out.write(piece)
                if got:
                    got(len(piece))
    if (now := part.stat().st_size) < end:
        # Nothing more came, and no error: the object itself is too short.
        raise TransferError(f"{shown(url)}: it ended after {now - begin} of {end - begin} bytes", final=now == there)


def put_bytes(url: str, data: bytes) -> None:
    """Write a small object. Raises ``TransferError``."""
    if url.startswith("file://"):
        with _translated(url), atomic(_path(url)) as out:
            out.write(data)
        return
    _send(url, data, len(data))


def put_file(url: str, path: Path, given_up: Callable[[], bool] = lambda: False) -> None:
    """Upload a file in one request; broken off as soon as ``given_up`` says so. Raises ``TransferError``."""
    put_window(url, Window.whole(path), given_up)


def put_window(url: str, window: Window, given_up: Callable[[], bool] = lambda: False) -> str:
    """Upload a part of a file as an object of its own, as ``put_file``; the md5 of what was sent."""
    with _Abandonable(window, given_up) as src:
        if url.startswith("file://"):
            with _translated(url), atomic(_path(url)) as out:
                while piece := src.read(PIECE):
                    out.write(piece)
        else:
            _send(url, src, window.size)
        return src.md5.hexdigest()


class _Abandonable(io.FileIO):
    """A part of a file whose reader can be told to stop, since nobody else can end a request in the middle."""

    def __init__(self, window: Window, given_up: Callable[[], bool]) -> None:
        super().__init__(window.path, "rb")
        self.seek(window.start)
        self.md5 = hashlib.md5(usedforsecurity=False)
        self._left = window.size
        self._given_up = given_up

    def read(self, size: int | None = -1, /) -> bytes:
        if self._given_up():
            raise TransferError("broken off: something else is more urgent", final=True)
        # http.client asks for 8 KiB at a time: too little for a fast line.
        wanted = PIECE if size is None or size < 0 else max(size, PIECE)
        piece = super().read(min(wanted, self._left)) or b""
        self._left -= len(piece)
        self.md5.update(piece)
        return piece


def arrived(url: str, file: Path | Window, md5: str = "") -> bool:
    """Whether the object is the file, or that part of it. A store's own md5 spares reading it back.

    S3 and its kin give the md5 of an object that came in one request as its ETag, unless it is encrypted with a
    customer's key; reading gigabytes back beside the training would be paid for as traffic.

    Args:
        md5: of these bytes, if it is known.

    Raises:
        TransferError: it cannot be found out.
    """
    window = file if isinstance(file, Window) else Window.whole(file)
    with _opened(url, last=0) as src:
        headers: Message | None = getattr(src, "headers", None)
    etag = (headers.get("ETag") or "").strip('"').lower() if headers else ""
    total = (headers.get("Content-Range") or "").rpartition("/")[2] if headers else ""
    if len(etag) == 32 and total.isdigit() and etag == (md5 or window.digest("md5")):
        return int(total) == window.size
    return remote_sha256(url) == window.digest("sha256")


def remote_sha256(url: str) -> str:
    """Read an object back and hash it: the only proof that an upload arrived. Raises ``TransferError``."""
    digest = hashlib.sha256()
    with _opened(url) as src:
        while piece := src.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def server_time(url: str) -> float | None:
    """The server's own time (epoch seconds) by the Date header of any answer; None if it tells none, or for files."""
    if not url.startswith(("http://", "https://")):
        return None
    request = urllib.request.Request(url, headers=HEADERS)  # noqa: S310
    try:
        with contextlib.closing(_open(request)) as reply:
            date = reply.headers.get("Date")
    except urllib.error.HTTPError as exc:
        with exc:
            date = exc.headers.get("Date")
    except (OSError, http.client.HTTPException):
        return None
    return email.utils.parsedate_to_datetime(date).timestamp() if date else None


def sha256_file(path: Path) -> str:
    with path.open("rb") as src:
        return hashlib.file_digest(src, "sha256").hexdigest()


def sha256_files(paths: Iterable[Path]) -> str:
    """Of one file its sha256; of several one over the list of theirs, in their order."""
    each = [sha256_file(path) for path in paths]
    return each[0] if len(each) == 1 else hashlib.sha256("\n".join(each).encode()).hexdigest()


def retried(call: Callable[[], T], until: float) -> T:
    """Call until it works, it fails for good, or the epoch second ``until`` has come; pauses 1, 2, 4 … 30 s.

    Raises:
        TransferError: the last one.
    """
    pause = 1.0
    while True:
        try:
            return call()
        except TransferError as exc:
            if exc.final or time.time() + pause > until:
                raise
        time.sleep(pause)
        pause = min(pause * 2, 30.0)


def _send(url: str, body: bytes | IO[bytes], size: int) -> None:
    request = urllib.request.Request(  # noqa: S310 - the scheme is checked in _open
        url, data=body, method="PUT", headers={**HEADERS, "Content-Length": str(size)}
    )
    with _translated(url):
        _open(request).close()


@contextlib.contextmanager
def _opened(url: str, offset: int = 0, last: int | None = None) -> Iterator[IO[bytes]]:
    """The object from ``offset`` on; ``last`` is the last byte wanted."""
    with _translated(url):
        if url.startswith("file://"):
            with _path(url).open("rb") as src:
                src.seek(offset)
                yield src
            return
        headers = dict(HEADERS)
        if offset or last is not None:
            headers["Range"] = f"bytes={offset}-{'' if last is None else last}"
        reply = _open(urllib.request.Request(url, headers=headers))  # noqa: S310
        with contextlib.closing(reply):
            if offset and reply.status != http.HTTPStatus.PARTIAL_CONTENT:
                _skip(reply, offset)
            yield reply


def _open(request: urllib.request.Request) -> http.client.HTTPResponse:
    if request.type not in ("http", "https"):
        raise TransferError(f"{shown(request.full_url)}: only file, http and https URLs are read", final=True)
    reply: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT)  # noqa: S310
    return reply


def _skip(src: IO[bytes], count: int) -> None:
    """A server that ignores Range sends everything: pass over what is there already."""
    while count > 0 and (piece := src.read(min(PIECE, count))):
        count -= len(piece)


@contextlib.contextmanager
def _translated(url: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as exc:
        raise TransferError(f"{shown(url)}: not there", missing=True) from exc
    except urllib.error.HTTPError as exc:
        exc.close()
        refused = 400 <= exc.code < 500 and exc.code not in (408, 425, 429)
        what = f"{shown(url)}: HTTP {exc.code} {exc.reason}"
        missing = exc.code == http.HTTPStatus.NOT_FOUND
        # 416: an empty object has no first byte, but it is there.
        empty = exc.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
        raise TransferError(what, final=refused, missing=missing, empty=empty) from None
    except (OSError, http.client.HTTPException) as exc:
        reason = getattr(exc, "reason", None) or exc
        raise TransferError(f"{shown(url)}: {type(exc).__name__}: {reason}") from None


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """Write beside ``path``; on success that takes its place, else it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(fd, "wb") as out:
            yield out
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _path(url: str) -> Path:
    return Path(urllib.request.url2pathname(urllib.parse.urlparse(url).path))
