"""Two models compared: what is called better, worse or neither, and what a reader is told."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from local.evaluation.analysis import Analysis, analyse, measure
from local.evaluation.document.comparison import Verdict
from local.evaluation.document.measurement import Measurement, Metric, ModelUsed, OutputsRef, Usage
from local.evaluation.statistics import newcombe, wilson
from local.evaluation.tasks.base import MetricDef, Scored, macro_f1, micro_f1, ratio, share
from local.evaluation.verdict import caveats, round_up, verdict

METRICS = {"hit": share("."), "words": ratio("."), "some": share(".")}


def scores(hits: Sequence[float], words: Sequence[float] | None = None) -> list[Scored]:
    """Rows with a hit or a miss; every third row has a "some"."""
    words = words if words is not None else hits
    return [
        Scored({"hit": hit, "words": word} | ({"some": hit} if place % 3 == 0 else {}))
        for place, (hit, word) in enumerate(zip(hits, words, strict=True))
    ]


def compare(before: list[Scored], after: list[Scored]) -> tuple[Analysis, Verdict]:
    found = analyse(METRICS, [before], [after], "hit")
    about = METRICS["hit"].about
    said = verdict(len(before), "hit", about, found.before["hit"], found.after["hit"], found.comparisons)
    return found, said


def hits(right: int, n: int) -> list[float]:
    return [1.0] * right + [0.0] * (n - right)


def test_better_is_said_with_both_numbers_and_the_interval() -> None:
    found, said = compare(scores(hits(41, 100)), scores(hits(96, 100)))
    assert said.outcome == "better"
    low, high = (100 * end for end in newcombe(both=41, gained=55, lost=0, neither=4))
    assert said.sentence == f"better, 41 → 96 of 100 by hit (95% CI of the change {low:+.1f} to {high:+.1f} points)"
    assert said.rows_needed is None
    change = found.comparisons["hit"]
    assert (change.gained, change.lost, change.test) == (55, 0, "mcnemar")
    assert (found.changes.gained, found.changes.right_both_times, found.changes.wrong_both_times) == (55, 41, 4)
    assert found.after["some"].of == 34


def test_worse_is_called_worse() -> None:
    found, said = compare(scores(hits(90, 100)), scores(hits(60, 100)))
    assert said.outcome == "worse"
    assert said.sentence.startswith("worse, 90 → 60 of 100 by hit (95% CI of the change -3")
    assert said.worse == ("words", "some")
    assert "worse: words, some" in said.sentence
    assert found.changes.lost == 30


def test_what_cannot_be_shown_says_how_many_rows_would() -> None:
    # 7 gained and 4 lost of 100: the same shares would need about 951 rows.
    before, after = hits(50, 100), hits(57, 100)
    after[:4] = [0.0] * 4
    found, said = compare(scores(before), scores(after))
    assert said.outcome == "undecided"
    assert said.sentence.startswith("no difference that 100 examples can show: 50 → 53 of 100 by hit")
    assert said.rows_needed == found.comparisons["hit"].rows_needed
    assert said.rows_needed is not None
    assert f"; about {round_up(said.rows_needed)} would" in said.sentence
    assert 800 < said.rows_needed < 1100


def test_two_models_that_answer_alike_say_what_would_have_shown() -> None:
    _, said = compare(scores(hits(50, 100)), scores(hits(50, 100)))
    assert said.outcome == "undecided"
    assert "; a change of 8 points would have shown" in said.sentence
    assert said.rows_needed is None
    _, few = compare(scores(hits(2, 5)), scores(hits(2, 5)))
    assert few.sentence.endswith("points)")


def test_what_would_have_shown_is_said_of_shares_without_any_change_alone() -> None:
    """With gains and losses in balance a change of eight points would have been lost among them."""
    before, after = hits(50, 100), hits(60, 100)
    after[:10] = [0.0] * 10
    found, said = compare(scores(before), scores(after))
    assert (found.comparisons["hit"].gained, found.comparisons["hit"].lost) == (10, 10)
    assert said.sentence.endswith("points)")
    mean = {"mean": ratio("A mean.")}
    same = [Scored({"mean": place / 100}) for place in range(100)]
    alike = analyse(mean, [same], [same], "mean")
    sentence = verdict(
        100, "mean", mean["mean"].about, alike.before["mean"], alike.after["mean"], alike.comparisons
    ).sentence
    assert sentence.endswith("(95% CI of the change +0.000 to +0.000)")


def test_rows_that_did_not_show_it_are_never_called_enough() -> None:
    # Five gains and no loss: the formula alone would find four rows enough.
    found, said = compare(scores(hits(0, 5)), scores(hits(5, 5)))
    assert said.outcome == "undecided"
    assert found.comparisons["hit"].rows_needed == 6


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 8])
def test_so_few_rows_are_no_finding_by_the_bootstrap_either(n: int) -> None:
    """All rows far better, and no resample without a gain: by chance all go one way in 2 of 2^n cases."""
    before, after = [0.1 + 0.01 * i for i in range(n)], [0.7 + 0.02 * i for i in range(n)]
    found, _ = compare(scores(hits(0, n), before), scores(hits(0, n), after))
    words = found.comparisons["words"]
    assert words.p_value == min(1.0, 2 / 2**n)
    assert words.outcome == ("better" if n >= 8 else "undecided"), "corrected for three metrics"
    assert words.rows_needed == (None if n >= 8 else max(6, n + 1))


def test_rows_that_are_alike_do_not_count_as_evidence() -> None:
    """Of a hundred rows four changed: the bootstrap would see them in nearly all resamples."""
    after = [0.5] * 96 + [0.9] * 4
    found, _ = compare(scores(hits(50, 100), [0.5] * 100), scores(hits(50, 100), after))
    assert found.comparisons["words"].p_value == 0.125
    assert (found.comparisons["words"].rows_needed or 0) >= 150


def test_a_planted_regression_is_named_beside_the_gain() -> None:
    before = scores(hits(20, 120), [0.9] * 120)
    after = scores(hits(110, 120), [0.4 + 0.001 * i for i in range(120)])
    found, said = compare(before, after)
    assert said.outcome == "better"
    assert said.worse == ("words",)
    assert said.sentence.endswith("; worse: words")
    assert found.comparisons["words"].lost == 120
    told = told_about(said, found, 120)
    assert [(c.code, c.text[:15]) for c in told] == [("regression", "words got worse")]


def test_many_metrics_are_not_a_finding() -> None:
    """Of twenty metrics of pure noise one has a small p-value; none is called a finding."""
    metrics = {"hit": share("."), **{f"noise{i}": share(".") for i in range(20)}}
    chance = random.Random(1)

    def side() -> list[Scored]:
        return [Scored({name: float(chance.random() < 0.5) for name in metrics}) for _ in range(80)]

    found = analyse(metrics, [side()], [side()], "hit").comparisons
    noise = [c for name, c in found.items() if name != "hit"]
    assert min(c.p_value for c in noise) < 0.05
    assert all(c.outcome == "undecided" for c in noise)
    assert found["hit"].p_adjusted == found["hit"].p_value


def test_metrics_that_apply_to_no_row_are_left_out() -> None:
    rows = [Scored({"hit": 1.0}), Scored({"hit": 0.0})]
    assert list(measure(METRICS, [rows])) == ["hit"]
    assert list(analyse(METRICS, [rows], [rows], "hit").after) == ["hit"]


def test_all_rows_alike_are_no_certainty() -> None:
    found, _ = compare(scores([0.0] * 50), scores([1.0] * 50))
    words = found.after["words"]
    assert (words.value, words.high, words.method) == (1, 1, "wilson")
    assert words.low == pytest.approx(0.929, abs=1e-3)
    assert 0.8 < found.comparisons["words"].low < 1
    # A metric that is about a third of the rows is as uncertain as so few are.
    third = {"hit": share("."), "part": ratio(".")}
    rows = [Scored({"hit": 1.0} | ({"part": 1.0} if place % 3 == 0 else {})) for place in range(50)]
    assert measure(third, [rows])["part"].low == pytest.approx(wilson(17, 17)[0])
    assert found.comparisons["words"].outcome == "better"


def test_f1_over_rows_has_an_interval_and_a_paired_test() -> None:
    chance = random.Random(1)
    metrics = {"hit": share("."), "f1": ratio(".", macro_f1)}

    def rows(skill: float) -> list[Scored]:
        made = []
        for place in range(150):
            expected, right = place % 3, chance.random() < skill
            answered = expected if right else (expected + 1) % 3
            counts = [[0.0, 0.0, 0.0] for _ in range(3)]
            counts[expected][0] = counts[answered][1] = 1
            counts[expected][2] = float(right)
            made.append(Scored({"hit": float(right)}, pooled={"f1": tuple(v for c in counts for v in c)}))
        return made

    found = analyse(metrics, [rows(0.5)], [rows(0.9)], "hit")
    change = found.comparisons["f1"]
    assert (change.test, change.gained, change.outcome) == ("paired bootstrap", None, "better")
    assert change.low < found.after["f1"].value - found.before["f1"].value < change.high
    assert found.after["f1"].low < found.after["f1"].value < found.after["f1"].high
    as_primary = analyse(metrics, [rows(0.5)], [rows(0.9)], "f1")
    said = verdict(
        150, "f1", metrics["f1"].about, as_primary.before["f1"], as_primary.after["f1"], as_primary.comparisons
    )
    assert said.sentence.startswith("better, f1 0.")
    assert as_primary.changes.gained == 0


def test_pooled_f1_of_nothing_is_not_a_number() -> None:
    assert np.isnan(micro_f1(np.zeros(3)))
    assert np.isnan(macro_f1(np.zeros(6)))
    assert macro_f1(np.array([2.0, 2.0, 2.0, 0.0, 0.0, 0.0])) == 1


def test_repeats_of_a_row_are_one_row() -> None:
    """Ten times the same answers are no more evidence than one; a new draw of the rows decides."""
    once = scores([float(i % 2) for i in range(40)])
    alone, ten = measure(METRICS, [once]), measure(METRICS, [once] * 10)
    assert (ten["hit"].hits, ten["hit"].method) == (None, "bootstrap")
    assert ten["hit"].per_repeat == (0.5,) * 10
    assert ten["hit"].spread == 0
    assert ten["hit"].high - ten["hit"].low == pytest.approx(alone["hit"].high - alone["hit"].low, abs=0.03)
    varied = measure(METRICS, [scores(hits(10, 40)), scores(hits(30, 40))])["hit"]
    assert (varied.value, varied.per_repeat) == (0.5, (0.25, 0.75))
    assert varied.spread == pytest.approx(0.3536, abs=1e-4)


def test_the_same_scores_give_the_same_numbers_again() -> None:
    first, second = (compare(scores(hits(3, 9)), scores(hits(6, 9)))[0] for _ in range(2))
    assert first == second


@pytest.mark.parametrize(("rows", "shown"), [(6, 6), (99, 99), (100, 100), (101, 110), (12345, 13000)])
def test_a_number_of_rows_is_rounded_up_to_what_is_known(rows: int, shown: int) -> None:
    assert round_up(rows) == shown


Teller = Callable[..., list[Any]]


def told_about(said: Verdict, found: Analysis, n: int, held_out: int | None = None, **usage: Any) -> list[Any]:
    cut_off = usage.pop("cut_off", {"before": 0, "after": 0})
    engine, template = usage.pop("engine", "llama-server"), usage.pop("template", "own")
    sides = {
        "before": _side(found.before, n, "llama-server", template, 0),
        "after": _side(found.after, n, engine, "own", usage.pop("failed", 0)),
    }
    about: dict[str, Metric] = {name: METRICS[name].about for name in found.after}
    return list(caveats(n, held_out or n, said, about, found.comparisons, sides, cut_off))


def _side(metrics: Any, n: int, engine: str, template: str, failed: int) -> Measurement:
    usage = Usage(
        seconds=1,
        requests=n,
        cached=0,
        failed=failed,
        retried=0,
        workers=1,
        prompt_tokens=1,
        completion_tokens=1,
        latency_median=None,
        latency_p95=None,
    )
    model = ModelUsed.model_validate({"title": "m", "name": "m", "engine": engine, "template_source": template})
    return Measurement(
        metrics=metrics, model=model, usage=usage, outputs=OutputsRef(path="o", sha256="0" * 64, lines=n)
    )


def codes(n: int, **more: Any) -> list[str]:
    found, said = compare(scores(hits(n // 2, n)), scores(hits(n // 2, n)))
    return [caveat.code for caveat in told_about(said, found, n, **more)]


def test_a_reader_is_told_what_weakens_the_numbers() -> None:
    assert codes(100) == []
    assert codes(100, held_out=140) == ["partial"]
    assert codes(100, failed=3) == ["failed-requests"]
    assert codes(100, cut_off={"before": 0, "after": 5}) == []
    assert codes(100, cut_off={"before": 0, "after": 6}) == ["cut-off"]
    assert codes(100, engine="llama_cpp.server") == ["engines-differ"]
    assert codes(100, template="given") == ["template-given"]


def test_a_hold_out_that_is_too_small_is_called_so() -> None:
    found, said = compare(scores(hits(2, 5)), scores(hits(2, 5)))
    (tiny,) = told_about(said, found, 5)
    assert tiny.text.startswith("The hold-out is too small: 5 rows cannot show any change, not even one of all rows.")
    found, said = compare(scores(hits(10, 20)), scores(hits(10, 20)))
    (small,) = told_about(said, found, 20)
    assert small.text == "The hold-out is small: 20 rows show only changes of about 37 points or more."


def test_a_model_that_got_worse_is_called_so() -> None:
    found, said = compare(scores(hits(90, 100)), scores(hits(60, 100)))
    told = told_about(said, found, 100)
    assert [caveat.code for caveat in told] == ["worse", "regression", "regression"]
    assert told[0].text.startswith("The tuned model is worse, 90 → 60 of 100")


def test_a_metric_of_the_users_own_keeps_its_scale() -> None:
    metrics = {"hit": share("."), "length": MetricDef(Metric(unit="number", definition="."))}
    before = [Scored({"hit": 1.0, "length": 100.0 + i}) for i in range(50)]
    after = [Scored({"hit": 1.0, "length": 90.0 + i}) for i in range(50)]
    found = analyse(metrics, [before], [after], "length")
    change = found.comparisons["length"]
    assert (change.change, change.low, change.high, change.outcome) == (-10, -10, -10, "worse")
    said = verdict(
        50, "length", metrics["length"].about, found.before["length"], found.after["length"], found.comparisons
    )
    assert said.sentence.startswith("worse, length 124.500 → 114.500 on 50 (95% CI of the change -10.000 to -10.000)")


def test_several_repeats_of_f1_are_its_mean_and_fit_the_change() -> None:
    chance = random.Random(4)
    metrics = {"hit": share("."), "f1": ratio(".", micro_f1)}

    def repeat(skill: float) -> list[Scored]:
        right = [float(chance.random() < skill) for _ in range(60)]
        return [Scored({"hit": hit}, pooled={"f1": (1.0, float(i % 2 or hit), hit)}) for i, hit in enumerate(right)]

    before, after = [repeat(0.3), repeat(0.5)], [repeat(0.7), repeat(0.9)]
    found = analyse(metrics, before, after, "hit")
    for name in metrics:
        was, now, change = found.before[name], found.after[name], found.comparisons[name]
        assert now.value == pytest.approx(sum(now.per_repeat) / 2)
        assert was.low < was.value < was.high
        assert change.change == pytest.approx(now.value - was.value)
        assert change.low < change.change < change.high
        assert change.test == "paired bootstrap"
    each = [analyse(metrics, [b], [a], "hit").after["f1"].value for b, a in zip(before, after, strict=True)]
    assert found.after["f1"].per_repeat == pytest.approx(each)
