"""``eval.json`` and its answers: read back as they were written, and refused if anything was changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cloudft.errors import IntegrityError, NotFound
from local.evaluation.document.eval_json import read_document
from local.evaluation.document.measurement import LABELS
from local.evaluation.document.outputs import OutputLine, read_outputs
from local.files import write_json
from local.project import RunFolder
from tests.local.evaluation.documents import lines, write

BEFORE = lines([("bug", "bug"), ("billing", "bug"), ("billing", None)])
AFTER = lines([("bug", "billing"), ("billing", "billing"), ("billing", "other\u2028\x85")])


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "runs" / "r1")
    write(run, BEFORE, AFTER)
    return run


def test_what_is_written_is_read_back(run: RunFolder) -> None:
    found = read_document(run)
    assert list(json.loads(run.evaluation.read_bytes()))[:3] == ["n", "before", "after"]
    assert (found.n, found.before, found.after) == (3, {"accuracy": 1 / 3}, {"accuracy": 1 / 3})
    assert [read_outputs(run, found.sides[label].outputs) for label in LABELS] == [BEFORE, AFTER]


def test_half_a_surrogate_pair_survives(run: RunFolder) -> None:
    line = AFTER[0].model_copy(update={"answer": "\ud800", "expected": {"a": "\udfff"}})
    write(run, BEFORE, [line, *AFTER[1:]])
    assert read_outputs(run, read_document(run).sides["after"].outputs)[0] == line


def test_nothing_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="was not evaluated") as caught:
        read_document(RunFolder(tmp_path / "r2"))
    assert "cloudft eval r2" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema_version": 1}, "version 1"),
        ({"n": 0}, "n: "),
        ({"before": {"accuracy": 0.9}}, "not those of its measurement"),
        ({"comparisons": {}}, "not the same metrics"),
        ({"primary": "f1"}, "was not measured"),
        ({"more": 1}, "more: "),
    ],
)
def test_a_document_that_was_changed_is_refused(run: RunFolder, change: dict[str, Any], says: str) -> None:
    write_json(run.evaluation, json.loads(run.evaluation.read_bytes()) | change)
    with pytest.raises(IntegrityError, match=says) as caught:
        read_document(run)
    assert "cloudft eval r1" in caught.value.hint


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"n": 1}', "\udcff"])
def test_what_is_no_document_is_refused(run: RunFolder, text: str) -> None:
    run.evaluation.write_text(text, errors="surrogateescape")
    with pytest.raises(IntegrityError):
        read_document(run)


def test_answers_that_were_changed_are_refused(run: RunFolder) -> None:
    outputs = read_document(run).sides["after"].outputs
    path = run.root / outputs.path
    path.write_bytes(path.read_bytes().replace(b"billing", b"killing"))
    with pytest.raises(IntegrityError, match="not what the evaluation wrote"):
        read_outputs(run, outputs)
    path.unlink()
    with pytest.raises(NotFound):
        read_outputs(run, outputs)


def test_a_line_has_nothing_that_is_not_described() -> None:
    with pytest.raises(ValueError, match="more"):
        OutputLine.model_validate(BEFORE[0].model_dump() | {"more": 1})
