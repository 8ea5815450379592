"""The store: where a run's inputs, heartbeats and results lie. A folder, or an S3-compatible bucket.

Keys are relative paths with forward slashes ("runs/<id>/result.json"). A machine never sees the store, only
URLs for single objects: presigned ones of a bucket, ``file://`` ones of a folder.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cloudft.errors import StoreError

NOTHING = "nothing was rented"
PROBE = b"cloudft probe"
RIGHTS = "check the keys, the endpoint, the region and the rights (PutObject, GetObject, DeleteObject, ListBucket)"
# A server answers in whole seconds, and the reply takes its time.
CLOCK_TOLERANCE = 60.0


@dataclass(frozen=True)
class StoreSettings:
    """How to reach a store. Keys are not part of it: they come from the environment or the AWS profile."""

    url: str
    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None


class Store(Protocol):
    """What cloudft needs of a store. Every method raises ``StoreError`` when the store refuses or is away."""

    @property
    def url(self) -> str:
        """The store as a person would name it; holds no secret."""

    def put_file(self, key: str, path: Path, sent: Callable[[int], None] | None = None) -> None:
        """Upload a file; ``sent`` is called with the number of bytes of each piece."""

    def put_bytes(self, key: str, data: bytes) -> None:
        """Write a small object, whole or not at all."""

    def get_bytes(self, key: str) -> bytes | None:
        """A small object, or None when there is none."""

    def size(self, key: str) -> int | None:
        """Size of an object in bytes, or None when there is none."""

    def read(self, key: str, offset: int = 0) -> Iterator[bytes]:
        """The object's bytes from ``offset`` on, in pieces; what makes a download resumable."""

    def keys(self, prefix: str) -> list[str]:
        """All keys below a prefix, sorted."""

    def delete(self, key: str) -> None:
        """Remove an object; deleting what is not there is silent."""

    def url_to_get(self, key: str, until: float) -> str:
        """A URL that reads this one object until the epoch second ``until``."""

    def url_to_put(self, key: str, until: float) -> str:
        """A URL that writes this one object until the epoch second ``until``."""


def open_store(settings: StoreSettings, root: Path) -> Store:
    """The store that ``settings.url`` names; a relative folder is taken from ``root``.

    Raises:
        StoreError: the URL has a scheme that no store has.
    """
    scheme, separator, _ = settings.url.partition("://")
    if separator and scheme == "s3":
        from infra.store_s3 import S3Store

        return S3Store(settings)
    if separator and scheme != "file":
        raise StoreError(
            f"store {settings.url!r}: unknown scheme {scheme!r}",
            effect="nothing was started",
            hint="use a folder (./store) or a bucket (s3://bucket/prefix) with endpoint_url",
        )
    from infra.store_folder import FolderStore

    return FolderStore((root / settings.url.removeprefix("file://")).resolve())


def probe(store: Store, prefix: str, until: float) -> None:
    """Prove that the store works the way a run needs it, before anything is rented.

    Writes, reads back and deletes one small object, with the account's keys and through the very URLs
    that a machine would get: "S3-compatible" often is not.

    Raises:
        StoreError: any of it fails, or what comes back differs.
    """
    key = f"{prefix}/probe"
    # With the account's keys first: their errors tell a wrong key from a missing bucket.
    store.put_bytes(key, PROBE)
    try:
        _refuse_other_time(store, f"{prefix}/absent", until)
        _refuse_hidden_absence(store, f"{prefix}/absent", until)
        _round_trip(store, key, until)
    finally:
        with contextlib.suppress(StoreError):
            store.delete(key)


def _round_trip(store: Store, key: str, until: float) -> None:
    from jobs.transfer import TransferError, put_bytes, read_bytes

    try:
        put_bytes(store.url_to_put(key, until), PROBE)
        through_url = read_bytes(store.url_to_get(key, until))
    except TransferError as exc:
        raise StoreError(
            f"store {store.url}: a presigned URL does not work: {exc}", effect=NOTHING, hint=RIGHTS
        ) from exc
    if through_url != PROBE or store.get_bytes(key) != PROBE:
        raise StoreError(f"store {store.url}: what was written is not what comes back", effect=NOTHING)


def _refuse_hidden_absence(store: Store, key: str, until: float) -> None:
    """What is not there must be answered as missing: a machine that gets a refusal for it cannot begin."""
    from jobs.transfer import TransferError, exists

    try:
        there = exists(store.url_to_get(key, until))
    except TransferError as exc:
        if "HTTP 403" not in str(exc):
            raise StoreError(
                f"store {store.url}: a presigned URL does not work: {exc}", effect=NOTHING, hint=RIGHTS
            ) from exc
        there = True
    if there:
        raise StoreError(
            f"store {store.url}: it does not say that an object is missing",
            effect=NOTHING,
            hint="check the keys, and give them the right to list the bucket (ListBucket) as well",
        )


def _refuse_other_time(store: Store, key: str, until: float) -> None:
    """A deadline is counted on this computer's clock: it must be the same time as everybody else's."""
    from jobs.transfer import server_time

    there = server_time(store.url_to_get(key, until))
    if there is not None and abs(there - time.time()) > CLOCK_TOLERANCE:
        raise StoreError(
            f"this computer's clock and the store's are {abs(there - time.time()):.0f} s apart",
            effect="nothing was rented: a deadline on a wrong clock holds no budget",
            hint="set this computer's clock right (timedatectl set-ntp true), then type the same command again",
        )
