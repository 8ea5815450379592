"""Preferences for a dpo stage: a file → pairs of answers, or a list of what is wrong with it, by file and line.

    {"prompt": …, "chosen": …, "rejected": …}

``prompt`` is text, or messages that end with the user's; ``chosen`` and ``rejected`` are text, or a list of the one
message of the assistant.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from local.jsonl import Bad, json_type, parse_rows, quoted, text
from local.planning.data import Message, chat, question

COLUMNS: Final = frozenset({"prompt", "chosen", "rejected"})


@dataclass(frozen=True)
class Pair:
    """One question and two answers. ``line`` says where in its file it began, counted from 1."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    line: int = 0

    @property
    def size(self) -> int:
        """Characters of the prompt and the longer answer."""
        asked = sum(len(message.content) for message in self.prompt)
        return asked + max(len(self.chosen), len(self.rejected))

    def canonical(self) -> str:
        """The pair as one line of JSON, the same for the same texts."""
        prompt = [{"role": m.role, "content": m.content} for m in self.prompt]
        row = {"prompt": prompt, "chosen": self.chosen, "rejected": self.rejected}
        return json.dumps(row, ensure_ascii=False, separators=(",", ":"))

    def question(self) -> str:
        """As a row's, so that pairs and rows that ask the same are known."""
        return question(self.prompt)


def load_pairs(path: Path, key: str) -> list[Pair]:
    """All pairs of a file, in its order. ``key`` of ``cloudft.yaml`` names it.

    Raises:
        NotFound: there is no such file.
        DataError: it is empty, not UTF-8, or any row is unfit; the first few are named by line.
    """
    return parse_rows(path, _pair, key)


def _pair(value: dict[str, Any], line: int) -> Pair:
    if missing := COLUMNS - set(value):
        raise Bad(f"a preference needs {quoted(COLUMNS)}, but {quoted(missing)} is missing")
    if extra := sorted(set(value) - COLUMNS):
        raise Bad(f"unknown column {extra[0]!r} in a preference; take it out of the file")
    pair = Pair(_prompt(value["prompt"]), _answer(value, "chosen"), _answer(value, "rejected"), line)
    if pair.chosen.strip() == pair.rejected.strip():
        raise Bad("chosen and rejected are the same answer")
    return pair


def _prompt(value: Any) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message("user", text(value, "prompt")),)
    return chat(value, "prompt", "user")


def _answer(row: dict[str, Any], name: str) -> str:
    value = row[name]
    if isinstance(value, list):
        if len(value) != 1 or not isinstance(value[0], dict) or set(value[0]) != {"role", "content"}:
            raise Bad(f"{name} must be text, or a list of one message with role and content")
        if value[0]["role"] != "assistant":
            raise Bad(f"the message in {name} has the role {value[0]['role']!r}, where assistant must stand")
        value = value[0]["content"]
    elif not isinstance(value, str):
        raise Bad(f"{name} must be text or a message, but it is {json_type(value)}")
    return text(value, name)
