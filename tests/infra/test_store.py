"""One contract for every store: a folder, rclone's S3 server, and Ceph. Then what each gets wrong in bad hands."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cloudft.errors import StoreError
from infra.store import Store, StoreSettings, open_store, probe
from infra.store_folder import FolderStore
from jobs import transfer
from tests.services.s3 import S3Server, rclone_server

BIG = os.urandom(12 << 20)


def s3_store(server: S3Server, monkeypatch: pytest.MonkeyPatch, bucket: str | None = None) -> Store:
    for name, value in server.env().items():
        monkeypatch.setenv(name, value)
    return open_store(StoreSettings(f"s3://{bucket or server.create_bucket()}/pre/fix", server.endpoint), Path())


@pytest.fixture(params=["folder", "s3_server", "ceph"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "folder":
        return open_store(StoreSettings("./store"), tmp_path)
    return s3_store(request.getfixturevalue(request.param), monkeypatch)


def test_objects_come_back_as_they_went(store: Store, tmp_path: Path) -> None:
    assert store.get_bytes("runs/a/x") is None
    assert store.size("runs/a/x") is None
    store.put_bytes("runs/a/x", b"one")
    store.put_bytes("runs/a/x", b"two")
    (tmp_path / "big").write_bytes(BIG)
    sent: list[int] = []
    store.put_file("runs/a/deep/big", tmp_path / "big", sent.append)
    assert sum(sent) == len(BIG)
    assert store.get_bytes("runs/a/x") == b"two"
    assert store.size("runs/a/deep/big") == len(BIG)
    assert b"".join(store.read("runs/a/deep/big", 5_000_001)) == BIG[5_000_001:]
    store.put_bytes("runs/ab", b"a neighbour")
    assert store.keys("runs/a") == ["runs/a/deep/big", "runs/a/x"]
    store.delete("runs/a/x")
    store.delete("runs/a/x")
    assert store.keys("runs/a") == ["runs/a/deep/big"]


def test_a_machine_reads_and_writes_through_urls_alone(store: Store, tmp_path: Path) -> None:
    until = time.time() + 600
    (tmp_path / "f").write_bytes(BIG)
    transfer.put_file(store.url_to_put("k/f", until), tmp_path / "f")
    assert store.size("k/f") == len(BIG)
    url = store.url_to_get("k/f", until)
    transfer.fetch(url, tmp_path / "g", transfer.sha256_file(tmp_path / "f"), len(BIG))
    assert transfer.exists(url)
    assert not transfer.exists(store.url_to_get("k/none", until))
    store.put_bytes("k/empty", b"")
    assert transfer.exists(store.url_to_get("k/empty", until))
    probe(store, "k", until)
    assert store.keys("k") == ["k/empty", "k/f"]


@pytest.mark.parametrize("kind", ["s3_server", "ceph"])
def test_a_url_is_good_for_one_object_one_way_and_a_while(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = s3_store(request.getfixturevalue(kind), monkeypatch)
    until = time.time() + 600
    store.put_bytes("mine", b"mine")
    get, put = store.url_to_get("mine", until), store.url_to_put("mine", until)
    attempts: list[Callable[[], object]] = [
        lambda: transfer.read_bytes(get.replace("/mine", "/yours")),
        lambda: transfer.put_bytes(get, b"x"),
        lambda: transfer.read_bytes(put),
        lambda: transfer.put_bytes(put.replace("/mine", "/yours"), b"x"),
    ]
    for attempt in attempts:
        with pytest.raises(transfer.TransferError, match=r"HTTP 40[03]"):
            attempt()
    soon = store.url_to_get("mine", time.time() + 2)
    time.sleep(3.2)
    with pytest.raises(transfer.TransferError, match=r"HTTP 40[03]"):
        transfer.read_bytes(soon)
    assert store.get_bytes("mine") == b"mine"


def test_a_wrong_key_and_a_missing_bucket_are_told_apart(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = s3_store(s3_server, monkeypatch, "no-such-bucket")
    with pytest.raises(StoreError, match="there is no bucket 'no-such-bucket'"):
        missing.put_bytes("x", b"")
    with pytest.raises(StoreError, match="there is no bucket 'no-such-bucket'"):
        probe(missing, "runs/x", time.time() + 60)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-and-secret")
    refused = open_store(StoreSettings(f"s3://{s3_server.create_bucket()}", s3_server.endpoint), Path())
    with pytest.raises(StoreError, match="refuses these keys") as caught:
        refused.put_bytes("x", b"")
    assert "wrong-and-secret" not in str(caught.value)
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint


def test_no_keys_and_an_unknown_profile_say_what_to_set() -> None:
    with pytest.raises(StoreError, match="no keys found") as caught:
        open_store(StoreSettings("s3://b", "http://127.0.0.1:9"), Path()).put_bytes("x", b"")
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint
    with pytest.raises(StoreError, match="profile"):
        open_store(StoreSettings("s3://b", "http://127.0.0.1:9", profile="nobody"), Path())


@pytest.mark.parametrize("url", ["ftp://x/y", "gs://bucket", "s3://"])
def test_a_url_that_is_no_store_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        open_store(StoreSettings(url), tmp_path)


def test_keys_that_end_before_the_run_are_refused(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    store = s3_store(s3_server, monkeypatch)
    monkeypatch.setattr(store, "_credentials_until", time.time() + 60)
    with pytest.raises(StoreError, match="temporary"):
        store.url_to_get("x", time.time() + 3600)
    with pytest.raises(StoreError, match="7 days"):
        store.url_to_get("x", time.time() + 8 * 24 * 3600)


def test_a_server_that_dies_is_an_error_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with rclone_server(tmp_path) as server:
        store = s3_store(server, monkeypatch)
        store.put_bytes("x", b"x")
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(StoreError, match="cannot be reached"):
            store.get_bytes("x")


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = FolderStore(tmp_path / "file")
    with pytest.raises(StoreError, match="cannot write x"):
        store.put_bytes("x", b"x")
    with pytest.raises(StoreError, match="leaves the store"):
        FolderStore(tmp_path).put_bytes("../x", b"x")


def test_a_broken_write_leaves_nothing(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    (tmp_path / "big").write_bytes(BIG)
    with pytest.raises(KeyboardInterrupt):
        store.put_file("big", tmp_path / "big", interrupted)
    assert list((tmp_path / "store").iterdir()) == []


def test_a_store_that_hides_what_is_missing_is_refused(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the right to list, S3 answers 403 for a key that is not there, and a machine could not begin."""
    store = s3_store(s3_server, monkeypatch)

    def refused(url: str) -> bool:
        raise transfer.TransferError(f"{transfer.shown(url)}: HTTP 403 Forbidden", final=True)

    monkeypatch.setattr("jobs.transfer.exists", refused)
    with pytest.raises(StoreError, match="does not say that an object is missing") as caught:
        probe(store, "runs/x", time.time() + 60)
    assert "ListBucket" in caught.value.hint


def test_a_clock_that_is_wrong_is_refused(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    store = s3_store(s3_server, monkeypatch)
    until = time.time() + 60
    there = transfer.server_time(store.url_to_get("x", until))
    assert there is not None
    assert abs(there - time.time()) < 10
    monkeypatch.setattr("jobs.transfer.server_time", lambda _: time.time() - 400)
    with pytest.raises(StoreError, match="clock and the store's are 400 s apart"):
        probe(store, "runs/x", until)
    assert store.keys("runs") == []
