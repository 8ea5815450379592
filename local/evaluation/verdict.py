"""The plain answer, and what a reader must know before believing it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from local.evaluation.document.comparison import Caveat, Comparison, Verdict
from local.evaluation.document.measurement import Estimate, Measurement, Metric
from local.evaluation.statistics import smallest_change

LARGE_CHANGE = 0.1
"""A hold-out that can't even show a change of this size, a tenth of the rows, is called too small."""
MANY_CUT_OFF = 0.05
MOST = 1_000_000


def verdict(
    n: int,
    primary: str,
    about: Metric,
    before: Estimate,
    after: Estimate,
    comparisons: Mapping[str, Comparison],
) -> Verdict:
    """The answer by the primary metric alone, with the others that got worse."""
    found = comparisons[primary]
    worse = tuple(name for name, c in comparisons.items() if c.outcome == "worse" and name != primary)
    moved = _moved(n, primary, about, before, after)
    interval = f"95% CI of the change {_signed(about, found.low)} to {points(about, found.high)}"
    if found.outcome == "undecided":
        examples = before.of or n
        shown = f"{examples} examples" if examples != 1 else "1 example"
        sentence = f"no difference that {shown} can show: {moved} ({interval}){_needed(about, found, examples)}"
    else:
        sentence = f"{found.outcome}, {moved} ({interval})"
    if worse:
        also = "also worse" if found.outcome == "worse" else "worse"
        sentence += f"; {also}: {', '.join(worse)}"
    return Verdict(outcome=found.outcome, metric=primary, sentence=sentence, worse=worse, rows_needed=found.rows_needed)


def points(about: Metric, change: float) -> str:
    """A change with its sign: of a share in points of a hundred, of anything else as it is."""
    return _signed(about, change) + (" points" if about.unit == "share" else "")


def _signed(about: Metric, change: float) -> str:
    return f"{100 * change:+.1f}" if about.unit == "share" else f"{change:+.3f}"


def _moved(n: int, name: str, about: Metric, before: Estimate, after: Estimate) -> str:
    if before.hits is not None and after.hits is not None:
        return f"{before.hits} → {after.hits} of {after.of} by {name}"
    if about.unit == "share":
        return f"{name} {before.value:.1%} → {after.value:.1%} on {n}"
    return f"{name} {before.value:.3f} → {after.value:.3f} on {n}"


def _needed(about: Metric, found: Comparison, n: int) -> str:
    if found.rows_needed is None:
        # Where no row changed at all, it is known how large a change of a share would have shown.
        still = about.unit == "share" and found.gained == found.lost == 0
        least = smallest_change(n) if still else None
        return f"; a change of {100 * least:.0f} points would have shown" if least else ""
    if found.rows_needed > MOST:
        return "; more than a million would be needed"
    return f"; about {round_up(found.rows_needed)} would"


def round_up(rows: int) -> int:
    """To two digits: the formula promises no more."""
    step = int(10 ** max(0, len(str(rows)) - 2))
    return -(-rows // step) * step


def caveats(
    n: int,
    held_out: int,
    found: Verdict,
    metrics: Mapping[str, Metric],
    comparisons: Mapping[str, Comparison],
    sides: Mapping[str, Measurement],
    cut_off: Mapping[str, int],
) -> Iterable[Caveat]:
    """``cut_off``: answers of each side that ended at the longest length."""
    if found.outcome == "worse":
        yield Caveat(code="worse", text=f"The tuned model is {found.sentence.partition(';')[0]}.")
    for name in found.worse:
        change = points(metrics[name], comparisons[name].change)
        yield Caveat(code="regression", text=f"{name} got worse beyond chance: {change}.")
    yield from _about_rows(n, held_out)
    who = asked_whom(sides)
    for label, side in sides.items():
        requests = side.usage.requests
        if side.usage.failed:
            yield Caveat(
                code="failed-requests",
                text=f"{side.usage.failed} of {requests} requests failed {who[label]}, and count as wrong.",
            )
        if cut_off[label] > MANY_CUT_OFF * requests:
            yield Caveat(
                code="cut-off",
                text=f"{cut_off[label]} of {requests} answers {who[label]} ended at task.max_tokens, unfinished.",
            )
    if len({side.model.engine for side in sides.values()}) > 1:
        yield Caveat(code="engines-differ", text="The two models were served by different engines.")
    if sides["before"].model.template_source == "given":
        yield Caveat(
            code="template-given",
            text="The base brings no chat template: it was asked with the one that the run was trained with.",
        )


def asked_whom(sides: Mapping[str, Measurement]) -> dict[str, str]:
    """The two sides in words; in the place of the base there may be another model, which nobody tuned."""
    other = sides["before"].model
    if other.url is None:
        return {"before": "before tuning", "after": "after tuning"}
    return {"before": f"at {other.name}", "after": "at the tuned model"}


def _about_rows(n: int, held_out: int) -> Iterable[Caveat]:
    if n < held_out:
        yield Caveat(code="partial", text=f"Only the first {n} of {held_out} held-out rows were used.")
    least = smallest_change(n)
    if least is None:
        rows = f"{n} rows" if n != 1 else "1 row"
        text = (
            f"The hold-out is too small: {rows} cannot show any change, not even one of all rows. The intervals of so "
            "few rows mean little too."
        )
    elif least > LARGE_CHANGE:
        text = f"The hold-out is small: {n} rows show only changes of about {100 * least:.0f} points or more."
    else:
        return
    yield Caveat(code="small-holdout", text=text)
