"""Raw text for cpt stages: read whole, refused by file and line, and free of what is measured with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cloudft.errors import DataError, NotFound
from local.planning.documents import Document, load_documents, without


def write(folder: Path, *rows: Any) -> Path:
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_json_lines_of_text(tmp_path: Path) -> None:
    found = load_documents(write(tmp_path, {"text": "one"}, {"text": "zwei\u2028 drei"}), "k")
    assert found == [Document("one", 1), Document("zwei\u2028 drei", 2)]
    assert found[1].canonical() == '{"text":"zwei\u2028 drei"}'
    assert [document.size for document in found] == [3, 10]


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("[1] A line.\n\nAnd another: {\n", encoding="utf-8")
    assert load_documents(path, "k") == [Document("[1] A line.\n\nAnd another: {\n", 1)]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"text": "a", "id": 1}, "'id', 'text'"),
        ({"messages": []}, "has the one column 'text', but this has 'messages'"),
        ({}, r"\(none\)"),
        ({"text": 3}, "text must be text, but it is a number"),
        ({"text": " \n"}, "text is empty"),
        (["text"], "must be a JSON object"),
    ],
)
def test_an_unfit_row_is_named_by_its_line(tmp_path: Path, row: Any, what: str) -> None:
    with pytest.raises(DataError, match=rf"texts\.jsonl:2: .*{what}"):
        load_documents(write(tmp_path, {"text": "fine"}, row), "k")


def test_files_that_say_nothing(tmp_path: Path) -> None:
    for name in ("none.txt", "none.jsonl"):
        (tmp_path / name).write_text("\n \n")
        with pytest.raises(DataError, match="is empty"):
            load_documents(tmp_path / name, "k")
    with pytest.raises(NotFound, match="is not there") as caught:
        load_documents(tmp_path / "gone.jsonl", "train.stages[0].data")
    assert "train.stages[0].data" in caught.value.hint


LONG = "please tell me which of the many small tickets of this week was answered by nobody at all"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"A log. «{LONG.upper()}» And so on.", False),
        ("x " + LONG.replace(" ", ",  ") + " y", False),
        (LONG.replace("many", "ｍany"), False),
        # Thirteen words of it are enough, twelve are not.
        (" ".join(LONG.split()[2:15]), False),
        (" ".join(LONG.split()[2:14]), True),
        ("Where is the blue invoice? Here.", False),
        ("Where is the red invoice? Here.", True),
        ("help me", True),
    ],
)
def test_documents_that_hold_a_question_are_left_out(text: str, kept: bool) -> None:
    questions = [LONG, "where is the blue invoice?", "help me"]
    assert bool(without([Document(text)], questions)) == kept
