"""A file of any size goes through stores that take so many bytes in one request, and comes back whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs import pieces, transfer
from jobs.ticket import Output
from jobs.transfer import TransferError, Window
from tests.services.s3 import S3Server

SIZES = [0, 1, 999, 1000, 1001, 3500]


def places(store: Path, count: int) -> dict[str, Output]:
    store.mkdir(exist_ok=True)
    urls = {name: (store / name).as_uri() for name in (pieces.piece_name("a.tar", i) for i in range(count))}
    return {name: Output(put=url, get=url) for name, url in urls.items()}


@pytest.mark.parametrize("size", SIZES)
def test_what_is_cut_comes_back(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(size))
    outputs = places(tmp_path / "store", 4)
    names = pieces.send(outputs, "a.tar", path, 1000)
    assert names == ["a.tar", "a.tar.1", "a.tar.2", "a.tar.3"][: max(1, -(-size // 1000))]
    assert [(tmp_path / "store" / name).stat().st_size for name in names][:-1] == [1000] * (len(names) - 1)
    back = tmp_path / "back"
    pieces.fetch(outputs, "a.tar", back, transfer.sha256_file(path), size, 1000)
    assert back.read_bytes() == path.read_bytes()


def test_a_broken_download_goes_on_in_the_middle_of_a_piece(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(3500))
    outputs = places(tmp_path / "store", 4)
    pieces.send(outputs, "a.tar", path, 1000)
    (tmp_path / "store" / "a.tar").unlink()  # it is not read again
    (tmp_path / "back.part").write_bytes(path.read_bytes()[:1700])
    pieces.fetch(outputs, "a.tar", tmp_path / "back", transfer.sha256_file(path), 3500, 1000)
    assert (tmp_path / "back").read_bytes() == path.read_bytes()


def test_a_piece_that_is_short_or_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(2500))
    outputs = places(tmp_path / "store", 3)
    pieces.send(outputs, "a.tar", path, 1000)
    (tmp_path / "store" / "a.tar.1").write_bytes(b"short")
    for what in (r"a\.tar\.1: it ended after 5 of 1000 bytes", r"a\.tar\.1: it ended after 5 of 1000 bytes"):
        with pytest.raises(TransferError, match=what):
            pieces.fetch(outputs, "a.tar", tmp_path / "back", transfer.sha256_file(path), 2500, 1000)
    (tmp_path / "store" / "a.tar.1").unlink()
    with pytest.raises(TransferError, match=r"a\.tar\.1: not there"):
        pieces.fetch(outputs, "a.tar", tmp_path / "back", transfer.sha256_file(path), 2500, 1000)


def test_a_file_that_the_ticket_has_no_room_for_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(2500))
    with pytest.raises(TransferError, match="the ticket has room for") as caught:
        pieces.send(places(tmp_path / "store", 2), "a.tar", path, 1000)
    assert caught.value.final
    assert list((tmp_path / "store").iterdir()) == []


def test_through_presigned_urls(tmp_path: Path, s3_server: S3Server) -> None:
    client, bucket = s3_server.client(), s3_server.create_bucket()

    def url(method: str, name: str) -> str:
        return str(client.generate_presigned_url(method, Params={"Bucket": bucket, "Key": name}, ExpiresIn=600))

    names = ["a.tar", "a.tar.1", "a.tar.2"]
    outputs = {name: Output(put=url("put_object", name), get=url("get_object", name)) for name in names}
    path = tmp_path / "file"
    path.write_bytes(os.urandom(2_500_000))
    assert pieces.send(outputs, "a.tar", path, 1_000_000) == names
    assert client.get_object(Bucket=bucket, Key="a.tar.2")["ContentLength"] == 500_000
    pieces.fetch(outputs, "a.tar", tmp_path / "back", transfer.sha256_file(path), 2_500_000, 1_000_000)
    assert (tmp_path / "back").read_bytes() == path.read_bytes()
    client.put_object(Bucket=bucket, Key="a.tar.1", Body=b"x" * 1_000_000)
    assert not transfer.arrived(outputs["a.tar.1"].get, Window(path, 1_000_000, 1_000_000))
