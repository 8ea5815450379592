"""The evaluation of a run, with the rows of the hold-out that are worth reading."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

from cloudft.errors import NotFound
from local.evaluation.document.eval_json import read_document
from local.evaluation.document.outputs import OutputLine, read_outputs
from local.project import RunFolder
from local.report.further import further
from local.report.model import Evaluated, Example, Examples
from local.report.words import clip

SHOWN: Final = 5
AGAINST: Final = "eval-against-*.json"
NOTHING: Final = "(nothing: the request failed)"


@dataclass(frozen=True)
class _Pair:
    """One row, before and after, over all repeats. Scores are means over them."""

    before: Sequence[OutputLine]
    after: Sequence[OutputLine]
    metric: str

    @property
    def was(self) -> tuple[float, float]:
        return self._score(self.before)

    @property
    def now(self) -> tuple[float, float]:
        return self._score(self.after)

    @property
    def change(self) -> tuple[float, float]:
        """By the metric that decides; where that is the same, by all others together."""
        return self.now[0] - self.was[0], self.now[1] - self.was[1]

    def _score(self, lines: Sequence[OutputLine]) -> tuple[float, float]:
        """The metric that decides (all together, where a row has no part of it), and the mean of all."""
        mean = fmean(value for line in lines for value in line.score.values()) if lines[0].score else 0.0
        own = [line.score[self.metric] for line in lines if self.metric in line.score]
        return (fmean(own) if own else mean), mean

    def example(self) -> Example:
        """With the repeat that was worst after tuning, so that what is shown is what the row is listed for."""
        pick = min(range(len(self.after)), key=lambda i: self._score(self.after[i : i + 1]))
        after, before = self.after[pick], self.before[min(pick, len(self.before) - 1)]
        return Example(
            row=after.row,
            question=clip(_question(after)),
            expected=clip("(no call)" if after.expected == [] else _text(after.expected)),
            before=clip(_answer(before)),
            after=clip(_answer(after)),
            note=clip(after.error or after.problem or _earlier(before.error or before.problem), 200),
        )


def read_evaluated(run: RunFolder) -> Evaluated | None:
    """The evaluation; None if the run was not evaluated.

    Raises:
        IntegrityError: it is damaged, or the answers are not those that it was made from.
    """
    try:
        document = read_document(run)
    except NotFound:
        return None
    before = _by_row(read_outputs(run, document.sides["before"].outputs))
    after = _by_row(read_outputs(run, document.sides["after"].outputs))
    pairs = [_Pair(before[row], after[row], document.primary) for row in after if row in before]
    return Evaluated(
        document=document,
        improved=_examples(p for p in sorted(pairs, key=lambda p: p.change, reverse=True) if p.change[0] > 0),
        regressed=_examples(p for p in sorted(pairs, key=lambda p: p.change) if p.change[0] < 0),
        extras=further(document, [read_document(run, path) for path in sorted(run.root.glob(AGAINST))]),
        failing=_examples(p for p in sorted(pairs, key=lambda p: p.now) if p.now[0] < 1 and p.change[0] >= 0),
    )


def _by_row(lines: Iterable[OutputLine]) -> dict[int, list[OutputLine]]:
    found: dict[int, list[OutputLine]] = defaultdict(list)
    for line in lines:
        found[line.row].append(line)
    return dict(found)


def _examples(pairs: Iterable[_Pair]) -> Examples:
    found = list(pairs)
    return Examples(len(found), tuple(pair.example() for pair in found[:SHOWN]))


def _question(line: OutputLine) -> str:
    """The last thing that was asked."""
    return _text(line.prompt[-1].get("content", "")) if line.prompt else ""


def _earlier(problem: str) -> str:
    return f"before, {problem}" if problem else ""


def _answer(line: OutputLine) -> str:
    if line.tool_calls:
        calls = "\n".join(_text(call) for call in line.tool_calls)
        return f"{line.answer}\n{calls}" if line.answer else calls
    return NOTHING if line.answer is None else line.answer


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
