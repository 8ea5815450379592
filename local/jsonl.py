"""Files of rows, read with the line of each, or a list of what is wrong with them by file and line.

Rows are objects, as JSON lines or as one JSON list. What makes a row fit is said by who reads it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

from cloudft.errors import DataError, NotFound

T = TypeVar("T")
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


class Bad(Exception):
    """What is wrong with one row."""


def parse_rows(path: Path, parse: Callable[[Any, int], T], key: str) -> list[T]:
    """All rows of a file of JSON lines (or of one JSON list), in its order.

    Args:
        parse: makes a row of an object and its line; raises ``Bad``.
        key: of ``cloudft.yaml``, that names the file.

    Raises:
        NotFound: there is no such file.
        DataError: it is empty, not UTF-8, or any row is unfit; the first few are named by line.
    """
    rows: list[T] = []
    problems: list[tuple[int, str]] = []
    for line, value in _values(path, read_text(path, key)):
        try:
            if isinstance(value, Bad):
                raise value
            if not isinstance(value, dict):
                raise Bad(f"a row must be a JSON object, but this is {json_type(value)}")
            rows.append(parse(value, line))
        except Bad as exc:
            problems.append((line, str(exc)))
    if problems:
        raise _unfit(path, problems, len(rows) + len(problems))
    if not rows:
        raise refusal(f"{path} is empty: it has no rows")
    return rows


def read_text(path: Path, key: str) -> str:
    """A whole file. Raises as ``parse_rows``."""
    if not path.exists():
        raise NotFound(
            f"the data file {path} is not there",
            effect=NOTHING,
            hint=f"set {key} in cloudft.yaml to a file of examples",
        )
    try:
        raw = path.read_bytes()
    except OSError as exc:
        raise refusal(f"{path} cannot be read: {exc.strerror}") from exc
    for mark, name in _OTHER_UNICODE:
        if raw.startswith(mark):
            raise refusal(f"{path} is {name} text, not UTF-8", hint="save it as UTF-8")
    try:
        # A byte-order mark before UTF-8 says nothing, and many editors write it.
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = raw.count(b"\n", 0, exc.start) + 1
        raise refusal(
            f"{path}:{line}: byte 0x{raw[exc.start]:02x} is not UTF-8", hint="save the file as UTF-8"
        ) from exc


def _values(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Every JSON value with the line where it begins; ``Bad`` stands for one that cannot be parsed."""
    if text.lstrip().startswith("["):
        yield from _list_values(path, text)
        return
    # Only a line feed ends a line: a JSON string may hold U+2028 and its like, where splitlines() would cut.
    for line, part in enumerate(text.split("\n"), 1):
        if part.strip():
            try:
                yield line, json.loads(part, object_pairs_hook=_unique)
            except Bad as exc:
                yield line, exc
            except (ValueError, RecursionError) as exc:
                yield line, Bad(f"this is not JSON: {_json_problem(exc)}")


def _list_values(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """The items of one JSON list, each with its line; a broken list is refused as a whole."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    try:
        if not json.loads(text):
            return
    except (ValueError, RecursionError) as exc:
        line = getattr(exc, "lineno", 1)
        raise refusal(f"{path}:{line}: the list is not JSON: {_json_problem(exc)}") from exc
    at, line, counted = text.index("[") + 1, 1, 0
    while text[at - 1] != "]":
        at = _after_blanks(text, at)
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = decoder.raw_decode(text, at)
        except Bad as exc:
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
        raise Bad(f"the key {twice!r} is there twice")
    return value


def _json_problem(exc: Exception) -> str:
    if isinstance(exc, json.JSONDecodeError):
        return f"{exc.msg[0].lower()}{exc.msg[1:]} at column {exc.colno}"
    return "it is nested too deeply" if isinstance(exc, RecursionError) else str(exc)


def text(value: Any, name: str) -> str:
    """A value that must be text and say something. Raises ``Bad``."""
    if not isinstance(value, str):
        raise Bad(f"{name} must be text, but it is {json_type(value)}")
    if not value.strip():
        raise Bad(f"{name} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise Bad(f"{name} holds half a character (a lone surrogate, \\u{ord(value[exc.start]):04x})") from exc
    return value


def json_type(value: Any) -> str:
    """The JSON name of a value's type."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    if value == []:
        return "an empty list"
    return names.get(type(value), "a number")


def quoted(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names))


def _unfit(path: Path, problems: list[tuple[int, str]], total: int) -> DataError:
    lines = [f"  {path}:{line}: {what}" for line, what in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"  … and {len(problems) - SHOWN} more")
    count = f"{len(problems)} of {total} rows {'is' if len(problems) == 1 else 'are'} unfit for training"
    return refusal(f"{path}: {count}:\n" + "\n".join(lines), hint="mend these rows, or take them out")


def refusal(what: str, *, hint: str = "the formats of data files are in docs/training.md") -> DataError:
    return DataError(what, effect=NOTHING, hint=hint)
