"""Free text: words shared with a reference, and the libraries' metrics as the libraries count them."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudft.errors import EnvironmentProblem
from local.evaluation.analysis import measure
from local.evaluation.tasks.base import Scored
from local.evaluation.tasks.text import TextScorer, token_f1, words
from tests.local.evaluation.rows import reply, row


def score(answer: str | None, expected: str, scorer: TextScorer | None = None) -> Scored:
    return (scorer or TextScorer()).score(None if answer is None else reply(answer), row(expected))


def test_matches_from_strict_to_lenient() -> None:
    assert score(" It rains.\n", "It rains.").score == {"exact_match": 1, "normalized_match": 1, "token_f1": 1}
    assert score("it  RAINS", "It rains.").score == {"exact_match": 0, "normalized_match": 1, "token_f1": 1}
    assert score("It snows", "It rains.").score == {"exact_match": 0, "normalized_match": 0, "token_f1": 0.5}
    assert set(score(None, "It rains.").score.values()) == {0.0}
    assert set(score("", "...").score.values()) == {0.0, 1.0}  # no word is expected, and none is there


def test_words_are_words_in_any_script() -> None:
    assert words("«Straße» – 3,5 ﬁnes!") == ["strasse", "3", "5", "fines"]
    assert words("你好，世界") == ["你好", "世界"]


@settings(deadline=None, max_examples=60)
@given(*[st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=8)] * 2)
def test_token_f1_agrees_with_scikit_learn_over_a_bag_of_words(said: list[str], wanted: list[str]) -> None:
    """Each occurrence of a word is a label of its own: the second "a" is another than the first."""
    from sklearn.metrics import f1_score

    bags = [{(word, side[:place].count(word)) for place, word in enumerate(side)} for side in (said, wanted)]
    universe = sorted(bags[0] | bags[1])
    given_, expected = ([item in bag for item in universe] for bag in bags)
    theirs = f1_score(expected, given_, zero_division=1) if universe else 1.0
    assert token_f1(" ".join(said), " ".join(wanted)) == pytest.approx(theirs)


PAIRS = [
    ("The cat sat on the mat and slept.", "The cat sat on the mat."),
    ("A dog barked at the tree for an hour", "The dog barked at a tree for one hour"),
    ("", "Nothing was said here at all"),
    ("entirely other words", "The printer does not print since Monday"),
]


def test_bleu_over_all_rows_is_sacrebleus() -> None:
    from sacrebleu import corpus_bleu

    scorer = TextScorer(["bleu"])
    found = measure(scorer.metrics, [[score(answer, reference, scorer) for answer, reference in PAIRS]])
    theirs = corpus_bleu([a for a, _ in PAIRS], [[r for _, r in PAIRS]])
    assert found["bleu"].value == pytest.approx(theirs.score / 100)
    assert found["bleu"].low < found["bleu"].value < found["bleu"].high
    nothing = measure(scorer.metrics, [[score(None, "a b c d e", scorer), score("", "f", scorer)]])
    assert nothing["bleu"].value == 0


def test_rouge_and_chrf_are_the_libraries_means() -> None:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.chrf import CHRF

    scorer = TextScorer(["rouge1", "rouge2", "rougeL", "chrf"])
    found = measure(scorer.metrics, [[score(answer, reference, scorer) for answer, reference in PAIRS]])
    rouge = RougeScorer(["rouge1", "rouge2", "rougeL"])
    for name in ("rouge1", "rouge2", "rougeL"):
        theirs = [rouge.score(reference, answer)[name].fmeasure for answer, reference in PAIRS]
        assert found[name].value == pytest.approx(sum(theirs) / len(PAIRS))
    theirs = [CHRF().sentence_score(answer, [reference]).score for answer, reference in PAIRS]
    assert found["chrf"].value == pytest.approx(sum(theirs) / len(PAIRS) / 100)


@pytest.mark.parametrize(
    ("metric", "package"), [("rougeL", "rouge-score"), ("chrf", "sacrebleu"), ("bleu", "sacrebleu")]
)
def test_a_library_that_is_missing_is_named_with_the_command(
    metric: Any, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith(("sacrebleu", "rouge_score")):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EnvironmentProblem, match=f"needs {package}") as caught:
        TextScorer([metric])
    assert "cloudft[text]" in caught.value.hint
    assert TextScorer().metrics


def test_an_empty_reference_is_none() -> None:
    with pytest.raises(ValueError, match="empty"):
        TextScorer().expect("  ")
