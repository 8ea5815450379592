"""What the ladder says about its steps, on scores that are known."""

from __future__ import annotations

import pytest

from local.evaluation.analysis import Scores
from local.evaluation.document.ladder import Cause, RungName, Step
from local.evaluation.steps import Cost, advice, compare_rungs, worth_it
from local.evaluation.tasks.base import Scored, ratio, share

METRICS = {"exact": share("right"), "f1": ratio("f1")}
COST = Cost(examples=612.4, tuned=80.0)


def hits(*counts: tuple[int, int]) -> Scores:
    """Rows that hit and miss: (3, 1) is three hits, then one miss."""
    flat = [value for count in counts for value in [1.0] * count[0] + [0.0] * count[1]]
    return [[Scored({"exact": value, "f1": value}) for value in flat]]


def steps(scores: dict[RungName, Scores], primary: str = "exact") -> dict[Cause, Step]:
    n = len(next(iter(scores.values()))[0])
    return {step.cause: step for step in compare_rungs({primary: METRICS[primary]}, primary, scores, n)}


FULL: dict[RungName, Scores] = {
    "base": hits((5, 95)),
    "few-shot": hits((40, 60)),
    "adapter": hits((96, 4)),
    "merge": hits((96, 4)),
    "quantised": hits((80, 20)),
    "served": hits((80, 20)),
}


def test_a_planted_loss_is_found_at_its_step_and_nowhere_else() -> None:
    found = steps(FULL)
    outcomes = {cause: step.comparison.outcome for cause, step in found.items()}
    assert outcomes == {
        "examples": "better",
        "training": "better",
        "training against examples": "better",
        "merging": "undecided",
        "quantisation": "worse",
        "serving": "undecided",
    }
    step = found["quantisation"]
    low, high = -100 * step.comparison.high, -100 * step.comparison.low
    assert step.sentence == f"quantisation cost 16.0 points [{low:.1f}, {high:.1f}]"
    assert 0 < low < 16 < high
    assert found["training"].sentence.startswith("training gained 91.0 points [")
    assert found["merging"].sentence.startswith("merging changed nothing that 100 examples can show: +0.0 points [-")


def test_each_step_is_corrected_for_the_others() -> None:
    """Six lost rows are a finding alone (p = 0.031), and none among six steps."""
    weak = FULL | {"quantised": hits((90, 10)), "served": hits((90, 10))}
    alone = steps({"merge": weak["merge"], "quantised": weak["quantised"]})["quantisation"].comparison
    among = steps(weak)["quantisation"].comparison
    assert alone.p_value == among.p_value == pytest.approx(2 / 2**6)
    assert (alone.outcome, among.outcome) == ("worse", "undecided")
    assert among.p_adjusted > among.p_value


def test_where_the_adapter_is_missing_the_merge_stands_in_for_it() -> None:
    rest = {name: scores for name, scores in FULL.items() if name != "adapter"}
    found = steps(rest)
    assert (found["training"].after, found["training against examples"].after) == ("merge", "merge")
    assert "merging" not in found
    assert found["training"].comparison.change == pytest.approx(0.91)


@pytest.mark.parametrize(
    ("kind", "bar", "says"),
    [
        ("Q4_K_M", 0.02, "Try Q5_K_M:  cloudft quantize r1 --type Q5_K_M"),
        ("Q5_K_M", 0.02, "Try Q6_K:"),
        ("Q8_0", 0.02, "Try F16:"),
        ("Q4_K_M", 0.16, ""),
        ("Q4_K_M", 0.2, ""),
    ],
)
def test_a_finer_quantisation_is_proposed_above_the_bar(kind: str, bar: float, says: str) -> None:
    said = advice(list(steps(FULL).values()), METRICS["exact"].about, bar, kind, "r1")
    assert bool(said) == bool(says)
    assert says in said
    if said:
        assert f"{kind} costs 16.0 points, more than your bar of {100 * bar:.1f}" in said
        assert "chance" not in said


def test_a_loss_that_may_be_chance_is_called_so() -> None:
    weak = FULL | {"quantised": hits((93, 7))}
    said = advice(list(steps(weak).values()), METRICS["exact"].about, 0.02, "Q4_K_M", "r1")
    assert "costs 3.0 points" in said
    assert "chance" in said
    gained = FULL | {"quantised": hits((100, 0))}
    assert advice(list(steps(gained).values()), METRICS["exact"].about, 0.02, "Q4_K_M", "r1") == ""


@pytest.mark.parametrize(
    ("few_shot", "worth", "begins"),
    [
        (hits((40, 60)), "yes", "yes, fine-tune: 5 examples in the prompt reach 40.0%, the tuned model 96.0%"),
        (hits((95, 5)), "undecided", "perhaps no need to fine-tune: 5 examples in the prompt reach 95.0%"),
    ],
)
def test_whether_to_fine_tune_at_all(few_shot: Scores, worth: str, begins: str) -> None:
    found = list(steps(FULL | {"few-shot": few_shot}).values())
    value = sum(one.score["exact"] for one in few_shot[0]) / 100
    answer, sentence = worth_it(found, 5, METRICS["exact"].about, {"few-shot": value, "adapter": 0.96}, COST)
    assert answer == worth
    assert sentence.startswith(begins)
    assert ("612 tokens in place of 80" in sentence) == (worth != "yes")


def test_examples_that_do_better_say_no() -> None:
    found = list(steps(FULL | {"few-shot": hits((96, 4)), "adapter": hits((40, 60))}).values())
    answer, sentence = worth_it(found, 3, METRICS["exact"].about, {"few-shot": 0.96, "adapter": 0.4}, COST)
    assert answer == "no"
    assert sentence.startswith("no need to fine-tune: 3 examples in the prompt reach 96.0%")
    assert worth_it([], 3, METRICS["exact"].about, {}, COST)[0] is None


def test_a_metric_that_is_no_share_is_not_told_in_points() -> None:
    found = steps(FULL, "f1")["quantisation"]
    assert found.comparison.test == "paired bootstrap"
    assert found.sentence.startswith("quantisation cost 0.160 [0.")
    assert "points" not in found.sentence
