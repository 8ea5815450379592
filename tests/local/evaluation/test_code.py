"""Code that is missing in the middle."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudft.errors import IntegrityError
from local.evaluation.distance import distance, similarity
from local.evaluation.endpoint import Fim, Question
from local.evaluation.fim import fim_of
from local.evaluation.tasks.code import CodeScorer, syntax_problem
from tests.local.evaluation.rows import reply, row
from tests.local.serve_fixtures import write_table_gguf

BEFORE, AFTER = "def double(x):\n    ", "\n\nprint(double(2))\n"
ROW = row("return 2 * x", prompt=f"{BEFORE}<FILL>{AFTER}")
FIM = Fim("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")


@settings(deadline=None, max_examples=200)
@given(*[st.text(alphabet="abc é", max_size=12)] * 2)
def test_the_distance_is_the_textbooks(a: str, b: str) -> None:
    table = [[i + j if i * j == 0 else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            replaced = table[i - 1][j - 1] + (a[i - 1] != b[j - 1])
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, replaced)
    assert distance(a, b) == distance(b, a) == table[-1][-1]
    assert 0 <= similarity(a, b) <= 1


def test_long_texts_have_a_distance_too() -> None:
    a = "".join(chr(97 + i * i % 97 % 26) for i in range(4000))
    assert distance(a, "?" * 30 + a + "!" * 50) == 80
    assert similarity("", "") == 1


def test_a_hole_is_filled_with_the_models_own_tokens() -> None:
    asked = CodeScorer().question(ROW, FIM)
    assert asked.text == f"<|fim_prefix|>{BEFORE}<|fim_suffix|>{AFTER}<|fim_middle|>"
    assert CodeScorer(ask="chat").question(ROW, None) == Question(ROW.prompt, 256)


def test_an_answer_is_compared_and_parsed_in_its_place() -> None:
    scorer = CodeScorer(language="python")
    right = scorer.score(reply("return 2 * x\n"), ROW)
    assert right.score == {"exact_match": 1, "edit_similarity": 1, "syntax_valid": 1}
    other = scorer.score(reply("return x + x"), ROW)
    assert (other.score["exact_match"], other.score["syntax_valid"], other.problem) == (0, 1, "other code")
    assert other.score["edit_similarity"] == pytest.approx(1 - distance("return x + x", "return 2 * x") / 12)
    broken = scorer.score(reply("return (2 * x"), ROW)
    assert broken.score["syntax_valid"] == 0
    assert "line 2" in broken.problem
    assert scorer.score(reply(" return 2 * x"), ROW).score["exact_match"] == 0  # indentation is code
    assert set(scorer.score(None, ROW).score.values()) == {0.0}
    assert set(CodeScorer().metrics) == {"exact_match", "edit_similarity"}


@pytest.mark.parametrize("text", ["def f(:", "\x00", "(" * 5000, "x = '\ud800'", "return\n  x"])
def test_what_is_no_python_never_breaks_the_check(text: str) -> None:
    assert syntax_problem(text)


def test_a_warning_is_no_problem() -> None:
    assert syntax_problem("x = 1 is 1\n'\\d'\n") == ""


@pytest.mark.parametrize("prompt", ["no hole", "<FILL> and <FILL>"])
def test_the_hole_must_be_there_once(prompt: str) -> None:
    with pytest.raises(ValueError, match="once"):
        CodeScorer().check(row("x", prompt=prompt))


def test_the_tokens_are_those_that_llama_cpp_finds_in_the_file(tmp_path: Path) -> None:
    with_them = write_table_gguf(tmp_path / "a.gguf", {"a": "one"}, special=list(vars(FIM).values()))
    assert fim_of(with_them) == FIM
    assert fim_of(write_table_gguf(tmp_path / "b.gguf", {"a": "one"})) is None
    (tmp_path / "c.gguf").write_bytes(b"GGUF")
    with pytest.raises(IntegrityError, match="can't load"):
        fim_of(tmp_path / "c.gguf")
