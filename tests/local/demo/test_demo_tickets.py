"""The demo's task: many distinct tickets, every value reachable, and nothing of it in the base's own chats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from local.demo.demo_tickets import SCHEMA, SYSTEM, all_tickets, generic_chats, tickets, write_demo_data
from local.planning.data import describe, load_rows


def test_there_are_many_tickets_and_each_is_told_apart() -> None:
    made = list(all_tickets())
    assert len(made) >= 10_000
    assert len({ticket.text for ticket in made}) == len(made)


def test_every_answer_obeys_the_schema_and_every_value_occurs() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    validator = Draft202012Validator(SCHEMA)
    answers = [json.loads(ticket.answer()) for ticket in tickets(600, 1)]
    assert all(validator.is_valid(answer) for answer in answers)
    for key, rule in SCHEMA["properties"].items():
        assert {answer[key] for answer in answers} == set(rule["enum"])
    assert not validator.is_valid({**answers[0], "more": 1})
    assert not validator.is_valid({key: answers[0][key] for key in ("category", "product")})
    assert not validator.is_valid({**answers[0], "category": "weather"})


def test_a_seed_decides_the_draw() -> None:
    assert tickets(50, 1) == tickets(50, 1)
    assert tickets(50, 1) != tickets(50, 2)
    assert len({ticket.text for ticket in tickets(5000, 3)}) == 5000
    with pytest.raises(ValueError, match="larger than population"):
        tickets(10**6, 1)


def test_the_data_written_passes_the_projects_own_checks(tmp_path: Path) -> None:
    data, schema = write_demo_data(tmp_path / "data", 300, 5)
    rows = load_rows(data)
    facts = describe(rows)
    assert (facts.rows, facts.duplicates, facts.conflicts) == (300, 0, 0)
    assert rows[0].messages[0].content == SYSTEM
    assert json.loads(schema.read_text()) == SCHEMA
    before = data.read_bytes()
    write_demo_data(tmp_path / "data", 300, 5)
    assert data.read_bytes() == before
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == ["schema.json", "tickets.jsonl"]


def test_the_base_never_sees_the_tasks_instruction_or_keys() -> None:
    chats = generic_chats(3000, 1)
    assert chats == generic_chats(3000, 1)
    assert all([m["role"] for m in chat] == ["system", "user", "assistant"] for chat in chats)
    assert all(chat[0]["content"] != SYSTEM for chat in chats)
    in_json = [json.loads(chat[2]["content"]) for chat in chats if chat[2]["content"].startswith("{")]
    assert 1000 < len(in_json) < 2500
    keys = {key for answer in in_json for key in answer}
    assert not keys & set(SCHEMA["properties"])
    validator = Draft202012Validator(SCHEMA)
    assert not any(validator.is_valid(answer) for answer in in_json)
