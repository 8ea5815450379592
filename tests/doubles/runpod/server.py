"""The wire: an HTTP server on loopback (and wherever a test's containers can reach it)."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from .contract import MethodNotAllowed, Operation, UnknownPath
from .graphql_api import root_fields
from .wire import Call, Principal, Reply, problem

if TYPE_CHECKING:
    from .double import RunpodDouble

MAX_BODY = 102_400  # bytes [3p]
GATEWAY_HTML = "<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"
BOT = re.compile(r"^Python-urllib/")  # the default User-Agent of urllib; a client that sets one is served [3p]


class Dropped(Exception):
    """The connection is to be broken without an answer."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], double: RunpodDouble) -> None:
        self.double = double
        super().__init__(address, Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone away is nobody's error; anything else is a defect of the double."""
        import sys

        exc = sys.exc_info()[1]
        if not isinstance(exc, OSError):
            self.double.defects.append(f"{type(exc).__name__}: {exc}")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        """Tests read ``double.calls``."""

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def _serve(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        exchange = Exchange(self.server.double, self.command, url.path, url.query, self.headers, raw)
        try:
            reply = exchange.answer()
        except Dropped:
            self._break()
            return
        self._send(reply)

    def _send(self, reply: Reply) -> None:
        if reply.stream is not None:
            self._send_stream(reply)
            return
        data = b""
        if reply.text is not None:
            data = reply.text.encode()
        elif reply.body is not None:
            data = json.dumps(reply.body).encode()
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.status != 204:
            self.send_header("Content-Type", reply.content_type)
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _send_stream(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in {**reply.headers, "Content-Type": reply.content_type}.items():
            self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in reply.stream or ():
            data = event.encode()
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def _break(self) -> None:
        """Reset the connection: the client sees an error, not an empty answer."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RDWR)
            self.connection.close()


class Exchange:
    """One request and its answer."""

    def __init__(self, double: RunpodDouble, method: str, path: str, query: str, headers: Any, raw: bytes) -> None:
        self.double, self.method, self.path, self.query = double, method, path, query
        self.headers, self.raw = headers, raw
        self.body: Any = None
        self.names: list[str] = []
        self.who: Principal | None = None

    def answer(self) -> Reply:
        """The answer; ``Dropped`` if the connection is to break. Every call is noted in ``double.calls``."""
        reply: Reply | None = None
        try:
            reply = self._answer()
            for name in self.names:
                if (delay := self.double.faults.take_call("delay", name)) is not None:
                    self.double.wait(delay.value)
                if self.double.faults.take_call("drop_reply", name) is not None:
                    raise Dropped
            return reply
        finally:
            by = self.who.kind if self.who else "nobody"
            status = reply.status if reply else 0
            at = self.double.clock.now()
            for name in self.names or ["?"]:
                self.double.calls.append(Call(name, self.method, self.path, status, at, by, self.body))

    def _answer(self) -> Reply:
        if BOT.match(self.headers.get("User-Agent", "")):
            return Reply(403, content_type="text/plain", text="error code: 1010")
        if self.path == "/graphql":
            return self._graphql()
        if self.path == "/v2" or self.path.startswith("/v2/"):
            return self._rest()
        return Reply(404, content_type="text/plain", text="404 page not found")

    def _graphql(self) -> Reply:
        if self.method != "POST":
            return Reply(405, content_type="text/plain", text="405", headers={"Allow": "POST"})
        with contextlib.suppress(ValueError):
            self.body = json.loads(self.raw)
        query = self.body.get("query") if isinstance(self.body, dict) else None
        self.names = root_fields(query) if isinstance(query, str) else []
        if (fault := self._fault()) is not None:
            return fault
        self._authenticate()
        if self.who is None:
            message = {"message": "Unauthorized", "extensions": {"code": "UNAUTHENTICATED"}}
            return Reply(401, {"errors": [message]})
        if (limited := self._limited()) is not None:
            return limited
        return self.double.graphql.handle(self.body, self.who)

    def _rest(self) -> Reply:
        try:
            operation = self.double.contract.match(self.method, self.path)
        except UnknownPath:
            self.double.misuses.append(f"{self.method} {self.path}: no such path")
            return problem(404, "resource not found")
        except MethodNotAllowed as exc:
            self.double.misuses.append(f"{self.method} {self.path}: method not allowed")
            detail = "The requested method is not allowed for this path."
            return problem(405, detail, headers={"Allow": exc.allow})
        self.names = [operation.id]
        if (fault := self._fault()) is not None:
            return fault
        self._authenticate()
        if self.who is None:
            given = "Authorization" in self.headers
            return problem(401, "invalid bearer token" if given else "missing bearer token")
        reply = self._limited() or self._checked(operation, self.who)
        reply.headers.update(self.double.limiter.headers())
        if reply.stream is None:
            errors = self.double.contract.response_errors(operation, reply.status, reply.content_type, reply.body)
            self.double.defects += [f"{operation.id}: {error}" for error in errors]
        return reply

    def _checked(self, operation: Operation, who: Principal) -> Reply:
        if len(self.raw) > MAX_BODY:
            return problem(413, f"the body is larger than {MAX_BODY} bytes")
        values, errors = self.double.contract.parameters(operation, self.query, self.headers)
        if self.double.contract.takes_body(operation):
            try:
                self.body = json.loads(self.raw)
            except ValueError:
                self.double.misuses.append(f"{operation.id}: the body is not JSON")
                return problem(400, "the body is not JSON")
            errors += self.double.contract.body_errors(operation, self.body)
        if errors:
            self.double.misuses += [f"{operation.id}: {error}" for error in errors]
            return problem(422, "Request validation failed.", errors)
        params = {name: unquote(value) for name, value in operation.path_params.items()}
        bound = Operation(operation.id, operation.method, operation.template, operation.spec, params)
        return self.double.rest.handle(bound, values, self.body, who)

    def _fault(self) -> Reply | None:
        """What strikes before the server acts."""
        faults = self.double.faults
        for name in self.names:
            if faults.take_call("drop_request", name) is not None:
                raise Dropped
            if faults.take_call("bad_gateway", name) is not None:
                return Reply(502, content_type="text/html", text=GATEWAY_HTML)
            if (limit := faults.take_call("rate_limit", name)) is not None:
                return self._too_many(max(1, round(limit.value)))
        return None

    def _limited(self) -> Reply | None:
        wait = self.double.limiter.spend(self.double.clock.now())
        return None if wait is None else self._too_many(wait)

    def _too_many(self, retry_after: int) -> Reply:
        return problem(
            429,
            "rate limit exceeded for the minute window",
            headers={"Retry-After": str(retry_after)},
        )

    def _authenticate(self) -> None:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else ""
        if not key and self.path == "/graphql":
            key = parse_qs(self.query).get("api_key", [""])[0]  # [doc]
        self.who = self.double.principal(key)


class Limiter:
    """So many requests a minute, in fixed windows; with no limit it sends no headers, as for exempt callers [doc]."""

    def __init__(self, per_minute: int | None) -> None:
        self._quota = per_minute
        self._lock = threading.Lock()
        self._window = 0.0
        self._used = 0
        self._reset = 60

    def spend(self, now: float) -> int | None:
        """Count a request; the seconds to wait if there is none left."""
        if self._quota is None:
            return None
        with self._lock:
            if now // 60 != self._window:
                self._window, self._used = now // 60, 0
            self._used += 1
            self._reset = max(1, round(60 - now % 60))
            return self._reset if self._used > self._quota else None

    def headers(self) -> dict[str, str]:
        if self._quota is None:
            return {}
        left = max(0, self._quota - self._used)
        return {
            "RateLimit": f'"minute";r={left};t={self._reset}',
            "RateLimit-Policy": f'"minute";q={self._quota};w=60',
        }
