"""What the two APIs share: who asks, and what is answered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    402: "Payment Required",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    413: "Request Entity Too Large",
    422: "Unprocessable Entity",
    429: "Too Many Requests",
    500: "Internal Server Error",
    501: "Not Implemented",
}


@dataclass(frozen=True)
class Principal:
    """Who asks: the account's key, a key that may only read, or the key of one pod."""

    kind: Literal["account", "read", "pod"]
    pod_id: str = ""


@dataclass
class Reply:
    """An HTTP answer: JSON (``body``), text, or a stream of server-sent events."""

    status: int
    body: Any = None
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    text: str | None = None
    stream: Iterator[str] | None = None


@dataclass(frozen=True)
class Call:
    """One request as the server saw it; ``status`` 0 is a broken connection before it acted."""

    name: str
    method: str
    path: str
    status: int
    at: float
    by: str
    body: Any = field(default=None, repr=False)


def problem(
    status: int, detail: str, errors: list[str] | None = None, headers: Mapping[str, str] | None = None
) -> Reply:
    """An RFC 9457 body as the document's ErrorResponse has it."""
    body: dict[str, Any] = {"title": TITLES.get(status, "Error"), "status": status, "detail": detail}
    if errors:
        body["errors"] = errors
    return Reply(status, body, "application/problem+json", dict(headers or {}))
