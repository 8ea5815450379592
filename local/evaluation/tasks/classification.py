"""``classification``: an answer is one of a few labels, alone or in a JSON object beside a rationale.

An answer must have the form that its row expects: the label and nothing but white space around it, or one JSON
object. An answer that is none of the labels is a column of its own in the confusion matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.json_values import parse_object
from local.evaluation.document.measurement import FAILED, OTHER
from local.evaluation.endpoint import Fim, Question, Reply
from local.evaluation.tasks.base import FAILED_REQUEST, Count, MetricDef, Row, Scored, macro_f1, ratio, share

ACCURACY, MACRO_F1, VALID, RATIONALE = "accuracy", "macro_f1", "valid", "rationale"


class ClassificationScorer:
    """Keeps to ``base.Scorer``. ``labels``: in the order in which to show them."""

    primary = ACCURACY

    def __init__(
        self,
        labels: Sequence[str],
        label_key: str = "label",
        rationale_key: str = "rationale",
        max_tokens: int = 256,
    ) -> None:
        self.labels = tuple(labels)
        self._label_key, self._rationale_key, self._max_tokens = label_key, rationale_key, max_tokens
        self.metrics: Mapping[str, MetricDef] = {
            ACCURACY: share("The label is the expected one."),
            MACRO_F1: ratio("The mean of the labels' F1, each label with the same weight.", macro_f1),
            VALID: share("The answer is one of the labels, in the form that is expected."),
            RATIONALE: share("The answer gives a rationale, of the rows whose expected answer has one."),
        }
        self.tables = {"labels": self.labels}
        self.matrices = {"label": self.labels}

    def expect(self, text: str) -> str | dict[str, Any]:
        """The label, or the object with the label."""
        parsed, _ = parse_object(text)
        label = text.strip() if parsed is None else parsed.get(self._label_key)
        if label not in self.labels:
            what = f"has no {self._label_key!r}" if label is None else f"is {label!r}"
            raise ValueError(f"the expected answer {what}, which is none of the labels {', '.join(self.labels)}")
        return text.strip() if parsed is None else parsed

    def question(self, row: Row, fim: Fim | None) -> Question:
        return Question(row.prompt, self._max_tokens)

    def score(self, reply: Reply | None, row: Row) -> Scored:
        if reply is None:
            return self._scored(None, False, row.expected, FAILED_REQUEST, FAILED)
        label, reason, problem = self._read(reply.text, as_object=isinstance(row.expected, dict))
        return self._scored(label, reason, row.expected, problem, OTHER)

    def _read(self, text: str, as_object: bool) -> tuple[str | None, bool, str]:
        """The label, None if it is none of them; whether there is a rationale; and what is wrong."""
        reason = False
        label: Any = text.strip()
        if as_object:
            parsed, problem = parse_object(text)
            if parsed is None:
                return None, False, problem
            label, rationale = parsed.get(self._label_key), parsed.get(self._rationale_key)
            reason = isinstance(rationale, str) and bool(rationale.strip())
        if isinstance(label, str) and label in self.labels:
            return label, reason, ""
        return None, reason, f"none of the labels: {str(label)[:80]!r}"

    def _scored(self, label: str | None, reason: bool, expected: Any, problem: str, nothing: str) -> Scored:
        wanted = expected[self._label_key] if isinstance(expected, dict) else expected
        hit = label == wanted
        score = {ACCURACY: float(hit), VALID: float(label is not None)}
        if isinstance(expected, dict) and expected.get(self._rationale_key):
            score[RATIONALE] = float(reason)
        tallies: dict[str, Count] = {
            name: (int(name == wanted), int(name == label), int(hit)) for name in {wanted, label} if name is not None
        }
        flat = [count for name in self.labels for count in tallies.get(name, (0, 0, 0))]
        return Scored(
            score=score,
            problem=problem or ("" if hit else f"{label}, not {wanted}"),
            pooled={MACRO_F1: tuple(map(float, flat))},
            tallies={"labels": tallies},
            pairs={"label": (wanted, label or nothing)},
        )


def labels_in(texts: Sequence[str], label_key: str) -> tuple[str, ...]:
    """The labels that stand in expected answers, sorted. Raises ``ValueError`` for an answer that has none."""
    found = set()
    for text in texts:
        parsed, _ = parse_object(text)
        label = text.strip() if parsed is None else parsed.get(label_key)
        if not isinstance(label, str) or not label:
            where = "" if parsed is None else f" at {label_key!r} (task.label_key)"
            raise ValueError(f"an answer has no label{where}: {text[:80]!r}")
        found.add(label)
    return tuple(sorted(found))
