"""The rules of the general set once more, from what docs and questions say of them, with none of our code.

Where ours matches a pattern, this reads character by character, and the other way about.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

APOSTROPHES = "'’-"


def right(check: Mapping[str, Any], answer: str | None) -> bool:
    """Whether an answer keeps to all rules of its question; none and an empty one keep to none."""
    text = (answer or "").strip()
    return text != "" and all(_RULES[rule](text, wanted) for rule, wanted in check.items())


def words(text: str) -> list[str]:
    """Runs of letters and digits, without regard to case; an apostrophe or a hyphen between two joins them."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    joined = [
        char if char.isalnum() or (char in APOSTROPHES and _between(folded, at)) else " "
        for at, char in enumerate(folded)
    ]
    return "".join(joined).split()


def _between(text: str, at: int) -> bool:
    return 0 < at < len(text) - 1 and text[at - 1].isalnum() and text[at + 1].isalnum()


def _says(text: str, wanted: str) -> bool:
    return f" {' '.join(words(wanted))} " in f" {' '.join(words(text))} "


def _last_number(text: str) -> Decimal | None:
    """Commas part thousands, a point with a digit behind it the decimals, a minus before a digit is its sign."""
    end = max((at for at, char in enumerate(text) if char.isdigit()), default=-1) + 1
    begin = end
    while begin and (text[begin - 1].isdigit() or text[begin - 1] in ",."):
        begin -= 1
    number = text[begin:end].lstrip(",.")
    # Of "1.2.3" the last number is 3: a point that follows another number's decimals begins nothing.
    whole, *decimals = number.split(".")
    if len(decimals) > 1:
        whole, decimals = decimals[-1], []
    if not whole or not end:
        return None
    sign = "-" if text[: end - len(number)].endswith("-") else ""
    return Decimal(sign + ".".join([whole, *decimals]).replace(",", ""))


def _number(text: str, wanted: float) -> bool:
    found = _last_number(text)
    return found is not None and found == Decimal(str(wanted))


def _same_json(text: str, wanted: Any) -> bool:
    try:
        return _equal(json.loads(text), wanted)
    except (ValueError, RecursionError):
        return False


def _equal(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def _full(text: str, pattern: str) -> bool:
    return bool(re.fullmatch(pattern, text))


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if not line.isspace() and line]


def _cased(text: str, kind: str) -> bool:
    """All letters that have a case have this one, and there is such a letter."""
    cases = {unicodedata.category(char) for char in text} & {"Lu", "Ll"}
    return cases == {kind}


_RULES: Mapping[str, Callable[[str, Any], bool]] = {
    "number": _number,
    "words": lambda text, any_of: any(_says(text, one) for one in any_of),
    "never": lambda text, none_of: all(not _says(text, one) for one in none_of),
    "exactly": lambda text, any_of: any(text == one for one in any_of),
    "pattern": _full,
    "json": _same_json,
    "contains": lambda text, all_of: all(text.casefold().count(one.casefold()) for one in all_of),
    "without": lambda text, none_of: not sum(text.casefold().count(one.casefold()) for one in none_of),
    "starts": lambda text, any_of: any(text[: len(one)] == one for one in any_of),
    "ends": lambda text, any_of: any(text[-len(one) :] == one for one in any_of),
    "upper": lambda text, _: _cased(text, "Lu"),
    "lower": lambda text, _: _cased(text, "Ll"),
    "word_count": lambda text, count: len(words(text)) == count,
    "least_words": lambda text, count: len(words(text)) >= count,
    "most_words": lambda text, count: len(words(text)) <= count,
    "line_count": lambda text, count: len(_lines(text)) == count,
    "line_pattern": lambda text, pattern: all(_full(line, pattern) for line in _lines(text)),
}
