"""The general set: every rule accepts a right answer, and none accepts what a model says that has forgotten it all."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from local.evaluation.general import RULES, Item, load_items

ITEMS, SHA256 = load_items()
# What a model says that knows one task only, or nothing at all.
FORGOTTEN = (
    "",
    " \n",
    '{"category": "billing", "priority": "high", "product": "Invoice Desk"}',
    "billing",
    "I am sorry, but I cannot help with that.",
    "###",
    "the the the the the the the the the the",
)


def test_the_set_is_broad_and_every_question_is_there_once() -> None:
    parts = Counter(item.part for item in ITEMS)
    assert set(parts) == {"arithmetic", "facts", "reading", "instructions", "formatting"}
    assert min(parts.values()) >= 15
    assert len({item.id for item in ITEMS}) == len({item.question for item in ITEMS}) == len(ITEMS)
    assert len(SHA256) == 64


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: item.id)
def test_the_right_answer_is_right_and_others_are_not(item: Item) -> None:
    assert item.right(item.expected)
    assert item.right(f"\n {item.expected} \n")
    assert not item.right(None)
    assert not any(item.right(answer) for answer in FORGOTTEN)
    assert not item.right(item.question), "an echo of the question is no answer"
    if item.part in ("instructions", "formatting"):
        assert not item.right(json.dumps({"answer": item.expected}))


def test_an_answer_is_right_for_its_own_question_only() -> None:
    """Some answers fit twice (there are two 43); a rule that accepts whatever it is given would fit everywhere."""
    for item in ITEMS:
        others = [other for other in ITEMS if other.id != item.id and item.right(other.expected)]
        assert len(others) <= 10, [other.id for other in others]


def test_all_rules_are_in_use() -> None:
    assert {name for item in ITEMS for name in item.check} == set(RULES)


@pytest.mark.parametrize(
    ("rule", "value", "right", "wrong"),
    [
        ("number", 43, ["43", "17 + 26 = 43.", "It is 43"], ["44", "43 and 44", "forty-three", "430"]),
        ("number", 1200, ["1,200", "1200.0"], ["1,2", "200"]),
        ("words", ["carbon dioxide"], ["It's Carbon dioxide!"], ["carbon", "dioxide carbon", "carbon-dioxides"]),
        ("never", ["no"], ["yes", "nothing"], ["no", "Yes and no."]),
        ("json", {"ok": True}, ['{"ok":true}', '{ "ok" : true }'], ['{"ok": 1}', '{"ok": "true"}', "ok", "[" * 9999]),
        ("json", [1, 2, 3], ["[1,2,3]"], ["[3,2,1]", '["1","2","3"]']),
        ("upper", True, ["ÄRGER 1"], ["Ärger", "123"]),
        ("lower", True, ["ärger 1"], ["Ärger", "123"]),
        ("word_count", 3, ["cold, wet, white", "don't go home"], ["cold", "a b c d"]),
        ("line_count", 2, ["a\n\nb"], ["a", "a\nb\nc"]),
    ],
)
def test_rules(rule: str, value: object, right: list[str], wrong: list[str]) -> None:
    item = Item("x", "x", "?", "", {rule: value})
    assert [item.right(answer) for answer in right] == [True] * len(right)
    assert [item.right(answer) for answer in wrong] == [False] * len(wrong)
