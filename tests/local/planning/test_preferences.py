"""Preferences for dpo stages: strings or messages, one form inside, and refused by file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cloudft.errors import DataError
from local.planning.data import Message
from local.planning.preferences import Pair, load_pairs

GOOD: dict[str, Any] = {"prompt": "Which?", "chosen": "this", "rejected": "that"}
ASKED = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Which?"}]


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_strings_and_messages_become_the_same(tmp_path: Path) -> None:
    said = {name: [{"role": "assistant", "content": GOOD[name]}] for name in ("chosen", "rejected")}
    plain, chat = load_pairs(write(tmp_path, GOOD, {"prompt": ASKED, **said}), "k")
    assert plain == Pair((Message("user", "Which?"),), "this", "that", 1)
    assert chat == Pair((Message("system", "Be short."), Message("user", "Which?")), "this", "that", 2)
    assert plain.question() == chat.question() == "which?"
    assert plain.size == len("Which?") + len("this")
    assert json.loads(chat.canonical()) == {"prompt": ASKED, "chosen": "this", "rejected": "that"}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"chosen": "that"}, "chosen and rejected are the same answer"),
        ({"chosen": " that\n"}, "chosen and rejected are the same answer"),
        ({"score": 1}, "unknown column 'score'"),
        ({"prompt": [*ASKED, {"role": "assistant", "content": "x"}]}, "a question of the user is missing"),
        ({"prompt": []}, "prompt must be a list of messages, but it is an empty list"),
        ({"prompt": ""}, "prompt is empty"),
        ({"chosen": 1}, "chosen must be text or a message, but it is a number"),
        ({"rejected": [{"role": "user", "content": "x"}]}, "the message in rejected has the role 'user'"),
        ({"rejected": [{"role": "assistant"}]}, "rejected must be text, or a list of one message"),
        ({"rejected": ASKED}, "rejected must be text, or a list of one message"),
    ],
)
def test_an_unfit_pair_is_named_by_its_line(tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError, match=rf"pairs\.jsonl:2: .*{what}"):
        load_pairs(write(tmp_path, GOOD, GOOD | changes), "k")


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a preference needs 'chosen', 'prompt', 'rejected', but 'rejected' is missing"):
        load_pairs(write(tmp_path, {"prompt": "a", "chosen": "b"}), "k")
