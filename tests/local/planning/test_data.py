"""Data files: three formats become one, and whatever is wrong is named by file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cloudft.errors import DataError, NotFound
from local.planning.data import Message, Row, describe, load_rows

CHAT = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
ALPACA = {"instruction": "Greet.", "input": "", "output": "hello"}
PAIR = {"prompt": "hi", "completion": "hello"}


def write(tmp_path: Path, *rows: Any) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def texts(row: Row) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in row.messages]


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_rows(path)
    assert caught.value.exit_code == 4
    assert caught.value.effect == "nothing was started and nothing was changed"
    assert caught.value.hint
    return caught.value.what


def test_chatml(tmp_path: Path) -> None:
    system = {"messages": [{"role": "system", "content": "Be brief."}, *CHAT["messages"], *CHAT["messages"]]}
    rows = load_rows(write(tmp_path, CHAT, system))
    assert texts(rows[0]) == [("user", "hi"), ("assistant", "hello")]
    assert [role for role, _ in texts(rows[1])] == ["system", "user", "assistant", "user", "assistant"]
    assert [row.answers for row in rows] == [1, 2]


def test_alpaca(tmp_path: Path) -> None:
    rows = load_rows(write(tmp_path, ALPACA, {**ALPACA, "input": "Anna"}, {"instruction": "a", "output": "b"}))
    assert texts(rows[0]) == [("user", "Greet."), ("assistant", "hello")]
    assert texts(rows[1]) == [("user", "Greet.\n\nAnna"), ("assistant", "hello")]
    assert texts(rows[2]) == [("user", "a"), ("assistant", "b")]


def test_prompt_and_completion(tmp_path: Path) -> None:
    assert [texts(row) for row in load_rows(write(tmp_path, PAIR))] == [[("user", "hi"), ("assistant", "hello")]]


def test_one_json_list_is_as_good_as_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([PAIR, {"prompt": "a]b,[", "completion": "c\nd"}], indent=2), encoding="utf-8")
    rows = load_rows(path)
    assert texts(rows[1]) == [("user", "a]b,["), ("assistant", "c\nd")]
    assert [row.line for row in rows] == [2, 6]


def test_lines_are_counted_with_the_blank_ones(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n" + json.dumps(PAIR).encode() + b"\r\n\r\n" + json.dumps(PAIR).encode())
    assert [row.line for row in load_rows(path)] == [2, 4]


def test_a_line_separator_inside_a_text_does_not_end_the_line(tmp_path: Path) -> None:
    text = "one\u2028two\x85three\x0bfour"
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**PAIR, "prompt": text.replace("\x0b", " ")}, ensure_ascii=False), encoding="utf-8")
    assert load_rows(path)[0].messages[0].content == text.replace("\x0b", " ")


def test_a_byte_order_mark_is_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(PAIR).encode())
    assert len(load_rows(path)) == 1


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_other_unicode_is_named(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(PAIR), encoding=encoding)
    assert f"{path} is {encoding.upper()} text, not UTF-8" in refusal(path)


def test_bytes_that_are_not_utf_8_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(PAIR).encode() + b'\n{"prompt": "caf\xe9", "completion": "b"}\n')
    assert f"{path}:2: byte 0xe9 is not UTF-8" in refusal(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="is not there") as caught:
        load_rows(tmp_path / "none.jsonl")
    assert "data.path" in caught.value.hint


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["", "\n \n", "[]", "\ufeff"])
def test_an_empty_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text, encoding="utf-8")
    assert "is empty: it has no rows" in refusal(path)


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, PAIR, '{"prompt": "a", "completion": ', PAIR)
    said = refusal(path)
    assert f"{path}: 1 of 3 rows is unfit for training" in said
    assert f"{path}:2: this is not JSON: expecting value at column 31" in said


def test_a_broken_list_is_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[\n  {"prompt": "a", "completion": "b"},\n  {"prompt": }\n]', encoding="utf-8")
    assert f"{path}:3: the list is not JSON: expecting value" in refusal(path)


def test_bad_items_of_a_list_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(
        '[\n{"prompt": "a", "completion": "b"},\n{"prompt": "a",\n "prompt": "b"},\n{"prompt": "a", "completion": 1}\n]'
    )
    said = refusal(path)
    assert f"{path}:3: the key 'prompt' is there twice" in said
    assert f"{path}:5: completion must be text, but it is a number" in said


BAD: list[tuple[Any, str]] = [
    (7, "a row must be a JSON object, but this is a number"),
    ("[[1]]", "a row must be a JSON object, but this is a list"),
    ("null", "a row must be a JSON object, but this is null"),
    ({}, "unknown columns (none); a row has one of: 'messages'; 'instruction', 'output'; 'completion', 'prompt'"),
    ({"text": "a"}, "unknown columns 'text'"),
    ({**PAIR, "score": 1}, "unknown column 'score' in a row of prompt/completion"),
    ({**CHAT, "tools": []}, "unknown column 'tools' in a row of ChatML"),
    ({**CHAT, **PAIR}, "unknown column 'completion' in a row of ChatML"),
    ({"prompt": "a"}, "a row of prompt/completion needs 'completion', 'prompt', but 'completion' is missing"),
    ({"instruction": "a", "input": "b"}, "a row of Alpaca needs 'instruction', 'output', but 'output' is missing"),
    ({"prompt": "a", "completion": ""}, "completion is empty"),
    ({"prompt": " \n", "completion": "b"}, "prompt is empty"),
    ({"prompt": None, "completion": "b"}, "prompt must be text, but it is null"),
    ({"prompt": ["a"], "completion": "b"}, "prompt must be text, but it is a list"),
    ({"instruction": "a", "input": 3, "output": "b"}, "input must be text, but it is a number"),
    ('{"prompt": "a\\ud800", "completion": "b"}', "prompt holds half a character (a lone surrogate, \\ud800)"),
    ('{"prompt": "a", "completion": "b", "prompt": "c"}', "the key 'prompt' is there twice"),
    ("[" * 100_000, "not JSON"),
]
U, A, S = ({"role": role, "content": role} for role in ("user", "assistant", "system"))
BAD_CHATS: list[tuple[Any, str]] = [
    ([], "messages must be a list of messages, but it is an empty list"),
    ("hi", "messages must be a list of messages, but it is text"),
    (["hi"], "message 1 must be an object with role and content, but it is text"),
    ([{"role": "user"}], "message 1 lacks 'content'"),
    ([U, {"content": "a"}], "message 2 lacks 'role'"),
    ([{**U, "name": "Eve"}, A], "message 1 has the unknown key 'name'"),
    ([U], "the last message is the user's; an answer of the assistant is missing"),
    ([S], "the last message is the system's; an answer of the assistant is missing"),
    ([U, A, U], "the last message is the user's; an answer of the assistant is missing"),
    ([A], "message 1 has the role 'assistant', where system or user must stand"),
    ([S, A], "message 2 has the role 'assistant', where user must stand"),
    ([U, U, A], "message 2 has the role 'user', where assistant must stand"),
    ([U, A, A], "message 3 has the role 'assistant', where user must stand"),
    ([U, S, A], "message 2 has the role 'system', where assistant must stand"),
    ([U, {"role": "tool", "content": "4"}], "message 2 has the role 'tool', where assistant must stand"),
    ([{"role": ["user"], "content": "a"}, A], "message 1 has the role ['user']"),
    ([U, {"role": "assistant", "content": None}], "the content of message 2 must be text, but it is null"),
    ([U, {"role": "assistant", "content": [{"type": "text"}]}], "the content of message 2 must be text"),
    ([U, {"role": "assistant", "content": "  "}], "the content of message 2 is empty"),
]


@pytest.mark.parametrize(("row", "message"), BAD + [({"messages": m}, text) for m, text in BAD_CHATS])
def test_an_unfit_row_is_named_and_explained(tmp_path: Path, row: Any, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text((row if isinstance(row, str) else json.dumps(row)) + "\n", encoding="utf-8")
    said = refusal(path)
    assert message in said
    assert f"{path}:1: " in said


def test_formats_are_not_mixed(tmp_path: Path) -> None:
    path = write(tmp_path, PAIR, PAIR, ALPACA)
    assert f"{path}:3: this row is Alpaca, but the file began with prompt/completion" in refusal(path)


def test_only_the_first_bad_rows_are_listed_but_all_are_counted(tmp_path: Path) -> None:
    said = refusal(write(tmp_path, *[PAIR] * 3, *[{"prompt": "a"}] * 8))
    assert "8 of 11 rows are unfit" in said
    assert [f":{n}: " in said for n in range(4, 10)] == [True] * 5 + [False]
    assert said.endswith("… and 3 more")


def test_five_bad_rows_have_no_more(tmp_path: Path) -> None:
    assert "more" not in refusal(write(tmp_path, *[{"prompt": "a"}] * 5))


def row(*contents: str) -> Row:
    roles = ("user", "assistant") * len(contents)
    return Row(tuple(Message(role, text) for role, text in zip(roles, contents, strict=False)))  # type: ignore[arg-type]


def test_describe_counts_what_a_person_should_know() -> None:
    facts = describe([row("a", "1"), row("a", "1"), row("a", "2"), row("b", "1", "cc", "33")])
    assert (facts.rows, facts.answers, facts.duplicates, facts.conflicts, facts.longest) == (4, 5, 1, 1, 6)


def test_a_row_is_written_canonically() -> None:
    assert row("ü", "1").canonical() == (
        '{"messages":[{"role":"user","content":"ü"},{"role":"assistant","content":"1"}]}'
    )
