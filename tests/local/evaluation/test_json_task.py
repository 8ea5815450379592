"""A JSON task against jsonschema, scikit-learn and naive recomputation."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloudft.errors import ConfigError
from jobs.json_values import json_equal, parse_object
from local.evaluation.analysis import confusion, measure, tables
from local.evaluation.document.measurement import FAILED, OTHER
from local.evaluation.schema import Schema
from local.evaluation.tasks.base import Scored
from local.evaluation.tasks.json_object import JsonScorer
from tests.local.evaluation.rows import reply, row

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


def score(scorer: JsonScorer, answer: str | None, expected: dict[str, Any]) -> Scored:
    return scorer.score(None if answer is None else reply(answer), row(expected))


def right_keys(scored: Scored) -> dict[str, bool]:
    return {name.partition(".")[2]: value == 1 for name, value in scored.score.items() if "." in name}


@calm
@given(answer=objects, expected=objects, before=space, after=space)
def test_a_score_agrees_with_jsonschema_and_with_naive_comparison(
    answer: dict[str, Any], expected: dict[str, Any], before: str, after: str
) -> None:
    found = score(JsonScorer(SCHEMA), before + json.dumps(answer) + after, expected)
    assert found.score["schema_valid"] == jsonschema.Draft202012Validator(SCHEMA).is_valid(answer)
    missing = object()
    for key, right in right_keys(found).items():
        # Canonical text is another road to JSON equality; 2 and 2.0 are one number in JSON.
        texts = [
            json.dumps(_floats(side.get(key)), sort_keys=True) if key in side else missing
            for side in (answer, expected)
        ]
        assert right == (texts[0] == texts[1])
    assert found.score["exact_match"] == all(right_keys(found).values())


@calm
@given(st.lists(st.tuples(objects, objects), min_size=1, max_size=8))
def test_shares_agree_with_counting_by_hand(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    scorer = JsonScorer(SCHEMA)
    found = measure(scorer.metrics, [[score(scorer, json.dumps(a), e) for a, e in pairs]])
    assert list(found)[:2] == ["schema_valid", "exact_match"]
    valid = [jsonschema.Draft202012Validator(SCHEMA).is_valid(a) for a, _ in pairs]
    assert found["schema_valid"].value == sum(valid) / len(pairs)
    assert (found["schema_valid"].hits, found["schema_valid"].of) == (sum(valid), len(pairs))
    same = [a.get("category") == e.get("category") for a, e in pairs]
    assert found["exact_match.category"].value == sum(same) / len(pairs)
    assert found["exact_match"].value <= min(r.value for name, r in found.items() if name.startswith("exact_match."))


@settings(calm, max_examples=40)
@given(st.lists(st.tuples(objects, objects), min_size=1, max_size=12))
def test_keys_and_matrices_agree_with_scikit_learn(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """A key's values are labels, and its absence is a label that is left out of the average."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    scorer = JsonScorer(SCHEMA)
    scores = [[score(scorer, json.dumps(a), e) for a, e in pairs]]
    found = tables(scorer.tables, scores)["keys"]
    together: tuple[list[str], list[str]] = ([], [])
    for key, tally in found.items():
        sides = [[f"{key} {_label(side, key)}" for side in column] for column in zip(*pairs, strict=True)]
        answered, expected = sides
        together[0].extend(expected)
        together[1].extend(answered)
        there = sorted({name for name in (*answered, *expected) if not name.endswith(ABSENT)})
        if there:
            theirs = precision_recall_fscore_support(expected, answered, labels=there, average="micro", zero_division=0)
            assert (tally.precision, tally.recall, tally.f1) == pytest.approx(theirs[:3])
    there = sorted({name for name in (*together[0], *together[1]) if not name.endswith(ABSENT)})
    overall = measure(scorer.metrics, scores).get("field_f1")
    assert (overall is None) == (not there)
    if overall is not None:
        theirs = precision_recall_fscore_support(*together, labels=there, average="micro", zero_division=0)
        assert overall.value == pytest.approx(theirs[2])
    matrix = confusion(scorer.matrices, scores)["category"]
    known = [(e["category"], a.get("category")) for a, e in pairs if e.get("category") in matrix.rows]
    wanted, given_ = [e for e, _ in known], [a if a in matrix.rows else OTHER for _, a in known]
    counts = confusion_matrix([*wanted, OTHER], [*given_, OTHER], labels=[*matrix.rows, OTHER])
    assert [list(row_[:-1]) for row_ in matrix.counts] == counts[:-1].tolist()
    assert all(row_[-1] == 0 for row_ in matrix.counts)


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
    found = score(scorer, answer, RIGHT)
    assert set(found.score.values()) == {0.0}
    assert found.problem
    assert found.pairs == {"category": ("bug", OTHER)}


def test_a_right_answer_with_white_space_around_it_counts(scorer: JsonScorer) -> None:
    found = score(scorer, f"\n  {json.dumps(RIGHT, indent=2)}\n", RIGHT)
    assert set(found.score.values()) == {1.0}
    assert found.problem == ""


def test_an_answer_can_be_exact_in_its_keys_and_still_break_the_schema(scorer: JsonScorer) -> None:
    found = score(scorer, json.dumps({**RIGHT, "more": 1}), RIGHT)
    assert (found.score["exact_match"], found.score["schema_valid"]) == (1, 0)
    assert "more" in found.problem


def test_true_is_not_one_and_a_missing_key_is_not_null(scorer: JsonScorer) -> None:
    one = {"category": "bug", "priority": 1}
    assert score(scorer, '{"category": "bug", "priority": true}', one).score["exact_match"] == 0
    assert score(scorer, '{"category": "bug", "priority": 1.0}', one).score["exact_match"] == 1
    assert score(scorer, '{"category": "bug", "priority": 2, "tags": null}', RIGHT).score["exact_match"] == 0


def test_a_failed_request_fails_on_everything_even_where_nothing_was_expected(scorer: JsonScorer) -> None:
    assert set(score(scorer, None, {}).score.values()) == {0.0}
    found = score(scorer, None, RIGHT)
    assert found.problem == "the request failed"
    assert found.pairs == {"category": ("bug", FAILED)}


def test_only_the_keys_that_are_asked_for_are_compared() -> None:
    found = score(JsonScorer(SCHEMA, keys=["category"]), '{"category": "bug", "priority": 3}', RIGHT)
    assert right_keys(found) == {"category": True}
    assert found.score["exact_match"] == 1


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
    schema = Schema({"properties": {"a": {"$ref": "http://127.0.0.1:9/schema.json"}}})
    with pytest.raises(ConfigError, match="outside itself"):
        schema.problem({"a": 1})


def test_a_reference_inside_the_schema_works() -> None:
    schema = Schema({"properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer"}}})
    assert schema.problem({"a": 1}) == ""
    assert "a: 'x' is not of type 'integer'" in schema.problem({"a": "x"})


def _floats(value: Any) -> Any:
    """The same JSON value with every number as a float (and no negative zero)."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return float(value) + 0.0
    if isinstance(value, list):
        return [_floats(v) for v in value]
    return {k: _floats(v) for k, v in value.items()}


ABSENT = "(absent)"


def _label(value: dict[str, Any], key: str) -> str:
    return json.dumps(_floats(value[key]), sort_keys=True) if key in value else ABSENT
