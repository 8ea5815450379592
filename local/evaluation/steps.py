"""What each step of the ladder gains or costs, in numbers and in words. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple

from local.evaluation.analysis import Scores, analyse
from local.evaluation.document.comparison import Comparison, Outcome
from local.evaluation.document.ladder import Cause, RungName, Step
from local.evaluation.document.measurement import Metric
from local.evaluation.statistics import ALPHA, holm
from local.evaluation.tasks.base import MetricDef
from local.quantizing.divergence import finer

# What differs between two rungs. Where the adapter alone cannot be measured, the merge stands in for it; where the
# served file is of 16 bit, for the quantised one.
STEPS: Final[tuple[tuple[Cause, tuple[RungName, ...], tuple[RungName, ...]], ...]] = (
    ("examples", ("base",), ("few-shot",)),
    ("training", ("base",), ("adapter", "merge")),
    ("training against examples", ("few-shot",), ("adapter", "merge")),
    ("merging", ("adapter",), ("merge",)),
    ("quantisation", ("merge",), ("quantised",)),
    ("serving", ("quantised", "merge"), ("served",)),
)
_SUBJECTS: Final[Mapping[Cause, str]] = {
    "examples": "examples in the prompt",
    "training against examples": "training, against examples in the prompt,",
}
Worth = Literal["yes", "no", "undecided"]


class Cost(NamedTuple):
    """Tokens of the average prompt."""

    examples: float
    tuned: float


def compare_rungs(
    metrics: Mapping[str, MetricDef], primary: str, scores: Mapping[RungName, Scores], n: int
) -> tuple[Step, ...]:
    """All steps between rungs that were measured, corrected for their number."""
    found: list[tuple[Cause, RungName, RungName, Comparison]] = []
    for cause, befores, afters in STEPS:
        before, after = (next((name for name in names if name in scores), None) for names in (befores, afters))
        if before is not None and after is not None:
            compared = analyse(metrics, scores[before], scores[after], primary).comparisons[primary]
            found.append((cause, before, after, compared))
    adjusted = holm({cause: compared.p_value for cause, _, _, compared in found})
    about = metrics[primary].about
    return tuple(
        Step(cause=cause, before=before, after=after, comparison=made, sentence=sentence(cause, made, about, n))
        for cause, before, after, compared in found
        for made in [_decided(compared, adjusted[cause])]
    )


def _decided(found: Comparison, p: float) -> Comparison:
    shown = p < ALPHA and found.change != 0
    outcome: Outcome = ("better" if found.change > 0 else "worse") if shown else "undecided"
    return found.model_copy(update={"p_adjusted": p, "outcome": outcome})


def amount(about: Metric, change: float, sign: bool = False) -> str:
    """A change in words: of a share in points of a hundred, of anything else as it is."""
    return f"{100 * change:{'+' if sign else ''}.1f}" if about.unit == "share" else f"{change:{'+' if sign else ''}.3f}"


def sentence(cause: Cause, found: Comparison, about: Metric, n: int) -> str:
    """Such as "quantisation cost 2.1 points [0.3, 4.0]"."""
    subject = _SUBJECTS.get(cause, cause)
    points = " points" if about.unit == "share" else ""
    if found.outcome == "undecided":
        interval = f"[{amount(about, found.low, True)}, {amount(about, found.high, True)}]"
        change = f"{amount(about, found.change, True)}{points} {interval}"
        return f"{subject} changed nothing that {n} examples can show: {change}"
    verb, sign = ("gained", 1) if found.outcome == "better" else ("cost", -1)
    low, high = sorted((sign * found.low, sign * found.high))
    interval = f"[{amount(about, low)}, {amount(about, high)}]"
    return f"{subject} {verb} {amount(about, sign * found.change)}{points} {interval}"


def advice(steps: Sequence[Step], about: Metric, bar: float, kind: str, run_id: str) -> str:
    """What to do if quantisation costs more than the user's bar; empty if it does not.

    Args:
        bar: the most that it may cost, in the metric's unit.
        kind: the type of the quantised file.
    """
    step = next((step for step in steps if step.cause == "quantisation"), None)
    if step is None or -step.comparison.change <= bar:
        return ""
    points = " points" if about.unit == "share" else ""
    cost = f"{kind} costs {amount(about, -step.comparison.change)}{points}, more than your bar of {amount(about, bar)}"
    sure = "" if step.comparison.outcome == "worse" else ", though so few examples cannot tell this from chance"
    better = finer(kind)
    if better is None:
        return f"{cost}{sure}; there is no finer quantisation to propose."
    return f"{cost}{sure}. Try {better}:  cloudft quantize {run_id} --type {better}"


def worth_it(
    steps: Sequence[Step], k: int, about: Metric, values: Mapping[RungName, float], cost: Cost
) -> tuple[Worth | None, str]:
    """Whether to fine-tune at all, against examples in the prompt, which cost nothing but their tokens."""
    step = next((step for step in steps if step.cause == "training against examples"), None)
    if step is None:
        return None, "whether examples in the prompt would have done as well is not known: that rung is missing"
    few, tuned = (_level(about, values[name]) for name in (step.before, step.after))
    shown = f"{k} examples in the prompt reach {few}, the tuned model {tuned}"
    price = f"each request then has about {cost.examples:.0f} tokens in place of {cost.tuned:.0f}"
    if step.comparison.outcome == "better":
        return "yes", f"yes, fine-tune: {shown}"
    if step.comparison.outcome == "worse":
        return "no", f"no need to fine-tune: {shown}; {price}"
    return "undecided", f"perhaps no need to fine-tune: {shown}, a difference that chance can explain; {price}"


def _level(about: Metric, value: float) -> str:
    return f"{value:.1%}" if about.unit == "share" else f"{value:.3f}"
