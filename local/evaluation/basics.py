"""The suite "basics": the general set that comes with cloudft, asked like any conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from local.evaluation.document.measurement import Label
from local.evaluation.endpoint import Fim, Reply
from local.evaluation.endpoint import Question as Request
from local.evaluation.forgetting import RIGHT, GeneralAnswers
from local.evaluation.general import LICENCE, Item, load_items
from local.evaluation.measuring import Question, Target
from local.evaluation.results import Ground
from local.evaluation.task import TextTask
from local.evaluation.tasks.base import FAILED_REQUEST, MetricDef, Row, Scored, share
from local.progress import Progress

BASICS: Final = "basics"
TITLE: Final = "arithmetic, facts, reading, instructions, formatting"
MAX_TOKENS: Final = 128


class GeneralScorer:
    """Keeps to ``tasks.base.Scorer``. A row's ``number`` is that of its item, from 1."""

    primary = RIGHT
    metrics: Mapping[str, MetricDef] = {RIGHT: share("The answer keeps to the rules of its question.")}
    tables: Mapping[str, tuple[str, ...]] = {}
    matrices: Mapping[str, tuple[str, ...]] = {}

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = items

    def rows(self) -> list[Row]:
        return [
            Row(number, ({"role": "user", "content": item.question},), item.expected, item.expected)
            for number, item in enumerate(self._items, start=1)
        ]

    def expect(self, text: str) -> str:
        return text

    def question(self, row: Row, fim: Fim | None) -> Request:
        return Request(row.prompt, MAX_TOKENS)

    def score(self, reply: Reply | None, row: Row) -> Scored:
        hit = self._items[row.number - 1].right(reply.text if reply else None)
        return Scored({RIGHT: float(hit)}, "" if hit else "not as asked" if reply else FAILED_REQUEST)


def ask_basics(ground: Ground, targets: Mapping[Label, Target], progress: Progress) -> GeneralAnswers:
    """Ask both models the whole set."""
    items, sha256 = load_items()
    scorer = GeneralScorer(items)
    question = Question(TextTask(max_tokens=MAX_TOKENS), scorer, scorer.rows())
    lines = {label: ground.measure(target, progress, question).lines for label, target in targets.items()}
    return GeneralAnswers(
        suite=BASICS,
        title=TITLE,
        licence=LICENCE,
        metric=RIGHT,
        lines=lines,
        ids=[item.id for item in items],
        parts=[item.part for item in items],
        sha256=sha256,
    )
