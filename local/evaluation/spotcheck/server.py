"""Serves the page on 127.0.0.1, to nobody but the holder of a random token that stands in its address.

Another page in the same browser can't guess the token, so it can't vote (no cookie would help it); one that makes its
own name point to 127.0.0.1 is turned away by its ``Host``. The page may load and send nothing but its own.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import parse_qs

from cloudft.errors import Busy
from local.evaluation.spotcheck import page
from local.evaluation.votes import Choice, VoteFile

HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
STATIC: Final = {"style.css": "text/css", "keys.js": "text/javascript"}
LONGEST: Final = 4096  # bytes of a vote
_KEPT_OPEN: Final = 30.0  # seconds


class ReviewServer:
    """One sample to vote on. Use it as a context manager; ``wait`` returns when the person has finished.

    Raises:
        Busy: the port is taken.
    """

    def __init__(self, votes: VoteFile, *, port: int = 0, on_vote: Callable[[VoteFile], None] = lambda _: None) -> None:
        self.votes = votes
        self.token = secrets.token_urlsafe(32)
        self._on_vote = on_vote
        self._lock = threading.Lock()
        self._finished = threading.Event()
        self._failed: BaseException | None = None
        try:
            self._http = _Http(("127.0.0.1", port), _Handler)
        except OSError as exc:
            raise Busy(
                f"port {port} on 127.0.0.1 cannot be used: {exc.strerror}",
                effect="no vote was lost",
                hint="choose another, or leave --port out",
            ) from exc
        self._http.review = self
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}/{self.token}/"

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(f"{name}:{self._http.server_port}" for name in ("127.0.0.1", "localhost"))

    def __enter__(self) -> ReviewServer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def wait(self, timeout: float | None = None) -> bool:
        """Whether the person has finished. Raises what kept a vote from being written."""
        finished = self._finished.wait(timeout)
        if self._failed is not None:
            raise self._failed
        return finished

    def show(self) -> str:
        with self._lock:
            return page.show(self.votes)

    def take(self, pair: str, choice: str) -> str | None:
        """Take one press of a button. A page that is not the newest (a second click) changes nothing.

        Returns:
            The last page, if the person has finished; else None.
        """
        with self._lock:
            drawn = self.votes.current
            at_hand = drawn.pair.sha256 if drawn else ""
            if pair != at_hand:
                return None
            try:
                return self._take(choice)
            except BaseException as exc:
                self._failed = exc
                self._finished.set()
                raise

    def _take(self, choice: str) -> str | None:
        drawn = self.votes.current
        if choice == "undo":
            self.votes.undo()
        elif drawn is None and choice == "finish":
            return page.bye(self.votes)
        elif drawn is not None:
            named: dict[str, Choice] = {"left": drawn.left, "right": drawn.right, "tie": "tie", "skip": "skip"}
            if choice not in named:
                return None
            self.votes.vote(drawn, named[choice])
        self._on_vote(self.votes)
        return None

    def finish(self) -> None:
        self._finished.set()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    review: ReviewServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http
    timeout = _KEPT_OPEN

    def version_string(self) -> str:
        return "cloudft"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the address holds the token."""

    def do_GET(self) -> None:
        name = self._allowed()
        if name == "":
            self._send(200, "text/html", self.server.review.show())
        elif name in STATIC:
            self._send(200, STATIC[name], (resources.files(__package__) / name).read_text(encoding="utf-8"))
        elif name is not None:
            self._send(404, "text/plain", "there is no such page")

    def do_POST(self) -> None:
        name = self._allowed()
        if name is None:
            return
        fields = self._fields()
        if name != "vote" or fields is None:
            self._refuse(400, "this is no vote")
            return
        try:
            last = self.server.review.take(fields.get("pair", "-"), fields.get("choice", ""))
        except Exception:
            self._refuse(500, "the vote could not be kept; the command that you started says why")
            return
        if last is None:
            self._send(303, "text/plain", "", {"Location": "./"})
            return
        self._send(200, "text/html", last)
        self.server.review.finish()

    def _allowed(self) -> str | None:
        """The page that is asked for, without the token before it; None if the request was turned away."""
        review = self.server.review
        if self.headers.get("Host") not in review.hosts:
            self._refuse(403, "not by this name")
            return None
        token, _, name = self.path.removeprefix("/").partition("/")
        # As bytes: compare_digest takes no other letters than those of ASCII in text.
        if not secrets.compare_digest(token.encode(), review.token.encode()):
            self._refuse(404, "there is no such page")
            return None
        origin = self.headers.get("Origin")
        if origin is not None and origin not in [f"http://{host}" for host in review.hosts]:
            self._refuse(403, "another page may not vote")
            return None
        return name

    def _fields(self) -> dict[str, str] | None:
        """What a form sent; None if it is none of ours."""
        length = self.headers.get("Content-Length", "")
        form = self.headers.get("Content-Type", "").startswith("application/x-www-form-urlencoded")
        if not form or not length.isascii() or not length.isdigit() or int(length) > LONGEST:
            return None
        fields = parse_qs(self.rfile.read(int(length)).decode("ascii", "replace"), keep_blank_values=True)
        return {key: values[-1] for key, values in fields.items()}

    def _refuse(self, status: int, why: str) -> None:
        self.close_connection = True  # what was sent along is not read
        self._send(status, "text/plain", why)

    def _send(self, status: int, kind: str, text: str, headers: Mapping[str, str] = MappingProxyType({})) -> None:
        body = text.encode(errors="replace")
        self.send_response(status)
        for name, value in {**HEADERS, **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
