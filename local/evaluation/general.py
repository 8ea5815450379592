"""The general set: questions that have nothing to do with anybody's task, and how their answers are checked.

``general_set.jsonl`` beside this module: written for cloudft, under cloudft's own licence (MIT). No judge and no
opinion: every answer is right or wrong by a rule that stands beside the question, and an empty answer is wrong.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

LICENCE: Final = "MIT, as cloudft: the questions were written for it"
FILE: Final = "general_set.jsonl"
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class Item:
    """One question. ``expected``: one right answer; ``check``: rule by name, all of which must hold."""

    id: str
    part: str
    question: str
    expected: str
    check: Mapping[str, Any]

    def right(self, answer: str | None) -> bool:
        """Whether the answer keeps to all rules; None stands for a request that failed."""
        text = (answer or "").strip()
        return bool(text) and all(RULES[name](text, value) for name, value in self.check.items())


def load_items() -> tuple[list[Item], str]:
    """The set, and its sha256."""
    raw = (resources.files("local.evaluation") / FILE).read_bytes()
    items = [Item(**json.loads(line)) for line in raw.split(b"\n") if line]
    return items, hashlib.sha256(raw).hexdigest()


def _words(text: str) -> list[str]:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", folded)


def _has(text: str, wanted: str) -> bool:
    """Whether the words of ``wanted`` stand in the text, one after the other."""
    said, asked = _words(text), _words(wanted)
    return any(said[i : i + len(asked)] == asked for i in range(len(said) - len(asked) + 1))


def _number(text: str, value: float) -> bool:
    """The last number of the answer: "17 + 26 = 43" is right."""
    found = _NUMBER.findall(text)
    return bool(found) and float(found[-1].replace(",", "")) == value


def _json(text: str, value: Any) -> bool:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return bool(json.dumps(found, sort_keys=True) == json.dumps(value, sort_keys=True))  # there, 1 is not true


def _line_count(text: str, count: int) -> bool:
    return len([line for line in text.splitlines() if line.strip()]) == count


def _line_pattern(text: str, pattern: str) -> bool:
    return all(re.fullmatch(pattern, line.strip()) for line in text.splitlines() if line.strip())


RULES: Final[Mapping[str, Callable[[str, Any], bool]]] = {
    "number": _number,
    "words": lambda text, any_of: any(_has(text, wanted) for wanted in any_of),
    "never": lambda text, none_of: not any(_has(text, word) for word in none_of),
    "exactly": lambda text, any_of: text in any_of,
    "pattern": lambda text, pattern: re.fullmatch(pattern, text) is not None,
    "json": _json,
    "contains": lambda text, all_of: all(part.casefold() in text.casefold() for part in all_of),
    "without": lambda text, none_of: not any(part.casefold() in text.casefold() for part in none_of),
    "starts": lambda text, any_of: text.startswith(tuple(any_of)),
    "ends": lambda text, any_of: text.endswith(tuple(any_of)),
    "upper": lambda text, _: text.upper() == text != text.lower(),
    "lower": lambda text, _: text.lower() == text != text.upper(),
    "word_count": lambda text, count: len(_words(text)) == count,
    "least_words": lambda text, count: len(_words(text)) >= count,
    "most_words": lambda text, count: len(_words(text)) <= count,
    "line_count": _line_count,
    "line_pattern": _line_pattern,
}
