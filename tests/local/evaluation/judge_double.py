"""A judge on loopback: an OpenAI-compatible endpoint that is strict about requests and switchable in character."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "the-judges-key"
MODEL = "judge-1"
PLAIN = {"model", "messages", "max_tokens", "temperature", "top_p", "seed", "stream"}
ALLOWED = PLAIN | {"presence_penalty", "frequency_penalty"}
Judge = Callable[[str, str], str]
"""From the answers that stand first and second to the judge's own text."""


def longer(first: str, second: str) -> str:
    """By content: the longer answer is better."""
    if len(first) == len(second):
        return "They are alike.\nVERDICT: TIE"
    return f"One says more.\nVERDICT: {1 if len(first) > len(second) else 2}"


def always_first(first: str, second: str) -> str:
    return "The first is clearly better.\nVERDICT: 1"


def refuses(first: str, second: str) -> str:
    return "I cannot compare these."


class JudgeDouble:
    """``character`` decides; ``status``: of every answer; ``hold``: requests wait until it is set."""

    def __init__(self, character: Judge = longer) -> None:
        self.character, self.status = character, 200
        self.extra: set[str] = set()
        self.requests: list[dict[str, Any]] = []
        self.hold = threading.Event()
        self.hold.set()
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                double._reply(self, 200, {"data": [{"id": MODEL}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                double._judge(self, body)

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args: object) -> None:
                pass  # a client that went away

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self) -> JudgeDouble:
        return self

    def __exit__(self, *exc: object) -> None:
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()

    def _judge(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        if handler.headers.get("Authorization") != f"Bearer {KEY}":
            self._reply(handler, 401, {"error": {"message": "wrong key"}})
            return
        unknown = body.keys() - ALLOWED - self.extra
        if unknown or body.get("model") != MODEL or handler.path != "/v1/chat/completions":
            self._reply(handler, 400, {"error": {"message": f"not understood: {sorted(unknown)} {body.get('model')}"}})
            return
        self.requests.append(body)
        self.hold.wait(30)
        if self.status != 200:
            self._reply(handler, self.status, {"error": {"message": "told to fail"}})
            return
        said = self.character(*answers_in(body["messages"][-1]["content"]))
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        self._reply(handler, 200, {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 10}})

    def _reply(self, handler: BaseHTTPRequestHandler, status: int, value: Any) -> None:
        raw = json.dumps(value).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(raw)))
        handler.end_headers()
        handler.wfile.write(raw)


def answers_in(question: str) -> tuple[str, str]:
    """The two answers, by their marks. Raises if the marks are not where they must be."""
    found = []
    for place in (1, 2):
        pattern = rf"^<(m\w{{12}}) answer {place}>\n(.*?)\n</\1 answer {place}>$"
        match = re.search(pattern, question, re.DOTALL | re.MULTILINE)
        assert match, question
        found.append(match.group(2))
    return found[0], found[1]
