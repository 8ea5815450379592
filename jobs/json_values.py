"""JSON as a program would read it. Pure functions.

A text counts as an object only if the whole of it is one JSON object (RFC 8259), with nothing but white space around
it. Code fences, prose before or after, two objects, a key given twice, NaN, a number beyond the range of a double:
all of that breaks programs that read the answer, so none of it counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def parse_object(text: str) -> tuple[dict[str, Any] | None, str]:
    """The JSON object that ``text`` is as a whole, or None and the reason why it is none."""
    try:
        value = parse_json(text)
    except ValueError as exc:
        return None, str(exc)
    if not isinstance(value, dict):
        return None, f"a JSON {json_name(value)}, not an object"
    return value, ""


def parse_json(text: str) -> Any:
    """The JSON value that ``text`` is as a whole. Raises ``ValueError`` that says why it is none."""
    try:
        return json.loads(text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_no_duplicates)
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc
    except ValueError as exc:
        raise ValueError(f"not JSON: {exc}") from exc


def same_value(answer: Mapping[str, Any], expected: Mapping[str, Any], key: str) -> bool:
    """Whether both have the same value at ``key``; a key that is missing in both is the same, too."""
    if key not in answer or key not in expected:
        return key not in answer and key not in expected
    return json_equal(answer[key], expected[key])


def json_equal(a: Any, b: Any) -> bool:
    """Equality of JSON values: 1 is 1.0, but true is not 1; the order of an object's keys is no difference."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(json_equal(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(json_equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def json_name(value: Any) -> str:
    """What JSON calls a value of this kind."""
    names = {
        dict: "object",
        list: "array",
        str: "string",
        bool: "boolean",
        int: "number",
        float: "number",
        type(None): "null",
    }
    return names[type(value)]


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text} is out of range")
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is given twice")
    return result
