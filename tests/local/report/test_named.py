"""What went wrong is called by name: in the headline, before the numbers, in the page and in the text."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from local.report.write import Written, write_report
from tests.local.report import made_up


def report(root: Path, **scenario: object) -> Written:
    return write_report(*made_up.make_run(root, made_up.Scenario(**scenario)))  # type: ignore[arg-type]


def both(written: Written) -> list[str]:
    """The page as text, and the Markdown without its escapes."""
    page = html.unescape(re.sub(r"<[^>]*>", "", written.html.read_text(encoding="utf-8")))
    text = (written.folder / "report.md").read_text(encoding="utf-8")
    return [" ".join(page.split()), re.sub(r"\\([\\<>|])", r"\1", text)]


def test_a_model_that_got_worse(tmp_path: Path) -> None:
    right = {n: made_up.expected(n) for n in range(1, 61)}
    written = report(tmp_path, rows=60, before=right, after={n: made_up.wrong(n) for n in range(1, 25)})
    assert written.report.verdict == "worse"
    assert written.headline.startswith("Worse, 60 → 36 of 60 by exact_match")
    assert 'class="top worse"' in written.html.read_text(encoding="utf-8")
    for text in both(written):
        assert "The tuned model is worse" in text
        assert text.index("The tuned model is worse") < text.index("Before and after")
        assert "24 lost" in text
    evaluated = written.report.evaluated
    assert evaluated is not None
    assert evaluated.regressed.count == 24
    assert written.report.verdict != "better"


def test_a_regression_behind_a_gain(tmp_path: Path) -> None:
    """What decides is better, but two answers of five are no JSON any more, and some that were right are not."""
    written = report(
        tmp_path,
        rows=100,
        before={n: made_up.wrong(n) for n in range(1, 101)} | {n: made_up.expected(n) for n in (5, 10, 15)},
        after={n: made_up.PROSE for n in range(1, 101) if n % 5 in (0, 1)},
    )
    assert written.report.verdict == "better"
    assert "worse: schema_valid" in written.headline
    for text in both(written):
        assert "schema_valid got worse beyond chance: -40.0 points." in text
    evaluated = written.report.evaluated
    assert evaluated is not None
    assert [example.row for example in evaluated.regressed.shown] == [5, 10, 15]
    page = written.html.read_text(encoding="utf-8")
    assert page.index("Most regressed") < page.index("Most improved")


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (4, "The hold-out is too small: 4 rows cannot show any change, not even one of all rows."),
        (30, "The hold-out is small: 30 rows show only changes of about"),
    ],
)
def test_a_hold_out_that_is_too_small(tmp_path: Path, rows: int, says: str) -> None:
    written = report(tmp_path, rows=rows)
    for text in both(written):
        assert says in text


def test_a_difference_that_so_few_rows_cannot_show(tmp_path: Path) -> None:
    right = {n: made_up.expected(n) for n in range(1, 41)}
    written = report(tmp_path, before=right | {7: made_up.wrong(7), 8: made_up.wrong(8)})
    assert written.report.verdict == "undecided"
    assert written.headline.startswith("No difference that 40 examples can show: 38 → 40 of 40")
    assert "would." in written.headline
    for text in both(written):
        assert "no difference shown" in text.lower()


def test_requests_that_failed(tmp_path: Path) -> None:
    written = report(tmp_path, after=dict.fromkeys((3, 4, 5)))
    for text in both(written):
        assert "3 of 40 requests failed after tuning, and count as wrong." in text
    evaluated = written.report.evaluated
    assert evaluated is not None
    assert {example.after for example in evaluated.failing.shown} == {"(nothing: the request failed)"}


def test_a_judge_that_always_prefers_the_first_answer(tmp_path: Path) -> None:
    written = report(tmp_path, rows=30, more=True)
    for text in both(written):
        assert "The judge is not used: it always prefers the first answer, in whichever order it sees the two" in text
        assert "The judge's verdict is not used".lower() in text.lower()
        assert "Cohen's kappa" in text
    assert written.report.verdict == "better"  # by the metrics; the judge has no say in it


def test_what_quantisation_costs_and_what_was_forgotten(tmp_path: Path) -> None:
    written = report(tmp_path, rows=30, more=True)
    for text in both(written):
        assert "Quantisation cost 23.3 points" in text
        assert "Q4_K_M costs 23.3 points, more than your bar of 2.0. Try Q5_K_M:" in text
        assert "Yes, fine-tune: 8 examples in the prompt reach 66.7%, the tuned model" in text
        assert "nothing is served now" in text
        assert "Worse on general questions: 61 → 44 of 90" in text
        assert "What is 17 + 25?" in text
    said = " ".join(written.report.unmeasured)
    assert "--ladder" not in said
    assert "--general" not in said
    assert "cloudft review" not in said


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    said = " ".join(report(tmp_path).report.unmeasured)
    assert "--ladder" in said
    assert "--general basics" in said
    assert "cloudft review" in said
    assert "with seed 42" in said
