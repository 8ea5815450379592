"""What the tests of the doubles say again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx

L4 = "NVIDIA L4"


def pod_body(name: str = "run-1", **more: Any) -> dict[str, Any]:
    """The smallest body of a create, and whatever the test adds."""
    return {"name": name, "image": "repo/train@sha256:0", "gpu": {"id": L4, "count": 1}, **more}


def create(http: httpx.Client, name: str = "run-1", **more: Any) -> dict[str, Any]:
    """Rent a pod by REST."""
    reply = http.post("/v2/pods", json=pod_body(name, **more))
    assert reply.status_code == 201, reply.text
    body: dict[str, Any] = reply.json()
    return body


def graphql(http: httpx.Client, query: str, **variables: Any) -> dict[str, Any]:
    """A GraphQL call that must be answered with 200."""
    reply = http.post("/graphql", json={"query": query, "variables": variables})
    assert reply.status_code == 200, reply.text
    body: dict[str, Any] = reply.json()
    return body


def until(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    """Wait for something that really happens in another process."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"never happened: {what}"
        time.sleep(0.02)
