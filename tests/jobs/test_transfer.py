"""Transfers against a real HTTP server with switchable faults, and against folders."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from jobs import transfer
from jobs.transfer import TransferError

SECRET = "X-Amz-Signature=topsecret"
PAYLOAD = bytes(range(256)) * 5000
SHA = hashlib.sha256(PAYLOAD).hexdigest()


class Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, bytes] = {"/data": PAYLOAD, "/empty": b""}
        self.cut_after: int | None = None
        self.ignore_range = False
        self.status: int | None = None
        self.agents: list[str] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}?{SECRET}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        body = self.server.objects.get(self.path.partition("?")[0])
        self.server.agents.append(self.headers["User-Agent"])
        if self.server.status or body is None:
            return self.send_error(self.server.status or 404)
        first = 0
        wanted = self.headers["Range"]
        if wanted and not self.server.ignore_range:
            first = int(wanted.removeprefix("bytes=").partition("-")[0])
            if first >= len(body):
                return self.send_error(416)
            self.send_response(206)
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body) - first))
        self.end_headers()
        end = self.server.cut_after or len(body)
        self.wfile.write(body[first : max(end, first)])
        return None

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.status:
            return self.send_error(self.server.status)
        self.server.objects[self.path.partition("?")[0]] = body
        self.send_response(200)
        self.end_headers()
        return None


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_broken_download_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "a" / "data"
    server.cut_after = 100_000
    with pytest.raises(TransferError) as caught:
        transfer.fetch(server.url("/data"), target, SHA, len(PAYLOAD))
    assert not caught.value.final
    assert not target.exists()
    assert target.with_name("data.part").stat().st_size == 100_000
    server.cut_after = None
    got: list[int] = []
    transfer.fetch(server.url("/data"), target, SHA, len(PAYLOAD), got.append)
    assert target.read_bytes() == PAYLOAD
    assert sum(got) == len(PAYLOAD) - 100_000


def test_a_server_without_ranges_is_resumed_all_the_same(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.part").write_bytes(PAYLOAD[:77])
    server.ignore_range = True
    transfer.fetch(server.url("/data"), tmp_path / "data", SHA, len(PAYLOAD))
    assert (tmp_path / "data").read_bytes() == PAYLOAD


def test_a_changed_object_is_refused_for_good(server: Server, tmp_path: Path) -> None:
    server.objects["/data"] = PAYLOAD[:-1] + b"!"
    with pytest.raises(TransferError, match="sha256") as caught:
        transfer.fetch(server.url("/data"), tmp_path / "data", SHA, len(PAYLOAD))
    assert caught.value.final
    assert list(tmp_path.iterdir()) == []


def test_exists_tells_missing_empty_and_unknown_apart(server: Server) -> None:
    assert transfer.exists(server.url("/data"))
    assert transfer.exists(server.url("/empty"))
    assert not transfer.exists(server.url("/none"))
    server.status = 403
    with pytest.raises(TransferError, match="403"):
        transfer.exists(server.url("/data"))


@pytest.mark.parametrize(("status", "final"), [(403, True), (404, True), (429, False), (500, False), (503, False)])
def test_what_is_worth_another_try(server: Server, status: int, final: bool) -> None:
    server.status = status
    with pytest.raises(TransferError) as caught:
        transfer.put_bytes(server.url("/x"), b"x")
    assert caught.value.final is final
    assert SECRET not in str(caught.value)


def test_a_dead_server_is_worth_another_try_and_no_signature_is_shown(tmp_path: Path) -> None:
    with pytest.raises(TransferError) as caught:
        transfer.read_bytes(f"http://127.0.0.1:9/data?{SECRET}")
    assert not caught.value.final
    assert "topsecret" not in repr(caught.value)
    assert caught.value.__cause__ is None


def test_upload_reads_back_with_the_same_sha256(server: Server, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(PAYLOAD)
    transfer.put_file(server.url("/up"), tmp_path / "f")
    assert transfer.remote_sha256(server.url("/up")) == SHA
    url = (tmp_path / "deep" / "copy").as_uri()
    transfer.put_file(url, tmp_path / "f")
    assert transfer.remote_sha256(url) == SHA


def test_urllibs_own_agent_is_never_sent(server: Server) -> None:
    """Some services answer 403 to it, so that a machine could never end itself."""
    transfer.read_bytes(server.url("/data"))
    assert server.agents == ["cloudft-supervisor/1"]


def test_other_schemes_are_refused() -> None:
    with pytest.raises(TransferError, match="only file, http and https"):
        transfer.read_bytes("ftp://127.0.0.1/x")


def test_retried_gives_up_in_time_and_at_once_when_final() -> None:
    calls: list[int] = []

    def fail(final: bool) -> None:
        calls.append(1)
        raise TransferError("no", final=final)

    with pytest.raises(TransferError):
        transfer.retried(lambda: fail(True), until=9e12)
    assert len(calls) == 1
    with pytest.raises(TransferError):
        transfer.retried(lambda: fail(False), until=0)
    assert len(calls) == 2
