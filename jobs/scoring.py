"""How an answer of a JSON task is scored: as a whole one object, by its schema, by the values of its keys.

Standard library only: the rented machine has no JSON Schema library. What it has stands here, a subset of the drafts
from 6 on (``unsupported`` names what is outside of it); at home ``local.evaluation`` uses a whole implementation, and a
test holds the two to the same verdicts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.json_values import json_equal, parse_object, same_value

# They describe, and decide nothing. "format" is among them: validators check it only when told to.
SILENT = frozenset(
    [
        "$schema",
        "$comment",
        "title",
        "description",
        "default",
        "examples",
        "format",
        "deprecated",
        "readOnly",
        "writeOnly",
        "$defs",
        "definitions",
    ]
)
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "number": (int, float),
    "integer": (int, float),
}


@dataclass(frozen=True)
class Verdict:
    """Of one answer: whether it obeys the schema, and whether the values of all keys are the expected ones."""

    valid: bool
    exact: bool


class JsonTask:
    """What an answer must look like, and which of its keys are compared.

    ``unsupported``: a keyword of the schema that this module does not know; an answer then counts as valid as soon as
    it is an object.
    """

    def __init__(self, schema: Mapping[str, Any], keys: Sequence[str]) -> None:
        self.schema = schema
        self.keys = tuple(keys)
        self.unsupported = unsupported(schema, schema)

    def verdict(self, answer: str, expected: str) -> Verdict:
        parsed, _ = parse_object(answer)
        wanted, _ = parse_object(expected)
        if parsed is None or wanted is None:
            return Verdict(False, False)
        valid = bool(self.unsupported) or obeys(parsed, self.schema, self.schema)
        return Verdict(valid, all(same_value(parsed, wanted, key) for key in self.keys))


def unsupported(schema: Any, root: Mapping[str, Any]) -> str:
    """The first keyword, anywhere in the schema, that ``obeys`` cannot judge; empty if there is none."""
    if isinstance(schema, bool):
        return ""
    if not isinstance(schema, Mapping):
        return "a schema that is no object"
    if "$ref" in schema and (set(schema) - SILENT != {"$ref"} or _target(schema["$ref"], root) is None):
        return "$ref"
    for word, value in dict[str, Any](schema).items():
        if word not in _CHECKS and word not in SILENT and word != "$ref":
            return word
        if word in ("exclusiveMinimum", "exclusiveMaximum") and isinstance(value, bool):
            return word  # draft 4
        if word == "pattern" and not _compiles(value):
            return word
        for part in _parts(word, value):
            if found := unsupported(part, root):
                return found
    return ""


def obeys(value: Any, schema: Any, root: Mapping[str, Any]) -> bool:
    """Whether the value keeps to a schema without ``unsupported`` keywords. ``root`` is what a $ref points into."""
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema:
        return obeys(value, _target(schema["$ref"], root), root)
    return all(_CHECKS[word](value, schema, root) for word in schema if word in _CHECKS)


def _parts(word: str, value: Any) -> list[Any]:
    """The schemas inside of a keyword."""
    if word in ("properties", "$defs", "definitions"):
        return list(value.values()) if isinstance(value, Mapping) else [None]
    if word in ("anyOf", "allOf", "oneOf"):
        return list(value)
    if word in ("items", "additionalProperties", "not"):
        return [value]
    return []


def _target(ref: Any, root: Mapping[str, Any]) -> Any:
    """What a reference inside the schema points to; None for any other. A circle is one that never ends."""
    seen = set()
    while True:
        if not isinstance(ref, str) or not ref.startswith("#/") or ref in seen:
            return None
        seen.add(ref)
        found: Any = root
        for part in ref[2:].split("/"):
            found = found.get(part) if isinstance(found, Mapping) else None
        if not (isinstance(found, Mapping) and "$ref" in found):
            return found
        ref = found["$ref"]


def _is_type(value: Any, name: str) -> bool:
    if isinstance(value, bool) and name != "boolean":
        return False
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES.get(name, ()))


def _number(value: Any) -> bool:
    return _is_type(value, "number")


def _type(value: Any, schema: Any, root: Any) -> bool:
    names = schema["type"]
    return any(_is_type(value, name) for name in ([names] if isinstance(names, str) else names))


def _properties(value: Any, schema: Any, root: Any) -> bool:
    if not isinstance(value, dict):
        return True
    return all(obeys(value[name], part, root) for name, part in schema["properties"].items() if name in value)


def _additional(value: Any, schema: Any, root: Any) -> bool:
    if not isinstance(value, dict):
        return True
    others = [name for name in value if name not in schema.get("properties", {})]
    return all(obeys(value[name], schema["additionalProperties"], root) for name in others)


def _unique(value: Any, schema: Any, root: Any) -> bool:
    if not isinstance(value, list) or not schema["uniqueItems"]:
        return True
    return not any(json_equal(a, b) for i, a in enumerate(value) for b in value[:i])


_CHECKS: dict[str, Any] = {
    "type": _type,
    "enum": lambda v, s, _: any(json_equal(v, option) for option in s["enum"]),
    "const": lambda v, s, _: json_equal(v, s["const"]),
    "properties": _properties,
    "required": lambda v, s, _: not isinstance(v, dict) or all(name in v for name in s["required"]),
    "additionalProperties": _additional,
    "minProperties": lambda v, s, _: not isinstance(v, dict) or len(v) >= s["minProperties"],
    "maxProperties": lambda v, s, _: not isinstance(v, dict) or len(v) <= s["maxProperties"],
    "items": lambda v, s, root: not isinstance(v, list) or all(obeys(item, s["items"], root) for item in v),
    "minItems": lambda v, s, _: not isinstance(v, list) or len(v) >= s["minItems"],
    "maxItems": lambda v, s, _: not isinstance(v, list) or len(v) <= s["maxItems"],
    "uniqueItems": _unique,
    "minLength": lambda v, s, _: not isinstance(v, str) or len(v) >= s["minLength"],
    "maxLength": lambda v, s, _: not isinstance(v, str) or len(v) <= s["maxLength"],
    "pattern": lambda v, s, _: not isinstance(v, str) or re.search(s["pattern"], v) is not None,
    "minimum": lambda v, s, _: not _number(v) or v >= s["minimum"],
    "maximum": lambda v, s, _: not _number(v) or v <= s["maximum"],
    "exclusiveMinimum": lambda v, s, _: not _number(v) or v > s["exclusiveMinimum"],
    "exclusiveMaximum": lambda v, s, _: not _number(v) or v < s["exclusiveMaximum"],
    "anyOf": lambda v, s, root: any(obeys(v, part, root) for part in s["anyOf"]),
    "allOf": lambda v, s, root: all(obeys(v, part, root) for part in s["allOf"]),
    "oneOf": lambda v, s, root: sum(obeys(v, part, root) for part in s["oneOf"]) == 1,
    "not": lambda v, s, root: not obeys(v, s["not"], root),
}


def _compiles(pattern: Any) -> bool:
    try:
        re.compile(pattern)
    except (re.error, TypeError):
        return False
    return True
