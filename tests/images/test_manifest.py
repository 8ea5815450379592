"""What a registry tells without a pull: behind a password, behind a token, and nothing rather than an error."""

from __future__ import annotations

import base64
import http.server
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from urllib.parse import parse_qs, urlsplit

import pytest

from images.build import Plan
from images.lock import LABEL_CONTENT
from images.manifest import Told, describe
from images.reference import Reference, parse_repository
from tests.images.build_fixtures import build, repository_of
from tests.services.registry import RegistryServer

TOKEN = "a-token-for-one-repository"


@dataclass(frozen=True)
class Pushed:
    """An image in the registry."""

    repository: Reference
    digest: str
    content: str
    bytes: int


@pytest.fixture
def pushed(plan: Plan, registry: RegistryServer) -> Pushed:
    lock = build(plan).lock
    digest = lock.image.partition("@")[2]
    size = sum(layer["size"] for layer in registry.manifest(repository_of(plan), digest)["layers"])
    return Pushed(parse_repository(str(plan.repository)), digest, lock.content, size)


@pytest.fixture
def login(registry: RegistryServer) -> dict[str, str]:
    return {"username": registry.user, "password": registry.password}


@pytest.fixture
def token_registry(registry: RegistryServer) -> Iterator[str]:
    """Host of a registry that wants a token, as the public ones do: before the real one, which wants a password."""
    basic = base64.b64encode(f"{registry.user}:{registry.password}".encode()).decode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.headers["Host"]
            url = urlsplit(self.path)
            if url.path == "/token":
                scope = parse_qs(url.query)["scope"][0]
                right = self.headers.get("Authorization") == f"Basic {basic}" and scope.endswith(":pull")
                self.answer(200, json.dumps({"token": TOKEN}).encode()) if right else self.answer(401, b"{}")
            elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
                challenge = f'Bearer realm="http://{host}/token",service="tests",scope="repository:x:pull"'
                self.answer(401, b"{}", {"WWW-Authenticate": challenge})
            else:
                request = urllib.request.Request(f"http://{registry.host}{self.path}")
                request.add_header("Authorization", f"Basic {basic}")
                request.add_header("Accept", self.headers["Accept"])
                try:
                    with urllib.request.urlopen(request, timeout=20) as reply:
                        self.answer(reply.status, reply.read())
                except urllib.error.HTTPError as exc:
                    self.answer(exc.code, b"{}")

        def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_size_and_labels(pushed: Pushed, login: dict[str, str]) -> None:
    told = describe(pushed.repository, pushed.digest, login, insecure=True)
    assert told is not None
    assert told.pull_bytes == pushed.bytes
    assert told.labels[LABEL_CONTENT] == pushed.content


def test_with_a_token_that_the_password_buys(pushed: Pushed, login: dict[str, str], token_registry: str) -> None:
    there = Reference(f"{token_registry}/{pushed.repository.path}")
    told = describe(there, pushed.digest, login, insecure=True)
    assert isinstance(told, Told)
    assert told.pull_bytes == pushed.bytes
    assert describe(there, pushed.digest, {**login, "password": "wrong"}, insecure=True) is None
    assert describe(there, pushed.digest, {}, insecure=True) is None


def test_what_cannot_be_read_is_none(pushed: Pushed, login: dict[str, str]) -> None:
    missing = "sha256:" + "0" * 64
    assert describe(pushed.repository, missing, login, insecure=True) is None
    assert describe(pushed.repository, pushed.digest, {**login, "password": "wrong"}, insecure=True) is None
    # It speaks no TLS, and nothing listens there.
    assert describe(pushed.repository, pushed.digest, login, insecure=False) is None
    nobody = replace(pushed.repository, repository=f"127.0.0.1:9/{pushed.repository.path}")
    assert describe(nobody, pushed.digest, login, insecure=True) is None
