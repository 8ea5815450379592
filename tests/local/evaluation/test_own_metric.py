"""A user's own metric: called with what it is promised, and its mistakes named by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloudft.errors import ConfigError
from local.evaluation.own_metric import load_own_metrics, own_metric_defs
from local.files import sha256_file
from tests.local.evaluation.rows import reply, row


def load(tmp_path: Path, code: str, *names: str) -> Any:
    (tmp_path / "mine.py").write_text(code)
    return load_own_metrics(tmp_path, [f"mine.py:{name}" for name in names])


def refusal(tmp_path: Path, code: str, name: str = "score", answer: str = "x") -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, code, name)[0].score(reply(answer), row("x", number=7))
    return caught.value


def test_a_function_gets_the_answer_the_expectation_and_the_row(tmp_path: Path) -> None:
    code = """
def score(answer, expected, row):
    assert (answer, expected) == ("said", "wanted")
    assert sorted(row) == ["expected", "messages", "number", "tool_calls"]
    assert row["messages"] == [{"role": "user", "content": "?"}]
    return row["number"]
"""
    (metric,) = load(tmp_path, code, "score")
    assert metric.score(reply("said"), row("wanted", number=7)) == {"score": 7.0}
    assert metric.sha256 == sha256_file(tmp_path / "mine.py")
    assert metric.score(None, row("wanted")) == {}


def test_several_functions_give_one_number_or_several(tmp_path: Path) -> None:
    code = """
import json
import helper

def polite(answer, expected, row):
    return helper.word in answer

def lengths(answer, expected, row):
    return {"words": len(answer.split()), "short": len(answer) < 10}
"""
    (tmp_path / "helper.py").write_text("word = 'please'")
    metrics = load(tmp_path, code, "polite", "lengths")
    found = [{k: v for m in metrics for k, v in m.score(reply(text), row("x")).items()} for text in ("please", "no")]
    assert found[0] == {"polite": True, "lengths.words": 1.0, "lengths.short": True}
    defs = own_metric_defs(metrics, [*found, {}])
    assert {name: d.about.unit for name, d in defs.items()} == {
        "polite": "share",
        "lengths.words": "number",
        "lengths.short": "share",
    }
    assert "mine.py:lengths" in defs["lengths.words"].about.definition


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    code = "import numpy as np\ndef score(a, e, r): return {'x': np.float32(0.5), 'y': np.bool_(True)}"
    assert load(tmp_path, code, "score")[0].score(reply("x"), row("x")) == {"score.x": 0.5, "score.y": True}


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("def score(a, e, r): return 1 / 0", "ZeroDivisionError: division by zero"),
        ("def score(a, e, r): raise SystemExit(0)", "SystemExit: 0"),
        ("def score(a): return 1", "TypeError"),
        ("def score(a, e, r): return 'good'", "score is 'good'"),
        ("def score(a, e, r): return None", "score is None"),
        ("def score(a, e, r): return float('nan')", "score is nan"),
        ("def score(a, e, r): return {'x': [1]}", r"score.x is [1]"),
    ],
)
def test_a_mistake_is_named_with_its_row(tmp_path: Path, code: str, says: str) -> None:
    error = refusal(tmp_path, code)
    assert "mine.py:score failed on hold-out row 7: " in error.what
    assert says in error.what
    assert "kept" in error.effect


def test_the_line_of_the_mistake_is_named(tmp_path: Path) -> None:
    error = refusal(tmp_path, "\ndef score(a, e, r):\n    return undefined\n")
    assert f"({tmp_path / 'mine.py'}, line 3)" in error.what


@pytest.mark.parametrize(
    ("code", "name", "says"),
    [
        ("import nothing_of_the_kind", "score", "cannot be imported: ModuleNotFoundError"),
        ("import sys\nsys.exit(0)", "score", "cannot be imported: SystemExit: 0"),
        ("def score(:", "score", "cannot be imported: SyntaxError"),
        ("score = 7", "score", "has no function 'score'"),
        ("", "other", "has no function 'other'"),
    ],
)
def test_what_cannot_be_loaded_is_refused(tmp_path: Path, code: str, name: str, says: str) -> None:
    assert says in refusal(tmp_path, code, name).what


@pytest.mark.parametrize("spec", ["mine.py", "mine:score", "mine.py:", "mine.py:a b", "gone.py:score"])
def test_a_name_that_names_nothing_is_refused(tmp_path: Path, spec: str) -> None:
    (tmp_path / "mine.py").write_text("def score(a, e, r): return 1")
    with pytest.raises(ConfigError, match=r"task\.metric"):
        load_own_metrics(tmp_path, [spec])


def test_a_metric_must_be_the_same_for_all_rows(tmp_path: Path) -> None:
    metrics = load(tmp_path, "def score(a, e, r): return 1", "score")
    with pytest.raises(ConfigError, match="score is now a number, now true or false"):
        own_metric_defs(metrics, [{"score": True}, {"score": 1.0}])
    with pytest.raises(ConfigError, match=r"score\.b is given for some answers only"):
        own_metric_defs(metrics, [{"score.a": True}, {"score.a": True, "score.b": True}])
    assert own_metric_defs(metrics, [{}, {}]) == {}
