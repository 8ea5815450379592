"""Calls of tools, as an endpoint gives them and as text. Pure functions.

As text an answer is, in this order:

1. any number of blocks ``<tool_call>{"name": …, "arguments": {…}}</tool_call>``, with or without prose around them
   (Hermes, Qwen);
2. one JSON object ``{"name": …, "arguments": {…}}`` or a list of them, and nothing else (Llama 3, Mistral); an empty
   list calls nothing;
3. anything else: text, which calls nothing.

``parameters`` may stand for ``arguments``, and arguments may be an object or, as in OpenAI's API, its text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.json_values import json_equal, json_name, parse_json

_BLOCK = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_MARKS = ("<tool_call>", "</tool_call>")


@dataclass(frozen=True)
class Call:
    name: str
    arguments: Mapping[str, Any]

    def same(self, other: Call) -> bool:
        return self.name == other.name and json_equal(self.arguments, other.arguments)


def calls_in_text(text: str) -> list[Call]:
    """The calls in an answer that is text. Raises ``ValueError`` for one that begins a call and breaks it off."""
    blocks = _BLOCK.findall(text)
    if any(mark in _BLOCK.sub("", text) for mark in _MARKS):
        raise ValueError("a <tool_call> is not closed")
    if blocks:
        return [_call(parse_json(block)) for block in blocks]
    if not text.lstrip().startswith(("{", "[")):
        return []
    try:
        value = parse_json(text)
    except ValueError:
        # Prose may begin with a bracket; what was meant as a call and is broken has its two keys.
        if '"name"' in text and ('"arguments"' in text or '"parameters"' in text):
            raise
        return []
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, dict) and "name" in item for item in items):
        return []
    return [_call(item) for item in items]


def calls_of_api(tool_calls: Sequence[Mapping[str, Any]]) -> list[Call]:
    """The calls in ``tool_calls`` of a chat completion. Raises ``ValueError``."""
    return [_call(call.get("function")) for call in tool_calls]


def as_json(calls: Sequence[Call]) -> list[dict[str, Any]]:
    return [{"name": call.name, "arguments": dict(call.arguments)} for call in calls]


def _call(value: Any) -> Call:
    if not isinstance(value, Mapping):
        raise ValueError(f"a call is a JSON {json_name(value)}, not an object")
    name, arguments = value.get("name"), value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = parse_json(arguments) if arguments.strip() else {}
    if not isinstance(name, str) or not name:
        raise ValueError("a call has no name")
    if not isinstance(arguments, Mapping):
        raise ValueError(f"the arguments of {name} are a JSON {json_name(arguments)}, not an object")
    return Call(name, arguments)


def matched(expected: Sequence[Call], answered: Sequence[Call]) -> list[tuple[Call, Call]]:
    """Pairs of an expected and an answered call of one name; equal ones first, then in order."""
    left, pairs = list(answered), []
    open_ = []
    for call in expected:
        equal = next((i for i, other in enumerate(left) if call.same(other)), None)
        if equal is None:
            open_.append(call)
        else:
            pairs.append((call, left.pop(equal)))
    for call in open_:
        near = next((i for i, other in enumerate(left) if call.name == other.name), None)
        if near is not None:
            pairs.append((call, left.pop(near)))
    return pairs


def same_names(expected: Sequence[Call], answered: Sequence[Call]) -> bool:
    return Counter(call.name for call in expected) == Counter(call.name for call in answered)


def right_arguments(expected: Sequence[Call], answered: Sequence[Call]) -> float:
    """The share of the expected arguments that are given with their value; a call without any counts as one."""
    wanted = sum(max(1, len(call.arguments)) for call in expected)
    right = 0
    for call, other in matched(expected, answered):
        if not call.arguments:
            right += not other.arguments
        right += sum(
            name in other.arguments and json_equal(value, other.arguments[name])
            for name, value in call.arguments.items()
        )
    return right / wanted
