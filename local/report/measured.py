"""The evaluation as the words, rows and pictures that the templates lay out; the same for HTML and Markdown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from local.evaluation.document.comparison import Comparison
from local.evaluation.document.eval_json import Document
from local.evaluation.document.ladder import Ladder, RungName
from local.evaluation.document.measurement import (
    FAILED,
    LABELS,
    OTHER,
    Confusion,
    Estimate,
    Metric,
    ModelUsed,
    Tally,
    Usage,
)
from local.report import words
from local.report.charts import Scale, Whisker, scale_of, whisker
from local.report.model import Evaluated, Table

VERDICTS = {
    "better": "Better",
    "worse": "Worse",
    "undecided": "No difference shown",
    "unmeasured": "Not measured",
}
TESTS = {"mcnemar": "McNemar", "paired bootstrap": "paired bootstrap"}
WIDE = 52
RUNGS: dict[RungName, str] = {
    "base": "base",
    "few-shot": "base with examples",
    "adapter": "adapter",
    "merge": "merged",
    "quantised": "quantised",
    "served": "served",
}
STEPS = "What each step gained or cost"
PARTS = {"keys": "Keys of the answers", "labels": "Labels", "tools": "Tools"}


@dataclass(frozen=True)
class WhiskerRow:
    """One metric of a picture; ``label`` says in words what the picture shows."""

    name: str
    part: bool
    label: str
    was: str
    now: str
    before: Whisker
    after: Whisker


@dataclass(frozen=True)
class Group:
    """Metrics of one unit, on one axis."""

    scale: Scale
    rows: tuple[WhiskerRow, ...]


def value(metric: Metric, number: float) -> str:
    """A value in its unit: a share of rows in per cent, a ratio such as F1 from 0 to 1, any other as it is."""
    if metric.unit == "share":
        return words.percent(number)
    return f"{number:.3f}" if metric.unit == "ratio" else words.number(number)


def change(metric: Metric, number: float) -> str:
    if metric.unit == "share":
        return words.points(number)
    return (f"{number:+.3f}" if metric.unit == "ratio" else f"{number:+.4g}").replace("-", "−")


def change_range(metric: Metric, found: Comparison) -> str:
    return _change_range(metric, found.low, found.high)


def _change_range(metric: Metric, low: float, high: float) -> str:
    """The interval of a change, its unit named once."""
    return f"{change(metric, low).removesuffix(' points')} to {change(metric, high)}"


def test_words(found: Comparison) -> str:
    return f"{TESTS[found.test]}, {_p(found.p_value)}" + (
        f", corrected {_p(found.p_adjusted)}" if found.p_adjusted != found.p_value else ""
    )


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def groups(evaluated: Evaluated) -> list[Group]:
    """The metrics by unit, each unit on an axis of its own, the one of the metric that decides first."""
    document = evaluated.document
    primary = document.metrics[document.primary].unit
    found = []
    for unit in sorted({metric.unit for metric in document.metrics.values()}, key=lambda unit: (unit != primary, unit)):
        together = [name for name, metric in document.metrics.items() if metric.unit == unit]
        estimates = [side.metrics[name] for name in together for side in (evaluated.before, evaluated.after)]
        scale = scale_of(estimates, unit)
        found.append(Group(scale, tuple(_whisker_row(name, evaluated, scale) for name in together)))
    return found


def _whisker_row(name: str, evaluated: Evaluated, scale: Scale) -> WhiskerRow:
    metric = evaluated.document.metrics[name]
    before, after = evaluated.before.metrics[name], evaluated.after.metrics[name]
    return WhiskerRow(
        name=name,
        part=_parent(name) in evaluated.document.metrics,
        label=f"{name}: before {ranged(metric, before)}, after {ranged(metric, after)}",
        was=value(metric, before.value),
        now=value(metric, after.value),
        before=whisker(scale, before),
        after=whisker(scale, after),
    )


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def ranged(metric: Metric, estimate: Estimate) -> str:
    low, high = value(metric, estimate.low), value(metric, estimate.high)
    return f"{value(metric, estimate.value)} (95% interval {low} to {high})"


def before_after(document: Document) -> Table:
    """Every metric with its intervals, its change and what the paired test says of it."""
    before, after = (document.sides[label] for label in LABELS)
    rows = []
    for name, metric in document.metrics.items():
        found = document.comparisons[name]
        rows.append(
            (
                name,
                interval(metric, before.metrics[name]),
                interval(metric, after.metrics[name]),
                f"{change(metric, found.change)} ({change_range(metric, found)})",
                f"{VERDICTS[found.outcome].lower()}; {test_words(found)}",
            )
        )
    # In the place of the base there may be another model, which nobody tuned.
    names = ("before", "after") if before.model.url is None else (before.model.name, "tuned")
    return Table("Before and after", ("metric", *names, "change", "verdict"), tuple(rows))


def interval(metric: Metric, estimate: Estimate) -> str:
    """A value and its interval, for a table that says that it is one."""
    return f"{value(metric, estimate.value)} ({value(metric, estimate.low)} to {value(metric, estimate.high)})"


def matrix_tables(evaluated: Evaluated) -> list[Table]:
    """The confusion matrices after tuning as plain tables."""
    return [
        Table(
            f"{found['name']}, after: rows are what was expected, columns what was answered",
            ("expected", *found["after"]["columns"]),
            tuple((row["name"], *(str(cell["count"]) for cell in row["cells"])) for row in found["after"]["rows"]),
        )
        for found in confusions(evaluated)
    ]


def definitions(document: Document) -> list[tuple[str, str]]:
    return [(name, metric.definition) for name, metric in document.metrics.items() if metric.definition]


def tallies(evaluated: Evaluated) -> list[Table]:
    """Precision, recall and F1 of every part, before and after."""
    found = []
    for kind, after in evaluated.after.tables.items():
        before = evaluated.before.tables.get(kind, {})
        rows = tuple(_tally_row(name, before.get(name), tally) for name, tally in after.items())
        columns = (kind.removesuffix("s"), "expected", "precision", "recall", "F1")
        found.append(Table(f"{PARTS.get(kind, kind.capitalize())}, before → after", columns, rows))
    return found


def _tally_row(name: str, before: Tally | None, after: Tally) -> tuple[str, ...]:
    def both(attribute: str) -> str:
        was = words.percent(getattr(before, attribute)) if before else "–"
        return f"{was} → {words.percent(getattr(after, attribute))}"

    return (name, str(after.expected), both("precision"), both("recall"), both("f1"))


def confusions(evaluated: Evaluated) -> list[dict[str, Any]]:
    """Matrices before and after, with the same columns; one of no answer at all is left out where it is empty."""
    found = []
    for name, after in evaluated.after.confusion.items():
        before = evaluated.before.confusion.get(name, after)
        kept = [i for i, column in enumerate(after.columns) if column not in (OTHER, FAILED) or _used(i, before, after)]
        # Two that are this wide do not stand side by side on a page.
        wide = sum(len(after.columns[i]) + 3 for i in kept) > WIDE
        found.append({"name": name, "before": _matrix(before, kept), "after": _matrix(after, kept), "wide": wide})
    return found


def _used(column: int, *matrices: Confusion) -> bool:
    return any(row[column] for matrix in matrices for row in matrix.counts)


def _matrix(confusion: Confusion, kept: list[int]) -> dict[str, Any]:
    rows = []
    for name, counts in zip(confusion.rows, confusion.counts, strict=True):
        total = sum(counts) or 1
        cells = [
            {"count": counts[i], "share": round(counts[i] / total, 3), "right": confusion.columns[i] == name}
            for i in kept
        ]
        rows.append({"name": name, "cells": cells})
    return {"columns": [confusion.columns[i] for i in kept], "rows": rows}


def conditions(document: Document) -> list[str]:
    """What a reader needs to judge the numbers, one sentence each."""
    decoding = document.decoding
    how = "greedily" if decoding.temperature == 0 else f"at temperature {decoding.temperature:g}"
    seeds = ", ".join(map(str, decoding.seeds))
    asked = "once" if len(decoding.seeds) == 1 else f"{len(decoding.seeds)} times, with seeds {seeds}"
    context = f", in a context of {decoding.context} tokens" if decoding.context else ""
    more = "".join(f", {name} {words.shown(v)}" for name, v in decoding.parameters.items())
    software = ", ".join(f"{name} {version}" for name, version in document.software.items())
    return [
        f"Both got the same messages in the same order, each row {asked}, decoded {how}, at most "
        f"{decoding.max_tokens} tokens an answer{context}{more}.",
        *_repeats(document),
        "Each was asked through the chat template in its own file, unless the table says otherwise.",
        "A request that failed counts as wrong everywhere; none was skipped.",
        f"Software: {software}.",
    ]


def _repeats(document: Document) -> list[str]:
    """How much chance in the answers alone moves the metric that decides."""
    name = document.primary
    spreads = [document.sides[label].metrics[name].spread for label in LABELS]
    if None in spreads:
        return []
    before, after = (value(document.metrics[name], spread or 0.0) for spread in spreads)
    return [f"From repeat to repeat {name} has a standard deviation of {before} before and {after} after."]


def model_tables(evaluated: Evaluated) -> list[Table]:
    sides = {"before": evaluated.before, "after": evaluated.after}
    rows = [
        ("model", *(side.model.title for side in sides.values())),
        ("file", *(side.model.file or side.model.url or "–" for side in sides.values())),
        ("sha256", *(side.model.sha256 or "–" for side in sides.values())),
        ("served by", *(side.model.engine for side in sides.values())),
        ("chat template", *(_template(side.model) for side in sides.values())),
        ("requests failed", *(f"{side.usage.failed} of {side.usage.requests}" for side in sides.values())),
        ("tokens in, out", *(_tokens(side.usage) for side in sides.values())),
        ("median seconds an answer", *(_latency(side.usage.latency_median) for side in sides.values())),
        ("95th percentile", *(_latency(side.usage.latency_p95) for side in sides.values())),
    ]
    return [Table("The two models, as they were asked", ("", "before", "after"), tuple(rows))]


def _template(model: ModelUsed) -> str:
    digest = f", sha256 {model.template_sha256[:12]}…" if model.template_sha256 else ""
    source = {"own": "its own", "given": "the one that was trained with, given to it"}
    return source.get(model.template_source or "", "the server does not tell") + digest


def _tokens(usage: Usage) -> str:
    return f"{words.number(usage.prompt_tokens)}, {words.number(usage.completion_tokens)}"


def _latency(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def caveats(document: Document) -> list[str]:
    """All that calls the numbers, or the model, in question, whichever section it comes from."""
    found = [*document.warnings]
    found += document.ladder.warnings if document.ladder else ()
    found += [caveat for suite in document.forgetting for caveat in suite.warnings]
    found += document.judging.warnings if document.judging else ()
    return [caveat.text for caveat in found]


def ladder_rows(ladder: Ladder, metric: Metric) -> list[dict[str, Any]]:
    """Every rung with its estimate on one axis."""
    estimates = [rung.measurement.metrics[ladder.metric] for rung in ladder.rungs]
    scale = scale_of(estimates, metric.unit)
    return [
        {
            "name": RUNGS[rung.name],
            "title": rung.title,
            "scale": scale,
            "mark": whisker(scale, estimate),
            "now": value(metric, estimate.value),
            "range": f"{value(metric, estimate.low)} to {value(metric, estimate.high)}",
            "label": f"{RUNGS[rung.name]} ({rung.title}): {ranged(metric, estimate)}",
            "note": rung.note,
        }
        for rung, estimate in zip(ladder.rungs, estimates, strict=True)
    ]


def ladder_tables(ladder: Ladder, metric: Metric) -> list[Table]:
    """The rungs, the steps between them and what each changed, and what could not be measured."""
    steps = tuple(
        (
            f"{RUNGS[step.before]} → {RUNGS[step.after]}",
            words.sentence(step.sentence),
            _p(step.comparison.p_adjusted).removeprefix("p ").removeprefix("= "),
        )
        for step in ladder.steps
    )
    found = [Table(STEPS, ("step", "what it did, with its 95% interval", "p, corrected"), steps)]
    if ladder.missing:
        rows = tuple((RUNGS[name], why) for name, why in ladder.missing.items())
        found.append(Table("Rungs that were not measured", ("rung", "why"), rows))
    return found


def rungs_table(ladder: Ladder, metric: Metric) -> Table:
    """What the picture shows, for a file without pictures."""
    rows = tuple(
        (
            RUNGS[rung.name],
            rung.title,
            interval(metric, rung.measurement.metrics[ladder.metric]),
            rung.note,
        )
        for rung in ladder.rungs
    )
    caption = f"After each step: {ladder.metric} of {ladder.n} rows, with 95% intervals"
    return Table(caption, ("rung", "what was asked", ladder.metric, "note"), rows)


def ladder_words(ladder: Ladder) -> list[str]:
    """What follows from the ladder."""
    return [words.sentence(ladder.sentence), *([ladder.advice] if ladder.advice else [])]
