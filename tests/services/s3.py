"""An S3 server with real signatures: ``rclone serve s3`` over a temporary folder."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.services.host import ENVIRONMENT, addresses, answers, free_port, running, tool

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_numbers = itertools.count(1)


@dataclass(frozen=True)
class S3Server:
    """A server and its one account. Its buckets last until the session ends: make your own, with a new name.

    ``endpoint`` works on this computer and inside containers alike, because a presigned URL signs its host;
    ``loopback`` is the same server by 127.0.0.1. ``pid`` is None for a server that is not a child of the tests.
    """

    endpoint: str
    loopback: str
    access_key: str
    secret_key: str = field(repr=False)
    region: str = "us-east-1"
    pid: int | None = None

    def client(self, endpoint: str | None = None, **config: Any) -> S3Client:
        """A boto3 client with this account's keys; ``config`` overrides botocore's settings."""
        import boto3
        from botocore.config import Config

        settings: dict[str, Any] = {
            # Without it boto3 presigns by the old version 2, which some servers refuse.
            "signature_version": "s3v4",
            "s3": {"addressing_style": "path"},
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            "retries": {"max_attempts": 3, "mode": "standard"},
        }
        return boto3.session.Session().client(
            "s3",
            endpoint_url=endpoint or self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(**{**settings, **config}),
        )

    def create_bucket(self, name: str | None = None) -> str:
        """Make a bucket, with a name that no other test has unless one is given, and return its name."""
        bucket = name or f"test-{next(_numbers)}"
        self.client().create_bucket(Bucket=bucket)
        return bucket

    def env(self) -> dict[str, str]:
        """The account as environment variables, the way a user gives it."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
        }


@contextlib.contextmanager
def rclone_server(folder: Path) -> Iterator[S3Server]:
    """A server of one's own, for a test that stops, kills or fills it. ``folder`` gets a sub-folder a bucket."""
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    port = free_port()
    access, secret = "CLOUDFTTEST", "cloudft-test-secret"
    hosts = addresses()
    command = [tool("rclone"), "serve", "s3", str(data), "--auth-key", f"{access},{secret}"]
    for host in hosts:
        command += ["--addr", f"{host}:{port}"]
    env = {**ENVIRONMENT, "RCLONE_CONFIG": str(folder / "rclone.conf"), "RCLONE_CACHE_DIR": str(folder / "cache")}
    (folder / "rclone.conf").touch()

    def ready() -> bool:
        return all(answers(host, port) for host in hosts)

    with running(command, folder / "rclone.log", ready, env=env) as process:
        yield S3Server(
            endpoint=f"http://{hosts[-1]}:{port}",
            loopback=f"http://127.0.0.1:{port}",
            access_key=access,
            secret_key=secret,
            pid=process.pid,
        )


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The everyday S3 server: it checks keys, signatures and expiry."""
    with rclone_server(tmp_path_factory.mktemp("s3")) as server:
        yield server
