"""Labels, with and without a rationale, against scikit-learn."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local.evaluation.analysis import confusion, measure, tables
from local.evaluation.document.measurement import FAILED, OTHER
from local.evaluation.tasks.base import Scored
from local.evaluation.tasks.classification import ClassificationScorer, labels_in
from tests.local.evaluation.rows import reply, row

LABELS = ("billing", "bug", "other")
SCORER = ClassificationScorer(LABELS)


def score(answer: str | None, expected: Any) -> Scored:
    return SCORER.score(None if answer is None else reply(answer), row(expected))


answers = st.sampled_from([*LABELS, " bug\n", "Bug", "bug.", "", "none of these", None])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(LABELS), answers), min_size=1, max_size=25))
def test_accuracy_f1_and_matrix_agree_with_scikit_learn(pairs: list[tuple[str, str | None]]) -> None:
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

    scores = [[score(answer, expected) for expected, answer in pairs]]
    found = measure(SCORER.metrics, scores)
    expected = [label for label, _ in pairs]
    clean = [(answer or "").strip() for _, answer in pairs]
    given_ = [label if label in LABELS else OTHER for label in clean]
    assert found["accuracy"].value == pytest.approx(accuracy_score(expected, given_))
    theirs = f1_score(expected, given_, labels=LABELS, average="macro", zero_division=math.nan)
    assert found["macro_f1"].value == pytest.approx(theirs)
    assert found["valid"].hits == sum(label in LABELS for label in given_)
    each = precision_recall_fscore_support(expected, given_, labels=LABELS, zero_division=0)
    tallies = tables(SCORER.tables, scores)["labels"]
    for place, label in enumerate(LABELS):
        tally = tallies[label]
        assert (tally.precision, tally.recall, tally.f1) == pytest.approx([column[place] for column in each[:3]])
        assert tally.expected == each[3][place]
    matrix = confusion(SCORER.matrices, scores)["label"]
    assert (matrix.rows, matrix.columns) == (LABELS, (*LABELS, OTHER, FAILED))
    failed = [FAILED if answer is None else label for (_, answer), label in zip(pairs, given_, strict=True)]
    counts = confusion_matrix(expected, failed, labels=matrix.columns)
    assert [list(counted) for counted in matrix.counts] == counts[: len(LABELS)].tolist()


def test_a_label_is_the_whole_answer_and_nothing_else() -> None:
    assert score(" bug\n", "bug").score == {"accuracy": 1, "valid": 1}
    for answer in ("Bug", "bug.", "The label is bug", '{"label": "bug"}', '"bug"', ""):
        found = score(answer, "bug")
        assert set(found.score.values()) == {0.0}
        assert "none of the labels" in found.problem
    wrong = score("other", "bug")
    assert (wrong.score["accuracy"], wrong.score["valid"], wrong.problem) == (0, 1, "other, not bug")


def test_a_label_with_a_rationale_must_come_as_it_is_expected() -> None:
    expected = {"label": "bug", "rationale": "It crashes."}
    both = score(json.dumps({"rationale": "It does not start.", "label": "bug"}), expected)
    assert both.score == {"accuracy": 1, "valid": 1, "rationale": 1}
    without = score('{"label": "bug"}', expected)
    assert without.score == {"accuracy": 1, "valid": 1, "rationale": 0}
    assert score('{"label": "bug", "rationale": " "}', expected).score["rationale"] == 0
    assert score("bug", expected).score == {"accuracy": 0, "valid": 0, "rationale": 0}
    assert score('{"label": ["bug"], "rationale": "x"}', expected).score == {"accuracy": 0, "valid": 0, "rationale": 1}
    # Nothing is asked of a row whose own answer gives no reason.
    assert "rationale" not in score('{"label": "bug"}', {"label": "bug"}).score


def test_a_failed_request_fails_on_everything() -> None:
    found = score(None, {"label": "bug", "rationale": "x"})
    assert set(found.score.values()) == {0.0}
    assert found.pairs == {"label": ("bug", FAILED)}
    assert found.problem == "the request failed"


def test_other_keys_can_be_named() -> None:
    scorer = ClassificationScorer(LABELS, label_key="class", rationale_key="why")
    expected = scorer.expect('{"class": "bug", "why": "x"}')
    found = scorer.score(reply('{"class": "bug", "why": "y"}'), row(expected))
    assert found.score == {"accuracy": 1, "valid": 1, "rationale": 1}


@pytest.mark.parametrize(
    ("text", "says"), [("nothing", "'nothing'"), ('{"labl": "bug"}', "has no 'label'"), ('{"label": 7}', "is 7")]
)
def test_an_expected_answer_must_have_a_label(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SCORER.expect(text)
    assert SCORER.expect(" bug ") == "bug"


def test_labels_are_found_in_the_data() -> None:
    assert labels_in(["b", '{"label": "a", "x": 1}', " b "], "label") == ("a", "b")
    with pytest.raises(ValueError, match=r"no label at 'label' \(task.label_key\)"):
        labels_in(["a", '{"class": "a"}'], "label")
