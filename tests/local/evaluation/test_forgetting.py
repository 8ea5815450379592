"""What a fine-tune forgot: called by name, never invented, and shown with examples."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from cloudft.errors import NotFound, UsageError
from local.evaluation.basics import GeneralScorer
from local.evaluation.document.eval_json import read_document
from local.evaluation.document.forgetting import Forgetting
from local.evaluation.document.measurement import LABELS, Label
from local.evaluation.document.outputs import OutputLine, output_bytes, outputs_path, prompt_sha256, read_outputs
from local.evaluation.endpoint import Reply
from local.evaluation.evaluate import evaluate_run
from local.evaluation.forgetting import SHOWN, GeneralAnswers, conclude
from local.evaluation.general import load_items
from local.evaluation.measuring import Settings
from local.evaluation.sections import write_sections
from local.evaluation.suites import measure_forgetting
from local.progress import silent
from tests.local.evaluation.recompute import assert_forgetting
from tests.local.evaluation.rescore import right
from tests.local.serve_fixtures import Trained, make_trained

FILES = {"before": "b.jsonl", "after": "a.jsonl"}


def line(row: int, score: float, error: str | None = None) -> OutputLine:
    prompt = ({"role": "user", "content": f"question {row}"},)
    return OutputLine(
        row=row,
        prompt=prompt,
        prompt_sha256=prompt_sha256(prompt),
        expected="right",
        answer=None if error else f"answer {score:g}",
        score={"right": score},
        error=error,
    )


def asked(before: list[float], after: list[float]) -> GeneralAnswers:
    n = len(before)
    return GeneralAnswers(
        suite="basics",
        title="some questions",
        licence="MIT",
        metric="right",
        lines={
            "before": [line(row, score) for row, score in enumerate(before, start=1)],
            "after": [line(row, score) for row, score in enumerate(after, start=1)],
        },
        ids=[f"q{row}" for row in range(n)],
        parts=["first" if row < n // 2 else "second" for row in range(n)],
    )


def found(before: list[float], after: list[float]) -> Forgetting:
    return conclude(asked(before, after), FILES)  # type: ignore[arg-type]


def test_a_planted_loss_is_called_forgetting() -> None:
    result = found([1.0] * 70 + [0.0] * 20, [1.0] * 40 + [0.0] * 50)
    assert result.outcome == "worse"
    assert result.sentence.startswith("forgot: 70 → 40 of 90 general questions (95% CI of the change -4")
    assert [caveat.code for caveat in result.warnings] == ["forgetting"]
    assert result.comparison.lost == 30
    assert len(result.regressions) == SHOWN
    first = result.regressions[0]
    assert (first.id, first.part, first.question, first.expected) == ("q40", "first", "question 41", "right")
    assert (first.before, first.after) == ("answer 1", "answer 0")
    assert {name: (part.before.hits, part.after.hits, part.n) for name, part in result.parts.items()} == {
        "first": (45, 40, 45),
        "second": (25, 0, 45),
    }


def test_a_model_that_kept_everything_is_not_accused() -> None:
    result = found([1.0] * 60 + [0.0] * 30, [1.0] * 59 + [0.0] * 31)
    assert result.outcome == "undecided"
    assert result.sentence.startswith("no forgetting that 90 questions can show: 60 → 59 of 90")
    assert "were not lost" in result.sentence
    assert result.warnings == ()
    assert len(result.regressions) == 1


def test_a_model_that_learnt_more_lost_nothing_on_the_whole() -> None:
    result = found([1.0] * 30 + [0.0] * 60, [1.0] * 60 + [0.0] * 30)
    assert result.outcome == "better"
    assert "nothing forgotten on the whole: 30 → 60" in result.sentence


@pytest.mark.parametrize("right", [0, 5])
def test_a_base_that_knows_nothing_can_not_forget(right: int) -> None:
    result = found([1.0] * right + [0.0] * (90 - right), [0.0] * 90)
    assert result.outcome == "nothing to forget"
    assert result.sentence == (
        f"nothing to forget: the base answers {right} of 90 general questions, the tuned model 0"
    )
    assert result.warnings == ()
    assert len(result.regressions) == right


def test_scores_between_0_and_1_are_compared_too() -> None:
    result = found([0.9] * 50, [0.2] * 50)
    assert (result.outcome, result.comparison.test) == ("worse", "paired bootstrap")
    assert "45.0 → 10.0 of 50" in result.sentence


def test_failed_requests_are_wrong_and_said() -> None:
    given = asked([1.0] * 20, [1.0] * 20)
    broken = {**given.lines, "after": [line(row, 0.0, "timeout: too long") for row in range(1, 21)]}
    result = conclude(GeneralAnswers(**{**vars(given), "lines": broken}), FILES)  # type: ignore[arg-type]
    assert [caveat.code for caveat in result.warnings] == ["forgetting", "failed-requests"]
    assert result.regressions[0].after == "(timeout: too long)"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The base answers every question that ends with a full stop by "43" (two questions want that), the tuned model
    by an object of its task."""
    rows = [("It crashes. a", {"category": "bug", "priority": "high"})]
    before, after = {"a": "no idea", ".": "43"}, {"a": "{}", ".": json.dumps({"category": "bug"})}
    trained = make_trained(tmp_path_factory.mktemp("forgetting"), rows, before, after)
    evaluate_run(trained.project, trained.run, progress=silent)
    return trained


def test_the_set_is_asked_of_both_models_through_the_served_endpoint(trained: Trained) -> None:
    document = measure_forgetting(trained.project, trained.run, ["basics"], Settings(), progress=silent)
    assert document == read_document(trained.run)
    (result,) = document.forgetting
    items, sha256 = load_items()
    assert (result.n, result.sha256, result.suite) == (len(items), sha256, "basics")
    for label in LABELS:
        lines = read_outputs(trained.run, result.outputs[label])
        assert [line.prompt[0]["content"] for line in lines] == [item.question for item in items]
        assert [line.score["right"] for line in lines] == [
            float(item.right(line.answer)) for item, line in zip(items, lines, strict=True)
        ]
    known = {item.id for item in items if item.check == {"number": 43}}
    assert result.before.hits == len(known) > 0
    assert result.after.hits == 0
    assert {example.id for example in result.regressions} == known
    assert result.outcome == "nothing to forget"
    assert_forgetting(trained.run)


def test_every_number_of_it_is_what_the_answers_say(trained: Trained) -> None:
    """The models of the test before know next to nothing; these know much, and have forgotten some of it."""
    items, sha256 = load_items()
    scorer = GeneralScorer(items)
    random = Random(7)
    lines: dict[Label, list[OutputLine]] = {label: [] for label in LABELS}
    for label, knows in (("before", 0.8), ("after", 0.5)):
        for row in scorer.rows():
            other = random.choice(items).expected
            answer = random.choice([row.text, f"{row.text}\n"]) if random.random() < knows else other
            scored = scorer.score(Reply(answer, "stop", 1, 1), row)
            lines[label].append(  # type: ignore[index]
                OutputLine(
                    row=row.number,
                    prompt=row.prompt,
                    prompt_sha256=row.prompt_sha256,
                    expected=row.expected,
                    answer=answer,
                    score=dict(scored.score),
                )
            )
    paths = {label: outputs_path(trained.run, f"basics-{label}") for label in LABELS}
    given = GeneralAnswers(
        "basics", "title", "MIT", "right", lines, [i.id for i in items], [i.part for i in items], sha256
    )
    result = conclude(given, {label: path.name for label, path in paths.items()})
    assert result.outcome == "worse"
    write_sections(trained.run, [(paths[label], output_bytes(lines[label])) for label in LABELS], forgetting=(result,))
    assert_forgetting(trained.run)


def test_both_readings_of_the_rules_agree_on_odd_answers() -> None:
    """Each answer of the set to each of its questions, as it stands and spoilt in some ways."""
    items, _ = load_items()
    spoilt = ["{}", "{}.", "It is {}", "{0}\n\n{0}", "-{}", "{}, 1,000", "{} v1.2.3", "(7) {}", "{}-{}"]
    said = [form.format(one.expected, one.expected) for one in items for form in spoilt]
    said += [answer.upper() for answer in said[:: len(spoilt)]] + ["ÄRGER 1", "don't", "１２", "", "\n"]
    for item in items:
        assert [item.right(answer) for answer in said] == [right(item.check, answer) for answer in said]


def test_a_suite_is_measured_anew_beside_the_others(trained: Trained) -> None:
    first = measure_forgetting(trained.project, trained.run, ["basics", "basics"], Settings(), progress=silent)
    assert len(first.forgetting) == 1
    again = evaluate_run(trained.project, trained.run, progress=silent)
    assert again.document.forgetting == first.forgetting


@pytest.mark.parametrize("suite", ["", "all", "lm-eval:", "lm-eval:../x", "lm-eval:a b", "mmlu"])
def test_an_unknown_suite_is_refused(trained: Trained, suite: str) -> None:
    with pytest.raises(UsageError, match="no general suite") as caught:
        measure_forgetting(trained.project, trained.run, [suite], Settings(), progress=silent)
    assert "basics" in caught.value.hint


def test_a_run_that_was_not_evaluated_is_not_asked(trained: Trained, tmp_path: Path) -> None:
    other = make_trained(tmp_path, [("a", {"category": "bug", "priority": "high"})], {"a": "one"}, {"a": "two"})
    with pytest.raises(NotFound, match="was not evaluated"):
        measure_forgetting(other.project, other.run, ["basics"], Settings(), progress=silent)
