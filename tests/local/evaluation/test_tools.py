"""Calls of tools: none, one, several; from an endpoint and from text."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudft.errors import ConfigError
from local.evaluation.analysis import measure, tables
from local.evaluation.document.measurement import OTHER
from local.evaluation.tasks.base import Scored
from local.evaluation.tasks.calls import Call, calls_in_text
from local.evaluation.tasks.tools import ToolsScorer
from tests.local.evaluation.rows import reply, row

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
TOOLS = (
    {"type": "function", "function": {"name": "weather", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now"}},
)
SCORER = ToolsScorer(TOOLS)


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


def blocks(*calls: dict[str, Any]) -> str:
    return "\n".join(f"<tool_call>\n{json.dumps(c)}\n</tool_call>" for c in calls)


def score(answer: str | None, *expected: dict[str, Any], scorer: ToolsScorer = SCORER) -> Scored:
    return scorer.score(None if answer is None else reply(answer), row(list(expected)))


BERN, ZUG = call("weather", city="Bern"), call("weather", city="Zug", days=2)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It rains.", []),
        ("", []),
        ("[]", []),
        ("[1] see the notes", []),
        ('{"answer": 7}', []),
        (blocks(BERN), [BERN]),
        ("Let me look.\n" + blocks(BERN, ZUG) + "\n", [BERN, ZUG]),
        (json.dumps(BERN), [BERN]),
        (json.dumps([BERN, ZUG]), [BERN, ZUG]),
        ('{"name": "weather", "parameters": {"city": "Bern"}}', [BERN]),
        ('{"name": "weather", "arguments": "{\\"city\\": \\"Bern\\"}"}', [BERN]),
        ('{"name": "now"}', [call("now")]),
        ('{"name": "now", "arguments": ""}', [call("now")]),
    ],
)
def test_calls_are_found_in_text(text: str, found: list[dict[str, Any]]) -> None:
    assert calls_in_text(text) == [Call(c["name"], c["arguments"]) for c in found]


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>{}",
        blocks(BERN) + "<tool_call>",
        "</tool_call>",
        "<tool_call>weather</tool_call>",
        "<tool_call>[1]</tool_call>",
        "<tool_call>{}</tool_call>",
        '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>',
        '{"name": "weather", "arguments": {"city": ',
        '{"name": "weather", "arguments": "{"}',
    ],
)
def test_a_call_that_is_broken_off_is_not_no_call(text: str) -> None:
    with pytest.raises(ValueError, match=r"not closed|not JSON|not an object|no name"):
        calls_in_text(text)
    found = score(text)
    assert set(found.score.values()) == {0.0}
    assert found.problem


def test_the_same_calls_are_right_in_any_order() -> None:
    assert set(score(blocks(ZUG, BERN), BERN, ZUG).score.values()) == {1.0}
    assert set(score(blocks(BERN), BERN, ZUG).score) == {
        "exact_match",
        "names",
        "arguments",
        "parallel",
        "schema_valid",
    }
    missing = score(blocks(BERN), BERN, ZUG)
    assert (missing.score["exact_match"], missing.score["parallel"], missing.score["arguments"]) == (0, 0, 1 / 3)
    assert missing.problem == "called weather, not weather, weather"
    twice = score(blocks(BERN, BERN), BERN)
    assert (twice.score["exact_match"], twice.score["names"], twice.score["arguments"]) == (0, 0, 1)


def test_wrong_arguments_are_told_from_a_wrong_tool() -> None:
    days = score(blocks(call("weather", city="Zug", days=3)), ZUG)
    assert (days.score["names"], days.score["arguments"], days.score["exact_match"]) == (1, 0.5, 0)
    assert days.problem == "other arguments"
    other = score(blocks(call("now")), ZUG)
    assert (other.score["names"], other.score["arguments"]) == (0, 0)
    more = score(blocks(call("now", zone="CET")), call("now"))
    assert (more.score["names"], more.score["arguments"], more.score["exact_match"]) == (1, 0, 0)


def test_calling_nothing_can_be_right() -> None:
    assert score("It is noon.").score == {"exact_match": 1, "names": 1, "no_call": 1, "schema_valid": 1}
    eager = score(blocks(call("now")))
    assert (eager.score["no_call"], eager.score["exact_match"], eager.problem) == (0, 0, "called now, not nothing")
    silent = score("I cannot know.", BERN)
    assert (silent.score["names"], silent.score["arguments"]) == (0, 0)
    failed = score(None)
    assert set(failed.score.values()) == {0.0}


def test_calls_that_the_endpoint_found_are_taken() -> None:
    given_ = ({"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}},)
    assert SCORER.score(reply("", given_), row([BERN])).score["exact_match"] == 1
    broken = ({"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": '}},)
    assert SCORER.score(reply("", broken), row([BERN])).score["exact_match"] == 0
    assert SCORER.score(reply("", ({},)), row([BERN])).score["exact_match"] == 0


def test_tools_are_sent_only_if_they_are_not_in_the_prompt_already() -> None:
    assert SCORER.question(row([]), None).tools == ()
    assert ToolsScorer(TOOLS, send=True).question(row([]), None).tools == TOOLS


arguments = st.fixed_dictionaries(
    {}, optional={"city": st.sampled_from(["Bern", "Zug", 7]), "days": st.sampled_from([1, 2, 2.0, "x"])}
)
some_calls = st.lists(st.tuples(st.sampled_from(["weather", "now", "rm"]), arguments), max_size=3)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(some_calls, some_calls), min_size=1, max_size=5))
def test_scores_agree_with_multisets_and_with_jsonschema(rows: list[tuple[Any, Any]]) -> None:
    """A multiset of canonical texts is another road to equality of calls."""
    scores = []
    total = Counter[str]()
    for expected, answered in rows:
        made = [[call(name, **given_) for name, given_ in calls] for calls in (expected, answered)]
        scores.append(score(blocks(*made[1]) or "nothing", *made[0]))
        wanted, given_calls = (Counter(json.dumps(_floats(c), sort_keys=True) for c in calls) for calls in made)
        found = scores[-1].score
        assert found["exact_match"] == (wanted == given_calls)
        assert found["names"] == (Counter(c["name"] for c in made[0]) == Counter(c["name"] for c in made[1]))
        schemas = {"weather": WEATHER, "now": {}}
        valid = [
            c["name"] in schemas and jsonschema.Draft202012Validator(schemas[c["name"]]).is_valid(c["arguments"])
            for c in made[1]
        ]
        assert found["schema_valid"] == all(valid)
        total.update(correct=(wanted & given_calls).total(), expected=wanted.total(), answered=given_calls.total())
    measured = measure(SCORER.metrics, [scores])
    if total["expected"] + total["answered"]:
        f1 = 2 * total["correct"] / (total["expected"] + total["answered"])
        assert measured["call_f1"].value == pytest.approx(f1)
    tallies = tables(SCORER.tables, [scores])["tools"]
    assert list(tallies)[:3] == ["weather", "now", OTHER]
    for field in ("expected", "answered", "correct"):
        assert sum(getattr(tally, field) for tally in tallies.values()) == total[field]


def test_without_a_list_any_tool_is_known() -> None:
    scorer = ToolsScorer()
    found = score(blocks(call("rm", path="/")), call("rm", path="/"), scorer=scorer)
    assert set(found.score.values()) == {1.0}
    assert list(tables(scorer.tables, [[found]])["tools"]) == ["rm"]


def test_an_expected_answer_must_keep_to_the_tools() -> None:
    assert SCORER.expect(blocks(BERN)) == [BERN]
    assert SCORER.expect("It rains.") == []
    for text, says in [
        (blocks(call("rm")), "no tool 'rm'"),
        (blocks(call("weather")), "'city'"),
        ("<tool_call>", "closed"),
    ]:
        with pytest.raises(ValueError, match=says):
            SCORER.expect(text)
    with pytest.raises(ConfigError, match="tool 'now' is no JSON schema"):
        ToolsScorer(({"type": "function", "function": {"name": "now", "parameters": {"type": "nonsense"}}},))


def _floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _floats(v) for key, v in value.items()}
    return float(value) if isinstance(value, int) else value
