"""``text``: an answer is free text, compared with the reference that the hold-out has."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cloudft.errors import EnvironmentProblem
from local.evaluation.endpoint import Fim, Question, Reply
from local.evaluation.task_config import TextMetric
from local.evaluation.tasks.base import FAILED_REQUEST, MetricDef, Row, Scored, ratio, share

EXACT_MATCH, NORMALIZED_MATCH, TOKEN_F1, BLEU = "exact_match", "normalized_match", "token_f1", "bleu"


class TextScorer:
    """Keeps to ``base.Scorer``. ``metrics``: further ones, by libraries.

    Raises:
        EnvironmentProblem: a library is not installed.
    """

    primary = TOKEN_F1

    def __init__(self, metrics: Sequence[TextMetric] = (), max_tokens: int = 256) -> None:
        self._max_tokens = max_tokens
        self._means: dict[str, Callable[[str, str], float]] = {
            name: _REFERENCE[name]() for name in metrics if name != BLEU
        }
        self._bleu = _Bleu() if BLEU in metrics else None
        self.metrics: Mapping[str, MetricDef] = {
            EXACT_MATCH: share("The answer is the reference, but for white space at its ends."),
            NORMALIZED_MATCH: share("The same without regard to case, punctuation and white space."),
            TOKEN_F1: ratio("F1 of the words that answer and reference share, without case and punctuation."),
            **{name: ratio(_DEFINITIONS[name]) for name in self._means},
        }
        if self._bleu:
            self.metrics = {**self.metrics, BLEU: ratio(_DEFINITIONS[BLEU], self._bleu.value)}
        self.tables: Mapping[str, tuple[str, ...]] = {}
        self.matrices: Mapping[str, tuple[str, ...]] = {}

    def expect(self, text: str) -> str:
        if not text.strip():
            raise ValueError("the expected answer is empty")
        return text

    def question(self, row: Row, fim: Fim | None) -> Question:
        return Question(row.prompt, self._max_tokens)

    def score(self, reply: Reply | None, row: Row) -> Scored:
        answer, reference = reply.text if reply else "", str(row.expected)
        exact = reply is not None and answer.strip() == reference.strip()
        score = {
            EXACT_MATCH: float(exact),
            NORMALIZED_MATCH: float(reply is not None and words(answer) == words(reference)),
            TOKEN_F1: token_f1(answer, reference) if reply else 0.0,
            **{name: rate(answer, reference) if reply else 0.0 for name, rate in self._means.items()},
        }
        return Scored(
            score=score,
            problem=FAILED_REQUEST if reply is None else "",
            pooled={BLEU: self._bleu.parts(answer, reference)} if self._bleu else {},
        )


def words(text: str) -> list[str]:
    """The words of a text in any script: compatible forms unified, case folded, punctuation taken away."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(" " if unicodedata.category(c)[0] == "P" else c for c in folded).split()


def token_f1(answer: str, reference: str) -> float:
    """F1 of two bags of words; two texts without any word are alike."""
    said, wanted = Counter(words(answer)), Counter(words(reference))
    if not said and not wanted:
        return 1.0
    return 2 * (said & wanted).total() / (said.total() + wanted.total())


def _rouge(name: str) -> Callable[[], Callable[[str, str], float]]:
    def make() -> Callable[[str, str], float]:
        try:
            from rouge_score.rouge_scorer import RougeScorer
        except ImportError as exc:
            raise _missing("rouge-score") from exc
        scorer = RougeScorer([name])
        return lambda answer, reference: float(scorer.score(reference, answer)[name].fmeasure)

    return make


def _chrf() -> Callable[[str, str], float]:
    try:
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as exc:
        raise _missing("sacrebleu") from exc
    scorer = CHRF()
    return lambda answer, reference: float(scorer.sentence_score(answer, [reference]).score) / 100


class _Bleu:
    """Corpus BLEU from what each row adds: matches and totals of 1- to 4-grams, and the two lengths."""

    ORDER = 4

    def __init__(self) -> None:
        try:
            from sacrebleu.metrics.bleu import BLEU as Metric
        except ImportError as exc:
            raise _missing("sacrebleu") from exc
        self._metric = Metric(effective_order=True)
        self._corpus: Any = Metric()

    def parts(self, answer: str, reference: str) -> tuple[float, ...]:
        found = self._metric.sentence_score(answer, [reference])
        return tuple(map(float, (*found.counts, *found.totals, found.sys_len, found.ref_len)))

    def value(self, sums: Any) -> Any:
        import numpy as np

        flat = np.asarray(sums).reshape(-1, 2 * self.ORDER + 2)
        return np.array([self._one(row) for row in flat.tolist()]).reshape(np.shape(sums)[:-1])

    def _one(self, row: list[float]) -> float:
        counts, totals = row[: self.ORDER], row[self.ORDER : 2 * self.ORDER]
        if math.isclose(sum(totals), 0):
            return 0.0
        lengths = round(row[-2]), round(row[-1])  # floats here, and the library insists on whole numbers
        found = self._corpus.compute_bleu(counts, totals, *lengths, smooth_method="exp")
        return float(found.score) / 100


def _missing(package: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"task.metrics needs {package}, which this Python does not have",
        effect="nothing was measured",
        hint="install what is missing:  pip install 'cloudft[text]'",
    )


_REFERENCE: dict[str, Callable[[], Callable[[str, str], float]]] = {
    "rouge1": _rouge("rouge1"),
    "rouge2": _rouge("rouge2"),
    "rougeL": _rouge("rougeL"),
    "chrf": _chrf,
}
_DEFINITIONS = {
    "rouge1": "ROUGE-1, F-measure, by rouge-score; knows words of a-z and digits only.",
    "rouge2": "ROUGE-2, F-measure, by rouge-score; knows words of a-z and digits only.",
    "rougeL": "ROUGE-L, F-measure, by rouge-score; knows words of a-z and digits only.",
    "chrf": "chrF2 of each row by sacrebleu, from 0 to 1; the mean over rows.",
    BLEU: "BLEU over all rows together by sacrebleu, from 0 to 1.",
}
