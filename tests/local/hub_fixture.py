"""A model hub on loopback: one repository with one commit, one gated repository, and 404 for the rest."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

REPOSITORY = "owner/tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves the files of ``folder`` as ``REPOSITORY``; ``served`` lists the paths of files that were asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.served: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def answer(self, request: BaseHTTPRequestHandler, body: bool) -> None:
        path, _, _ = request.path.partition("?")
        headers: dict[str, str] = {}
        status, content = 404, b"{}"
        api, resolve = f"/api/models/{REPOSITORY}", f"/{REPOSITORY}/resolve/"
        if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            status, content = (
                200,
                json.dumps({"id": REPOSITORY, "sha": COMMIT, "siblings": self.files("rfilename")}).encode(),
            )
        elif path.startswith(f"{api}/tree/"):
            status, content = 200, json.dumps(self.files("path")).encode()
        elif path.startswith(api):
            headers["X-Error-Code"] = "RevisionNotFound"
        elif path.startswith(resolve):
            file = self.folder / path.removeprefix(resolve).split("/", 1)[1]
            self.served.append(file.name)
            if file.is_file():
                status, content = 200, file.read_bytes()
                headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            else:
                headers["X-Error-Code"] = "EntryNotFound"
        elif "gated" in path:
            status, headers = 403, {"X-Error-Code": "GatedRepo"}
        else:
            headers["X-Error-Code"] = "RepoNotFound"
        request.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            request.send_header(key, value)
        request.end_headers()
        if body:
            request.wfile.write(content)

    def files(self, key: str) -> list[dict[str, object]]:
        return [
            {key: p.name, "type": "file", "size": p.stat().st_size, "oid": hashlib.sha1(p.read_bytes()).hexdigest()}
            for p in sorted(self.folder.iterdir())
        ]


@pytest.fixture
def fake_hub(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    folder = Path(shutil.copytree(tiny_base, tmp_path / "hub-repository"))
    (folder / "README.md").write_text("a model card")
    (folder / "notes.txt").write_text("nothing that a model needs")
    hub = FakeHub(folder)
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    yield hub
    hub.stop()
