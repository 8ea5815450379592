"""Metrics against jsonschema and against naive recomputation."""

from __future__ import annotations

import json
import math
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloudft.errors import ConfigError
from local.metrics import JsonScorer, json_equal, parse_object, rates, wilson

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "category": {"enum": ["billing", "bug", "other"]},
        "priority": {"type": "integer", "minimum": 1, "maximum": 3},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["category", "priority"],
    "additionalProperties": False,
}
RIGHT = {"category": "bug", "priority": 2}

# A busy machine generates slowly; that is no defect.
calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

leaves = (
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-3, 3) | st.sampled_from(["bug", "billing", "x", ""])
)
values = st.recursive(leaves, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=2), v, max_size=3))
# Near enough to the schema that all outcomes occur.
objects = st.fixed_dictionaries(
    {},
    optional={
        "category": st.sampled_from(["billing", "bug", "other", "nonsense"]),
        "priority": st.sampled_from([1, 2, 2.0, 2.5, 3, 9, True, "2"]),
        "tags": st.lists(st.sampled_from(["a", "b", 1]), max_size=2),
        "extra": values,
    },
)
space = st.text(alphabet=" \t\r\n", max_size=3)


@pytest.fixture
def scorer() -> JsonScorer:
    return JsonScorer(SCHEMA)


@calm
@given(answer=objects, expected=objects, before=space, after=space)
def test_a_score_agrees_with_jsonschema_and_with_naive_comparison(
    answer: dict[str, Any], expected: dict[str, Any], before: str, after: str
) -> None:
    score = JsonScorer(SCHEMA).score(before + json.dumps(answer) + after, expected)
    assert score.parsed == answer
    assert score.schema_valid == jsonschema.Draft202012Validator(SCHEMA).is_valid(answer)
    missing = object()
    for key in SCHEMA["properties"]:
        # Canonical text is another road to JSON equality; 2 and 2.0 are one number in JSON.
        texts = [
            json.dumps(_floats(side.get(key)), sort_keys=True) if key in side else missing
            for side in (answer, expected)
        ]
        assert score.keys[key] == (texts[0] == texts[1])
    assert score.exact == all(score.keys.values())


@calm
@given(st.lists(st.tuples(objects, objects), min_size=1, max_size=8))
def test_rates_agree_with_counting_by_hand(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    scorer = JsonScorer(SCHEMA)
    scores = [scorer.score(json.dumps(a), e) for a, e in pairs]
    found = rates(scores)
    assert set(found) == {
        "schema_valid",
        "exact_match",
        "exact_match.category",
        "exact_match.priority",
        "exact_match.tags",
    }
    assert all(rate.n == len(pairs) for rate in found.values())
    valid = [jsonschema.Draft202012Validator(SCHEMA).is_valid(a) for a, _ in pairs]
    assert found["schema_valid"].value == sum(valid) / len(pairs)
    same = [a.get("category") == e.get("category") for a, e in pairs]
    assert found["exact_match.category"].value == sum(same) / len(pairs)
    assert found["exact_match"].value <= min(r.value for name, r in found.items() if name.startswith("exact_match."))


@calm
@given(values, values)
def test_equality_of_json_values_is_equality_of_their_texts(a: Any, b: Any) -> None:
    same = json.dumps(_floats(a), sort_keys=True) == json.dumps(_floats(b), sort_keys=True)
    assert json_equal(a, b) == same
    assert json_equal(a, a)


@calm
@given(values)
def test_parsing_agrees_with_the_standard_library_on_every_value(value: Any) -> None:
    parsed, problem = parse_object(json.dumps(value))
    assert (parsed == value and not problem) if isinstance(value, dict) else (parsed is None and problem)


@calm
@given(st.text(max_size=30))
def test_no_text_makes_parsing_fail_in_another_way(text: str) -> None:
    parsed, problem = parse_object(text)
    assert (parsed is None) == bool(problem)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "   ",
        "Sure! Here you are.",
        f"Sure! {json.dumps(RIGHT)}",
        f"{json.dumps(RIGHT)} I hope this helps.",
        f"```json\n{json.dumps(RIGHT)}\n```",
        f"{json.dumps(RIGHT)}{json.dumps(RIGHT)}",
        f"[{json.dumps(RIGHT)}]",
        json.dumps(json.dumps(RIGHT)),
        json.dumps(RIGHT)[:-1],
        "{'category': 'bug', 'priority': 2}",
        '{"category": "bug", "priority": 2,}',
        '{"category": "bug", "priority": 2, "priority": 2}',
        '{"category": "bug", "priority": NaN}',
        '{"category": "bug", "priority": -Infinity}',
        '{"category": "bug", "priority": 1e999}',
        '{"category": "bug", "priority": 02}',
        "\ufeff" + json.dumps(RIGHT),
        "\u00a0" + json.dumps(RIGHT),
        '{"a":' * 100_000 + "1" + "}" * 100_000,
        "null",
        "7",
    ],
)
def test_an_answer_that_is_not_one_json_object_fails_on_everything(scorer: JsonScorer, answer: str) -> None:
    score = scorer.score(answer, RIGHT)
    assert score.parsed is None
    assert not score.schema_valid
    assert not score.exact
    assert score.keys == {"category": False, "priority": False, "tags": False}
    assert score.problem


def test_a_right_answer_with_white_space_around_it_counts(scorer: JsonScorer) -> None:
    score = scorer.score(f"\n  {json.dumps(RIGHT, indent=2)}\n", RIGHT)
    assert score.schema_valid
    assert score.exact
    assert score.problem == ""


def test_an_answer_can_be_exact_in_its_keys_and_still_break_the_schema(scorer: JsonScorer) -> None:
    score = scorer.score(json.dumps({**RIGHT, "more": 1}), RIGHT)
    assert score.exact
    assert not score.schema_valid
    assert "more" in score.problem


def test_true_is_not_one_and_a_missing_key_is_not_null(scorer: JsonScorer) -> None:
    assert not scorer.score('{"category": "bug", "priority": true}', {"category": "bug", "priority": 1}).exact
    assert scorer.score('{"category": "bug", "priority": 1.0}', {"category": "bug", "priority": 1}).exact
    assert not scorer.score('{"category": "bug", "priority": 2, "tags": null}', RIGHT).exact


def test_a_failed_request_fails_on_everything_even_where_nothing_was_expected(scorer: JsonScorer) -> None:
    score = scorer.score(None, {})
    assert not score.schema_valid
    assert not any(score.keys.values())
    assert score.problem == "the request failed"


def test_only_the_keys_that_are_asked_for_are_compared() -> None:
    scorer = JsonScorer(SCHEMA, keys=["category"])
    score = scorer.score('{"category": "bug", "priority": 3}', RIGHT)
    assert score.keys == {"category": True}
    assert score.exact


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "nonsense"}, "no JSON schema"),
        ({"type": "object"}, "no keys"),
    ],
)
def test_an_unusable_schema_is_refused(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        JsonScorer(schema)


def test_a_reference_to_the_network_is_refused_rather_than_fetched() -> None:
    scorer = JsonScorer({"properties": {"a": {"$ref": "http://127.0.0.1:9/schema.json"}}})
    with pytest.raises(ConfigError, match="outside itself"):
        scorer.schema_problem({"a": 1})


def test_a_reference_inside_the_schema_works() -> None:
    scorer = JsonScorer({"properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer"}}})
    assert scorer.schema_problem({"a": 1}) == ""
    assert "a: 'x' is not of type 'integer'" in scorer.schema_problem({"a": "x"})


def test_no_rows_are_no_result() -> None:
    with pytest.raises(ValueError, match="no rows"):
        rates([])


def test_the_interval_is_the_published_one() -> None:
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3 (Wilson).
    for hits, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson(hits, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(20, 20)[1] == 1.0


@calm
@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_holds_the_share_and_stays_in_bounds(case: tuple[int, int]) -> None:
    hits, n = case
    low, high = wilson(hits, n)
    assert 0 <= low <= hits / n <= high <= 1
    assert math.isclose(wilson(n - hits, n)[0], 1 - high, abs_tol=1e-12)


def _floats(value: Any) -> Any:
    """The same JSON value with every number as a float (and no negative zero)."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return float(value) + 0.0
    if isinstance(value, list):
        return [_floats(v) for v in value]
    return {k: _floats(v) for k, v in value.items()}
