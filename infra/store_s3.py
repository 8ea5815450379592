"""An S3-compatible bucket as store: AWS, R2, Ceph, MinIO, B2 and others, through boto3.

Checksums are ``when_required``: boto3's default trailing CRC32 breaks R2 and others (botocore#3352), and no
server seen verifies them; cloudft keeps a sha256 of every object of its own instead.
"""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloudft.errors import StoreError
from infra.store import StoreSettings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PIECE = 1 << 20
# SigV4 refuses a presigned URL that lives longer (AWS, "Authenticating Requests: Using Query Parameters").
LONGEST_URL = 7 * 24 * 3600


class S3Store:
    """Objects below ``s3://bucket/prefix``. Keys come from the environment or the AWS profile only."""

    def __init__(self, settings: StoreSettings) -> None:
        bucket, _, prefix = settings.url.removeprefix("s3://").partition("/")
        if not bucket:
            raise StoreError(f"store {settings.url!r} names no bucket", hint="write it as s3://bucket/prefix")
        self.bucket = bucket
        self.prefix = prefix.strip("/")
        self.endpoint = settings.endpoint_url
        self._settings = settings
        self._client, self._credentials_until = _client(settings)

    @property
    def url(self) -> str:
        at = f" at {self.endpoint}" if self.endpoint else ""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/") + at

    def put_file(self, key: str, path: Path, sent: Callable[[int], None] | None = None) -> None:
        with self._translated(f"write {key}"):
            self._client.upload_file(str(path), self.bucket, self._key(key), Callback=sent)

    def put_bytes(self, key: str, data: bytes) -> None:
        with self._translated(f"write {key}"):
            self._client.put_object(Bucket=self.bucket, Key=self._key(key), Body=data)

    def get_bytes(self, key: str) -> bytes | None:
        with self._translated(f"read {key}"), self._none_if_missing():
            return self._client.get_object(Bucket=self.bucket, Key=self._key(key))["Body"].read()
        return None

    def size(self, key: str) -> int | None:
        with self._translated(f"look at {key}"), self._none_if_missing():
            return self._client.head_object(Bucket=self.bucket, Key=self._key(key))["ContentLength"]
        return None

    def read(self, key: str, offset: int = 0) -> Iterator[bytes]:
        with self._translated(f"read {key}"):
            reply = self._client.get_object(Bucket=self.bucket, Key=self._key(key), Range=f"bytes={offset}-")
            yield from reply["Body"].iter_chunks(PIECE)

    def keys(self, prefix: str) -> list[str]:
        cut = len(self._key(""))
        with self._translated(f"list {prefix}"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self._key(prefix).rstrip("/") + "/"
            )
            return sorted(item["Key"][cut:] for page in pages for item in page.get("Contents", []))

    def delete(self, key: str) -> None:
        with self._translated(f"delete {key}"):
            self._client.delete_object(Bucket=self.bucket, Key=self._key(key))

    def url_to_get(self, key: str, until: float) -> str:
        return self._presign("get_object", key, until)

    def url_to_put(self, key: str, until: float) -> str:
        return self._presign("put_object", key, until)

    def _presign(self, operation: str, key: str, until: float) -> str:
        seconds = int(until - time.time())
        if not 0 < seconds <= LONGEST_URL:
            raise StoreError(
                f"a presigned URL may live up to 7 days, and {seconds / 3600:.1f} hours were asked for",
                effect="nothing was rented",
                hint="lower max_hours in cloudft.yaml",
            )
        if self._credentials_until and self._credentials_until < until:
            raise StoreError(
                f"the keys for {self.url} are temporary and end {seconds / 3600:.1f} hours too early: "
                "URLs signed with them would die during the run",
                effect="nothing was rented",
                hint="log in again for longer, or use a permanent key that may only touch this bucket",
            )
        with self._translated(f"sign a URL for {key}"):
            params = {"Bucket": self.bucket, "Key": self._key(key)}
            return self._client.generate_presigned_url(operation, Params=params, ExpiresIn=seconds)

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    @contextlib.contextmanager
    def _none_if_missing(self) -> Iterator[None]:
        from botocore.exceptions import ClientError

        try:
            yield
        except ClientError as exc:
            if exc.response["Error"]["Code"] not in ("404", "NoSuchKey"):
                raise

    @contextlib.contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        """Turn every error of boto3 into one that says what to do. Holds no key and no signed URL."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (ClientError, BotoCoreError, Boto3Error) as exc:
            why, hint = _explain(exc, self.bucket)
            raise StoreError(
                f"store {self.url}: cannot {doing}: {why}", effect="nothing is half-written", hint=hint
            ) from exc


def _client(settings: StoreSettings) -> tuple[S3Client, float | None]:
    """The boto3 client, and the epoch second at which its credentials end (None: they do not, or unknown)."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(
        signature_version="s3v4",
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"mode": "standard", "max_attempts": 5},
        connect_timeout=10,
        read_timeout=60,
        # Virtual-hosted names need DNS for each bucket, which most other servers lack.
        s3={"addressing_style": "path"} if settings.endpoint_url else {},
    )
    try:
        session = boto3.Session(profile_name=settings.profile, region_name=settings.region)
        client = session.client("s3", endpoint_url=settings.endpoint_url, config=config)
        ends: datetime.datetime | None = getattr(session.get_credentials(), "_expiry_time", None)
        return client, ends.timestamp() if ends else None
    except (BotoCoreError, ValueError) as exc:
        why, hint = _explain(exc, settings.url)
        raise StoreError(f"store {settings.url}: {why}", effect="nothing was started", hint=hint) from exc


def _explain(exc: Exception, bucket: str) -> tuple[str, str]:
    """What a boto3 error means, and what to do about it."""
    response: Any = getattr(exc, "response", None) or getattr(exc.__cause__, "response", None)
    code = str((response or {}).get("Error", {}).get("Code", ""))
    kind = type(exc).__name__
    if code in ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch") or "(403)" in str(exc):
        return (
            "it refuses these keys",
            "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or the profile, and its rights",
        )
    if code in ("NoSuchBucket",) or "NoSuchBucket" in str(exc):
        return f"there is no bucket {bucket!r}", "create the bucket, or correct store.url in cloudft.yaml"
    if kind in ("NoCredentialsError", "PartialCredentialsError"):
        return (
            "no keys found",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or store.profile in cloudft.yaml",
        )
    if kind == "ProfileNotFound":
        return str(exc), "correct store.profile in cloudft.yaml"
    if kind in (
        "EndpointConnectionError",
        "ConnectTimeoutError",
        "ReadTimeoutError",
        "ConnectionClosedError",
    ):
        return f"it cannot be reached ({kind})", "check the network and store.endpoint_url in cloudft.yaml"
    return str(exc), "check the store section of cloudft.yaml"
