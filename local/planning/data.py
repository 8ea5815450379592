"""A data file → rows that can be trained on, or a list of what is wrong with it, by file and line.

Three formats are taken, as JSON lines or as one JSON list, one format per file:

    ChatML              {"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}]}
    Alpaca              {"instruction": …, "input": …, "output": …}           ``input`` may be left out
    prompt/completion   {"prompt": …, "completion": …}

All become ChatML messages. A row that would be trained on otherwise than it reads is refused, not mended: an
unknown column may well be the one that its author thinks is used.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from local.jsonl import Bad, json_type, parse_rows, quoted, text

Role = Literal["system", "user", "assistant"]

COLUMNS: Final[dict[str, tuple[frozenset[str], frozenset[str]]]] = {
    # name: (columns that must be there, columns that may)
    "ChatML": (frozenset({"messages"}), frozenset()),
    "Alpaca": (frozenset({"instruction", "output"}), frozenset({"input"})),
    "prompt/completion": (frozenset({"prompt", "completion"}), frozenset()),
}


@dataclass(frozen=True)
class Message:
    role: Role
    content: str


def question(messages: Iterable[Message]) -> str:
    """What the user asks first, as it is compared."""
    return plain_question(next(m.content for m in messages if m.role == "user"))


def plain_question(text: str) -> str:
    """Without regard to case, blanks and the way in which characters are written."""
    return " ".join(plain(text).split())


def plain(text: str) -> str:
    """A text as it is compared: compatible forms unified (many tokenizers do no less), case folded."""
    return unicodedata.normalize("NFKC", text).casefold()


@dataclass(frozen=True)
class Row:
    """One conversation that ends with an answer. ``line`` says where in its file it began, counted from 1."""

    messages: tuple[Message, ...]
    line: int = 0

    @property
    def size(self) -> int:
        """Characters of all messages."""
        return sum(len(message.content) for message in self.messages)

    @property
    def answers(self) -> int:
        """How many answers are trained on: every one that the assistant gives."""
        return sum(message.role == "assistant" for message in self.messages)

    def canonical(self) -> str:
        """The row as one line of JSON, the same for the same messages."""
        messages = [{"role": m.role, "content": m.content} for m in self.messages]
        return json.dumps({"messages": messages}, ensure_ascii=False, separators=(",", ":"))

    def question(self) -> str:
        """What the user asks first: rows that share it are kin."""
        return question(self.messages)


@dataclass(frozen=True)
class Facts:
    """What there is to know of a data set before it is trained on.

    ``duplicates``: rows that repeat an earlier one; ``conflicts``: questions that have several different
    answers (not counting duplicates); ``longest`` and ``characters``: of the longest row, and of all rows.
    """

    rows: int
    answers: int
    duplicates: int
    conflicts: int
    longest: int
    characters: int


def load_rows(path: Path, key: str = "data.path") -> list[Row]:
    """All rows of a data file, in its order. ``key`` of ``cloudft.yaml`` names it.

    Raises:
        NotFound: there is no such file.
        DataError: it is empty, not UTF-8, or any row is unfit; the first few are named by line.
    """
    kinds: list[str] = []

    def parse(value: Any, line: int) -> Row:
        kind = _kind(value)
        kinds.append(kind)
        if kind != kinds[0]:
            raise Bad(f"this row is {kind}, but the file began with {kinds[0]}; use one format")
        return Row(_messages(kind, value), line)

    return parse_rows(path, parse, key)


def describe(rows: Iterable[Row]) -> Facts:
    """Counts that a person should see before paying for a run."""
    rows = list(rows)
    distinct = {row.canonical(): row for row in rows}
    answers: dict[str, set[str]] = {}
    for row in distinct.values():
        prompt = json.dumps([(m.role, m.content) for m in row.messages[:-1]])
        answers.setdefault(prompt, set()).add(row.messages[-1].content)
    return Facts(
        rows=len(rows),
        answers=sum(row.answers for row in rows),
        duplicates=len(rows) - len(distinct),
        conflicts=sum(len(given) > 1 for given in answers.values()),
        longest=max((row.size for row in rows), default=0),
        characters=sum(row.size for row in rows),
    )


def _kind(value: Any) -> str:
    """The format of a row by its columns."""
    have = set(value)
    for name, (needed, allowed) in COLUMNS.items():
        if needed <= have:
            if extra := sorted(have - needed - allowed):
                raise Bad(f"unknown column {extra[0]!r} in a row of {name}; take it out of the file")
            return name
    for name, (needed, _) in COLUMNS.items():
        if have & needed:
            raise Bad(f"a row of {name} needs {quoted(needed)}, but {quoted(needed - have)} is missing")
    known = "; ".join(quoted(needed) for needed, _ in COLUMNS.values())
    raise Bad(f"unknown columns {quoted(have) or '(none)'}; a row has one of: {known}")


def _messages(kind: str, value: dict[str, Any]) -> tuple[Message, ...]:
    if kind == "ChatML":
        return chat(value["messages"], "messages", "assistant")
    if kind == "Alpaca":
        prompt = text(value["instruction"], "instruction")
        extra = value.get("input")
        if extra not in (None, ""):
            prompt += "\n\n" + text(extra, "input")
        return Message("user", prompt), Message("assistant", text(value["output"], "output"))
    return (
        Message("user", text(value["prompt"], "prompt")),
        Message("assistant", text(value["completion"], "completion")),
    )


def chat(value: Any, name: str, last: Role) -> tuple[Message, ...]:
    """Messages in an order that a chat template can render: [system], then user and assistant in turn.

    Raises:
        Bad: they are in another order, or the last is not of the role ``last``.
    """
    if not isinstance(value, list) or not value:
        raise Bad(f"{name} must be a list of messages, but it is {json_type(value)}")
    messages: list[Message] = []
    for number, item in enumerate(value, 1):
        where = f"message {number}"
        if not isinstance(item, dict):
            raise Bad(f"{where} must be an object with role and content, but it is {json_type(item)}")
        if missing := {"role", "content"} - set(item):
            raise Bad(f"{where} lacks {quoted(missing)}")
        if extra := sorted(set(item) - {"role", "content"}):
            raise Bad(f"{where} has the unknown key {extra[0]!r}; only role and content are trained on")
        expected = _next_role(messages)
        if item["role"] not in expected:
            raise Bad(f"{where} has the role {item['role']!r}, where {' or '.join(expected)} must stand")
        messages.append(Message(item["role"], text(item["content"], f"the content of {where}")))
    if messages[-1].role != last:
        missing_one = "an answer of the assistant" if last == "assistant" else "a question of the user"
        raise Bad(f"the last message is the {messages[-1].role}'s; {missing_one} is missing")
    return tuple(messages)


def _next_role(messages: list[Message]) -> tuple[Role, ...]:
    if not messages:
        return ("system", "user")
    return ("assistant",) if messages[-1].role == "user" else ("user",)
