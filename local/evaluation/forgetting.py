"""What the fine-tune cost elsewhere: from general questions, answered before and after, to what they say. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from local.evaluation.analysis import analyse, measure
from local.evaluation.document.comparison import Caveat, Comparison
from local.evaluation.document.forgetting import Forgetting, GeneralExample, GeneralPart
from local.evaluation.document.measurement import LABELS, Estimate, Label, OutputsRef
from local.evaluation.document.outputs import OutputLine, output_bytes
from local.evaluation.pairs import as_text
from local.evaluation.statistics import FEWEST_CHANGES
from local.evaluation.tasks.base import MetricDef, Scored, ratio, share

SHOWN: Final = 10
RIGHT: Final = "right"
"""The metric of questions that a rule decides."""


@dataclass(frozen=True)
class GeneralAnswers:
    """One suite's answers. ``lines``: of the same questions in the same order; ``metric``: the name of their score;
    ``ids`` and ``parts``: of each question, by line. The rest as in ``Forgetting``."""

    suite: str
    title: str
    licence: str
    metric: str
    lines: Mapping[Label, Sequence[OutputLine]]
    ids: Sequence[str]
    parts: Sequence[str]
    sha256: str | None = None
    software: Mapping[str, str] = field(default_factory=dict)


def conclude(asked: GeneralAnswers, files: Mapping[Label, str]) -> Forgetting:
    """Measure and compare one suite. ``files``: names of the files that the answers are written to."""
    before, after = (asked.lines[label] for label in LABELS)
    metric = _metric(asked.metric, [*before, *after])
    found = analyse({asked.metric: metric}, _scores(before), _scores(after), asked.metric)
    compared, n = found.comparisons[asked.metric], len(after)
    was, now = found.before[asked.metric], found.after[asked.metric]
    # So few right answers that the test could not tell even if all of them were lost.
    empty = was.value * n < FEWEST_CHANGES and compared.outcome != "better"
    return Forgetting(
        suite=asked.suite,
        title=asked.title,
        licence=asked.licence,
        n=n,
        metric=asked.metric,
        sha256=asked.sha256,
        before=was,
        after=now,
        comparison=compared,
        parts=_parts(asked, metric),
        outcome="nothing to forget" if empty else compared.outcome,
        sentence=_sentence(n, was, now, compared, empty),
        regressions=_regressions(asked),
        outputs={label: _reference(files[label], asked.lines[label]) for label in LABELS},
        software=dict(asked.software),
        warnings=tuple(_caveats(asked, compared, n, was, now)),
    )


def _metric(name: str, lines: Sequence[OutputLine]) -> MetricDef:
    hit_or_miss = all(line.score[name] in (0, 1) for line in lines)
    return share("Questions that are answered rightly.") if hit_or_miss else ratio("The mean score of the questions.")


def _scores(lines: Sequence[OutputLine]) -> list[list[Scored]]:
    return [[Scored(line.score, line.problem) for line in lines]]


def _parts(asked: GeneralAnswers, metric: MetricDef) -> dict[str, GeneralPart]:
    found = {}
    for part in dict.fromkeys(asked.parts):
        at = [number for number, name in enumerate(asked.parts) if name == part]
        estimates = {
            label: measure({asked.metric: metric}, _scores([asked.lines[label][number] for number in at]))[asked.metric]
            for label in LABELS
        }
        found[part] = GeneralPart(n=len(at), before=estimates["before"], after=estimates["after"])
    return found


def _sentence(n: int, was: Estimate, now: Estimate, found: Comparison, empty: bool) -> str:
    interval = f"95% CI of the change {_points(found.low)} to {_points(found.high)} points"
    moved = f"{_amount(was, n)} → {_amount(now, n)} of {n} general questions"
    if empty:
        knows = f"the base answers {_amount(was, n)} of {n} general questions, the tuned model {_amount(now, n)}"
        return f"nothing to forget: {knows}"
    if found.outcome == "worse":
        return f"forgot: {moved} ({interval})"
    if found.outcome == "better":
        return f"nothing forgotten on the whole: {moved} ({interval})"
    most = f"; more than {-100 * found.low:.0f} points were not lost" if found.low < 0 else ""
    return f"no forgetting that {n} questions can show: {moved} ({interval}){most}"


def _amount(estimate: Estimate, n: int) -> str:
    return f"{estimate.hits}" if estimate.hits is not None else f"{estimate.value * n:.1f}"


def _points(change: float) -> str:
    return f"{100 * change:+.1f}"


def _regressions(asked: GeneralAnswers) -> tuple[GeneralExample, ...]:
    """Questions that lost the most, the first few."""
    lost = [
        (after.score[asked.metric] - before.score[asked.metric], number)
        for number, (before, after) in enumerate(zip(*(asked.lines[label] for label in LABELS), strict=True))
    ]
    found = []
    for _, number in sorted(one for one in lost if one[0] < 0)[:SHOWN]:
        before, after = (asked.lines[label][number] for label in LABELS)
        found.append(
            GeneralExample(
                id=asked.ids[number],
                part=asked.parts[number],
                question=as_text(after.prompt[-1].get("content", "")),
                expected=as_text(after.expected),
                before=before.answer or f"({before.error})",
                after=after.answer if after.answer is not None else f"({after.error})",
            )
        )
    return tuple(found)


def _reference(name: str, lines: Sequence[OutputLine]) -> OutputsRef:
    return OutputsRef(path=name, sha256=hashlib.sha256(output_bytes(lines)).hexdigest(), lines=len(lines))


def _caveats(asked: GeneralAnswers, found: Comparison, n: int, was: Estimate, now: Estimate) -> list[Caveat]:
    said = []
    if found.outcome == "worse":
        lost = f"{_amount(was, n)} → {_amount(now, n)} of {n}"
        said.append(Caveat(code="forgetting", text=f"The tuned model forgot ({asked.title}): {lost}."))
    for label in LABELS:
        failed = sum(line.error is not None for line in asked.lines[label])
        if failed:
            text = f"{failed} of {n} general questions failed {label} tuning, and count as wrong."
            said.append(Caveat(code="failed-requests", text=text))
    return said
