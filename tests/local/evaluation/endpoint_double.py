"""A strict OpenAI-compatible endpoint on loopback: refuses what the API does not know, and fails where it is told to.

The last character of a question chooses the answer, as with the table models, or the fault:

    answers["a"]    answered
    "!500"          500, every time
    "!503x2"        503 twice, then the answer "late"
    "!drop"         the connection is cut, every time
    "!dropx1"       the connection is cut once, then the answer "late"
    "!garbage"      200 with what is no completion
    "!hold"         answered only when ``release`` is set
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from local.evaluation.endpoint import LLAMA_SERVER, Endpoint

KEY = "a-key-of-the-double"
MODEL = "double"
KNOWN = {
    "model",
    "messages",
    "max_tokens",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stream",
    "tools",
}
LLAMA = {"top_k", "min_p", "repeat_penalty", "cache_prompt"}


class EndpointDouble:
    """``slots``: what it tells as a llama-server, None as any other. ``most_at_once``: of what it was asked."""

    def __init__(self, answers: Mapping[str, str], slots: int | None = None) -> None:
        self.answers, self.slots = answers, slots
        self.asked: list[str] = []
        self.tries: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self.release = threading.Event()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                double._answer(self, body)

            def do_GET(self) -> None:
                if self.headers.get("Authorization") != f"Bearer {KEY}":
                    double.send(self, 401, {"error": {"message": "no key"}})
                elif self.path == "/props" and double.slots is not None:
                    double.send(self, 200, {"total_slots": double.slots})
                elif self.path == "/v1/models":
                    double.send(self, 200, {"data": [{"id": MODEL}]})
                else:
                    double.send(self, 404, {"error": {"message": "not found"}})

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def get_request(self) -> Any:
                connection, address = super().get_request()
                with double._lock:
                    double._open.add(connection)
                return connection, address

            def handle_error(self, *args: object) -> None:
                pass  # a client that went away

        self._server = Server(("127.0.0.1", 0), Handler)
        engine = "double" if slots is None else LLAMA_SERVER
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self.endpoint = Endpoint(self.url, KEY, MODEL, engine)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self) -> EndpointDouble:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening, and cut every connection: from now on it is gone."""
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        with self._lock:
            for connection in self._open:
                _cut(connection)

    def send(self, handler: BaseHTTPRequestHandler, status: int, value: Any) -> None:
        raw = json.dumps(value).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(raw)))
        handler.end_headers()
        handler.wfile.write(raw)

    def _answer(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        if handler.headers.get("Authorization") != f"Bearer {KEY}":
            self.send(handler, 401, {"error": {"message": "no key"}})
            return
        if unknown := body.keys() - (KNOWN if self.slots is None else KNOWN | LLAMA):
            self.send(handler, 400, {"error": {"message": f"unknown arguments: {sorted(unknown)}"}})
            return
        if body["model"] != MODEL or handler.path != "/v1/chat/completions":
            self.send(handler, 404, {"error": {"message": "no such model"}})
            return
        question = body["messages"][-1]["content"]
        with self._lock:
            self.asked.append(question)
            self.tries[question] += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self._play(handler, question, body)
        finally:
            with self._lock:
                self.at_once -= 1

    def _play(self, handler: BaseHTTPRequestHandler, question: str, body: dict[str, Any]) -> None:
        fault = re.search(r"!(\d+|drop|garbage|hold)(?:x(\d+))?$", question)
        if fault is None:
            self._complete(handler, self.answers[question[-1]], body)
            return
        kind, times = fault.group(1), int(fault.group(2) or 10**6)
        if kind == "hold":
            self.release.wait(60)
        elif self.tries[question] <= times:
            self._fail(handler, kind)
            return
        self._complete(handler, "late", body)

    def _fail(self, handler: BaseHTTPRequestHandler, kind: str) -> None:
        if kind == "drop":
            handler.close_connection = True
            _cut(handler.connection)
        elif kind == "garbage":
            self.send(handler, 200, {"choices": []})
        else:
            self.send(handler, int(kind), {"error": {"message": f"told to fail with {kind}"}})

    def _complete(self, handler: BaseHTTPRequestHandler, text: str, body: dict[str, Any]) -> None:
        # Another seed, another answer, where chance is asked for.
        text += f" {body['seed']}" if body["temperature"] else ""
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": len(body["messages"][-1]["content"]), "completion_tokens": 1}
        self.send(handler, 200, {"choices": [choice], "usage": usage})


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
