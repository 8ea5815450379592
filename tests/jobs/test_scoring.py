"""The scorer of the training machine gives the verdicts that the evaluation at home gives."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.scoring import JsonTask, Verdict, obeys, unsupported
from local.demo.demo_tickets import SCHEMA
from local.evaluation.endpoint import Reply
from local.evaluation.schema import Schema
from local.evaluation.tasks.base import Row
from local.evaluation.tasks.json_object import EXACT_MATCH, SCHEMA_VALID, JsonScorer

KEYS = ("category", "product", "priority")
RIGHT = '{"category":"bug","product":"mail","priority":"low"}'


@pytest.mark.parametrize(
    ("answer", "valid", "exact"),
    [
        (RIGHT, True, True),
        (' {"priority": "low", "category": "bug", "product": "mail"}\n', True, True),
        ('{"category":"bug","product":"mail","priority":"high"}', True, False),
        ('{"category":"bug","product":"mail","priority":"soon"}', False, False),
        ('{"category":"bug","product":"mail","priority":"low","more":1}', False, True),
        ('{"category":"bug","product":"mail"}', False, False),
        (f"```json\n{RIGHT}\n```", False, False),
        (f"{RIGHT}{RIGHT}", False, False),
        (f"[{RIGHT}]", False, False),
        ("", False, False),
    ],
)
def test_an_answer_is_valid_and_exact_or_not(answer: str, valid: bool, exact: bool) -> None:
    task = JsonTask(SCHEMA, KEYS)
    assert not task.unsupported
    assert task.verdict(answer, RIGHT) == Verdict(valid, exact)
    scorer = JsonScorer(SCHEMA, KEYS)
    scored = scorer.score(Reply(answer, "stop", 1, 1), Row(1, (), RIGHT, scorer.expect(RIGHT))).score
    assert (scored[SCHEMA_VALID] == 1, scored[EXACT_MATCH] == 1) == (valid, exact)


# Values that meet at the edges: 1 and 1.0 and true, empty and not, equal and almost.
LEAVES: st.SearchStrategy[Any] = st.sampled_from([None, True, False, 0, 1, 1.0, 2, 1.5, -1, 3, "", "a", "ab", "1", "ä"])
NAMES = st.sampled_from(["a", "b", "c"])
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=6
)
NUMBERS = st.sampled_from([-1, 0, 1, 1.5, 2])
COUNTS = st.integers(0, 3)


def schemas() -> st.SearchStrategy[Any]:
    """Schemas of all keywords that the scorer knows."""
    types = st.sampled_from(["object", "array", "string", "boolean", "null", "number", "integer"])
    words: dict[str, st.SearchStrategy[Any]] = {
        "type": types | st.lists(types, min_size=1, max_size=2, unique=True),
        "enum": st.lists(VALUES, min_size=1, max_size=3),
        "const": VALUES,
        "required": st.lists(NAMES, max_size=2, unique=True),
        "minItems": COUNTS,
        "maxItems": COUNTS,
        "uniqueItems": st.booleans(),
        "minLength": COUNTS,
        "maxLength": COUNTS,
        "pattern": st.sampled_from(["a", "^b", "1$", "^.$"]),
        "minimum": NUMBERS,
        "maximum": NUMBERS,
        "exclusiveMinimum": NUMBERS,
        "exclusiveMaximum": NUMBERS,
        "minProperties": COUNTS,
        "maxProperties": COUNTS,
        "title": st.just("t"),
        "format": st.just("email"),
        "$ref": st.sampled_from(["#/$defs/one", "#/$defs/other"]),
    }

    def extended(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        several = st.lists(inner, min_size=1, max_size=2)
        nested = {
            "properties": st.dictionaries(NAMES, inner, max_size=2),
            "additionalProperties": inner,
            "items": inner,
            "anyOf": several,
            "allOf": several,
            "oneOf": several,
            "not": inner,
        }
        return _objects(words | nested)

    return st.recursive(st.booleans() | _objects(words), extended, max_leaves=5)


def _objects(words: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    names = st.lists(st.sampled_from(sorted(words)), min_size=1, max_size=3, unique=True)
    # Beside a reference, older drafts ignore what stands there.
    alone = names.map(lambda chosen: ["$ref"] if "$ref" in chosen else chosen)
    return alone.flatmap(lambda chosen: st.fixed_dictionaries({name: words[name] for name in chosen}))


DEFINITIONS = {"one": {"type": "integer"}, "other": {"anyOf": [{"const": "a"}, {"$ref": "#/$defs/one"}]}}


@settings(max_examples=400, deadline=None)
@given(schema=schemas(), value=VALUES)
def test_the_schema_is_judged_as_jsonschema_judges_it(schema: Any, value: Any) -> None:
    root = {"properties": {"x": schema}, "$defs": DEFINITIONS}
    assert unsupported(root, root) == ""
    assert obeys({"x": value}, root, root) == (Schema(root).problem({"x": value}) == "")


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        ({"patternProperties": {"^a": {}}}, "patternProperties"),
        ({"properties": {"a": {"items": {"if": {}}}}}, "if"),
        ({"properties": {"a": {"minimum": 1, "exclusiveMinimum": True}}}, "exclusiveMinimum"),
        ({"properties": {"a": {"items": [{}]}}}, "a schema that is no object"),
        ({"properties": {"a": {"$ref": "https://example.org/schema"}}}, "$ref"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "$ref"),
        ({"$ref": "#/$defs/a", "type": "object", "$defs": {"a": {}}}, "$ref"),
        ({"properties": {"a": {"pattern": "("}}}, "pattern"),
    ],
)
def test_what_the_scorer_does_not_know_is_said_and_not_guessed(schema: dict[str, Any], word: str) -> None:
    task = JsonTask(schema, ["a"])
    assert task.unsupported == word
    # Then an object is all that is asked for.
    assert task.verdict('{"a": 1}', '{"a": 1}') == Verdict(True, True)
    assert task.verdict("no object", '{"a": 1}') == Verdict(False, False)
