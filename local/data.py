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
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from cloudft.errors import DataError, NotFound

Role = Literal["system", "user", "assistant"]

COLUMNS: Final[dict[str, tuple[frozenset[str], frozenset[str]]]] = {
    # name: (columns that must be there, columns that may)
    "ChatML": (frozenset({"messages"}), frozenset()),
    "Alpaca": (frozenset({"instruction", "output"}), frozenset({"input"})),
    "prompt/completion": (frozenset({"prompt", "completion"}), frozenset()),
}
SHOWN: Final = 5  # how many bad rows an error lists
NOTHING: Final = "nothing was started and nothing was changed"
_BLANKS: Final = re.compile(r"[ \t\r\n]*")
# The longer mark first: UTF-32's begins with UTF-16's.
_OTHER_UNICODE: Final = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


@dataclass(frozen=True)
class Message:
    role: Role
    content: str


@dataclass(frozen=True)
class Row:
    """One conversation that ends with an answer. ``line`` says where in its file it began, counted from 1."""

    messages: tuple[Message, ...]
    line: int = 0

    @property
    def answers(self) -> int:
        """How many answers are trained on: every one that the assistant gives."""
        return sum(message.role == "assistant" for message in self.messages)

    def canonical(self) -> str:
        """The row as one line of JSON, the same for the same messages."""
        messages = [{"role": m.role, "content": m.content} for m in self.messages]
        return json.dumps({"messages": messages}, ensure_ascii=False, separators=(",", ":"))

    def question(self) -> str:
        """What the user asks first, without regard to case and blanks: rows that share it are kin."""
        first = next(m.content for m in self.messages if m.role == "user")
        return " ".join(first.casefold().split())


@dataclass(frozen=True)
class Facts:
    """What there is to know of a data set before it is trained on.

    ``duplicates``: rows that repeat an earlier one; ``conflicts``: questions that have several different
    answers (not counting duplicates); ``longest``: characters of the longest row.
    """

    rows: int
    answers: int
    duplicates: int
    conflicts: int
    longest: int


class _Bad(Exception):
    """What is wrong with one row."""


def load_rows(path: Path) -> list[Row]:
    """All rows of a data file, in its order.

    Raises:
        NotFound: there is no such file.
        DataError: it is empty, not UTF-8, or any row is unfit; the first few are named by line.
    """
    text = _read(path)
    rows: list[Row] = []
    problems: list[tuple[int, str]] = []
    kinds: Counter[str] = Counter()
    for line, value in _values(path, text):
        try:
            kind = _kind(value)
            kinds[kind] += 1
            if len(kinds) > 1 and kind != next(iter(kinds)):
                raise _Bad(f"this row is {kind}, but the file began with {next(iter(kinds))}; use one format")
            rows.append(Row(_messages(kind, value), line))
        except _Bad as exc:
            problems.append((line, str(exc)))
    if problems:
        raise _unfit(path, problems, len(rows) + len(problems))
    if not rows:
        raise _refusal(f"{path} is empty: it has no rows")
    return rows


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
        longest=max((sum(len(m.content) for m in row.messages) for row in rows), default=0),
    )


def _read(path: Path) -> str:
    if not path.exists():
        raise NotFound(
            f"the data file {path} is not there",
            effect=NOTHING,
            hint="set data.path in cloudft.yaml to a file of examples",
        )
    try:
        raw = path.read_bytes()
    except OSError as exc:
        raise _refusal(f"{path} cannot be read: {exc.strerror}") from exc
    for mark, name in _OTHER_UNICODE:
        if raw.startswith(mark):
            raise _refusal(f"{path} is {name} text, not UTF-8", hint="save it as UTF-8")
    try:
        # A byte-order mark before UTF-8 says nothing, and many editors write it.
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = raw.count(b"\n", 0, exc.start) + 1
        raise _refusal(
            f"{path}:{line}: byte 0x{raw[exc.start]:02x} is not UTF-8", hint="save the file as UTF-8"
        ) from exc


def _values(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Every JSON value with the line where it begins; ``_Broken`` stands for one that cannot be parsed."""
    if text.lstrip().startswith("["):
        yield from _list_values(path, text)
        return
    # Only a line feed ends a line: a JSON string may hold U+2028 and its like, where splitlines() would cut.
    for line, part in enumerate(text.split("\n"), 1):
        if part.strip():
            try:
                yield line, json.loads(part, object_pairs_hook=_unique)
            except _Bad as exc:
                yield line, exc
            except (ValueError, RecursionError) as exc:
                yield line, _Bad(f"this is not JSON: {_json_problem(exc)}")


def _list_values(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """The items of one JSON list, each with its line; a broken list is refused as a whole."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    try:
        if not json.loads(text):
            return
    except (ValueError, RecursionError) as exc:
        line = getattr(exc, "lineno", 1)
        raise _refusal(f"{path}:{line}: the list is not JSON: {_json_problem(exc)}") from exc
    at, line, counted = text.index("[") + 1, 1, 0
    while text[at - 1] != "]":
        at = _after_blanks(text, at)
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = decoder.raw_decode(text, at)
        except _Bad as exc:
            value, at = exc, json.JSONDecoder().raw_decode(text, at)[1]
        yield line, value
        at = _after_blanks(text, at) + 1  # past the comma, or the list's end


def _after_blanks(text: str, at: int) -> int:
    match = _BLANKS.match(text, at)
    return match.end() if match else at


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; one that names a key twice would silently lose a value."""
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise _Bad(f"the key {twice!r} is there twice")
    return value


def _json_problem(exc: Exception) -> str:
    if isinstance(exc, json.JSONDecodeError):
        return f"{exc.msg[0].lower()}{exc.msg[1:]} at column {exc.colno}"
    return "it is nested too deeply" if isinstance(exc, RecursionError) else str(exc)


def _kind(value: Any) -> str:
    """The format of a row by its columns."""
    if isinstance(value, _Bad):
        raise value
    if not isinstance(value, dict):
        raise _Bad(f"a row must be a JSON object, but this is {_type(value)}")
    have = set(value)
    for name, (needed, allowed) in COLUMNS.items():
        if needed <= have:
            if extra := sorted(have - needed - allowed):
                raise _Bad(f"unknown column {extra[0]!r} in a row of {name}; take it out of the file")
            return name
    for name, (needed, _) in COLUMNS.items():
        if have & needed:
            raise _Bad(f"a row of {name} needs {_names(needed)}, but {_names(needed - have)} is missing")
    known = "; ".join(_names(needed) for needed, _ in COLUMNS.values())
    raise _Bad(f"unknown columns {_names(have) or '(none)'}; a row has one of: {known}")


def _messages(kind: str, value: dict[str, Any]) -> tuple[Message, ...]:
    if kind == "ChatML":
        return _chat(value["messages"])
    if kind == "Alpaca":
        prompt = _text(value["instruction"], "instruction")
        extra = value.get("input")
        if extra not in (None, ""):
            prompt += "\n\n" + _text(extra, "input")
        return Message("user", prompt), Message("assistant", _text(value["output"], "output"))
    return (
        Message("user", _text(value["prompt"], "prompt")),
        Message("assistant", _text(value["completion"], "completion")),
    )


def _chat(value: Any) -> tuple[Message, ...]:
    """Messages in an order that a chat template can render: [system], then user and assistant in turn."""
    if not isinstance(value, list) or not value:
        raise _Bad(f"messages must be a list of messages, but it is {_type(value)}")
    messages: list[Message] = []
    for number, item in enumerate(value, 1):
        where = f"message {number}"
        if not isinstance(item, dict):
            raise _Bad(f"{where} must be an object with role and content, but it is {_type(item)}")
        if missing := {"role", "content"} - set(item):
            raise _Bad(f"{where} lacks {_names(missing)}")
        if extra := sorted(set(item) - {"role", "content"}):
            raise _Bad(f"{where} has the unknown key {extra[0]!r}; only role and content are trained on")
        expected = _next_role(messages)
        if item["role"] not in expected:
            raise _Bad(f"{where} has the role {item['role']!r}, where {' or '.join(expected)} must stand")
        messages.append(Message(item["role"], _text(item["content"], f"the content of {where}")))
    if messages[-1].role != "assistant":
        raise _Bad(f"the last message is the {messages[-1].role}'s; an answer of the assistant is missing")
    return tuple(messages)


def _next_role(messages: list[Message]) -> tuple[Role, ...]:
    if not messages:
        return ("system", "user")
    return ("assistant",) if messages[-1].role == "user" else ("user",)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise _Bad(f"{name} must be text, but it is {_type(value)}")
    if not value.strip():
        raise _Bad(f"{name} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise _Bad(f"{name} holds half a character (a lone surrogate, \\u{ord(value[exc.start]):04x})") from exc
    return value


def _type(value: Any) -> str:
    """The JSON name of a value's type."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    if value == []:
        return "an empty list"
    return names.get(type(value), "a number")


def _names(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names))


def _unfit(path: Path, problems: list[tuple[int, str]], total: int) -> DataError:
    lines = [f"  {path}:{line}: {what}" for line, what in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"  … and {len(problems) - SHOWN} more")
    count = f"{len(problems)} of {total} rows {'is' if len(problems) == 1 else 'are'} unfit for training"
    return _refusal(f"{path}: {count}:\n" + "\n".join(lines), hint="mend these rows, or take them out")


def _refusal(what: str, *, hint: str = "see README.md for the three formats of a data file") -> DataError:
    return DataError(what, effect=NOTHING, hint=hint)
