"""Rows and replies, with only what a test is about."""

from __future__ import annotations

from typing import Any

from local.evaluation.endpoint import Reply
from local.evaluation.tasks.base import Row


def row(expected: Any, prompt: str = "?", number: int = 1) -> Row:
    text = expected if isinstance(expected, str) else repr(expected)
    return Row(number, ({"role": "user", "content": prompt},), text, expected)


def reply(text: str, calls: tuple[dict[str, Any], ...] = ()) -> Reply:
    return Reply(text, "stop", 1, 1, calls)
