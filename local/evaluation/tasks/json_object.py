"""``json``: an answer is one JSON object of a schema, whose values at some keys must be the expected ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cloudft.errors import ConfigError
from jobs.json_values import parse_object, same_value
from local.evaluation.document.measurement import FAILED, OTHER
from local.evaluation.endpoint import Fim, Question, Reply
from local.evaluation.schema import Schema
from local.evaluation.tasks.base import FAILED_REQUEST, Count, MetricDef, Row, Scored, micro_f1, ratio, share

SCHEMA_VALID = "schema_valid"
EXACT_MATCH = "exact_match"
FIELD_F1 = "field_f1"
MOST_VALUES = 20
"""A key with more values than this gets no confusion matrix: nobody could read it."""


class JsonScorer:
    """Keeps to ``base.Scorer``.

    Args:
        schema: JSON schema of an answer.
        keys: the keys to compare; None: all properties of the schema.

    Raises:
        ConfigError: the schema is no valid JSON schema, or names no keys.
    """

    primary = EXACT_MATCH

    def __init__(self, schema: dict[str, Any], keys: Sequence[str] | None = None, max_tokens: int = 256) -> None:
        self._schema = Schema(schema)
        self._max_tokens = max_tokens
        properties = schema.get("properties", {})
        self.keys = tuple(keys) if keys is not None else tuple(properties)
        if not self.keys:
            raise ConfigError(
                "the task has no keys to compare: its schema lists no properties",
                effect="nothing was measured",
                hint="name them as task.keys in cloudft.yaml",
            )
        self.metrics: Mapping[str, MetricDef] = {
            SCHEMA_VALID: share("The whole answer is one JSON object that obeys the task's schema."),
            EXACT_MATCH: share("The answer has the expected value at every key that is compared."),
            FIELD_F1: ratio(
                "F1 over all keys: how many of the expected values are answered, and the reverse.", micro_f1
            ),
            **{f"{EXACT_MATCH}.{key}": share(f"The answer has the expected value at {key!r}.") for key in self.keys},
        }
        self.tables: Mapping[str, tuple[str, ...]] = {"keys": self.keys}
        self.matrices: Mapping[str, tuple[str, ...]] = {
            key: names for key in self.keys if (names := _values(properties.get(key)))
        }

    def expect(self, text: str) -> dict[str, Any]:
        parsed, problem = parse_object(text)
        problem = problem or self._schema.problem(parsed)
        if parsed is None or problem:
            raise ValueError(f"the expected answer does not keep to the task's schema: {problem}")
        return parsed

    def question(self, row: Row, fim: Fim | None) -> Question:
        return Question(row.prompt, self._max_tokens)

    def score(self, reply: Reply | None, row: Row) -> Scored:
        if reply is None:
            return self._scored(None, row.expected, FAILED_REQUEST, valid=False, nothing=FAILED)
        parsed, problem = parse_object(reply.text)
        if parsed is not None:
            problem = self._schema.problem(parsed)
        return self._scored(parsed, row.expected, problem, valid=not problem, nothing=OTHER)

    def _scored(
        self, parsed: dict[str, Any] | None, expected: Mapping[str, Any], problem: str, valid: bool, nothing: str
    ) -> Scored:
        """``nothing``: the column for an answer without a value at a key."""
        # Without an object even a key that is rightly absent is not right: there is no answer.
        right = {key: parsed is not None and same_value(parsed, expected, key) for key in self.keys}
        answer = parsed or {}
        tallies: dict[str, Count] = {
            key: (int(key in expected), int(key in answer), int(key in expected and right[key])) for key in self.keys
        }
        wrong = [key for key, ok in right.items() if not ok]
        return Scored(
            score={
                SCHEMA_VALID: float(valid),
                EXACT_MATCH: float(not wrong),
                **{f"{EXACT_MATCH}.{key}": float(ok) for key, ok in right.items()},
            },
            problem=problem or (f"wrong: {', '.join(wrong)}" if wrong else ""),
            pooled={FIELD_F1: tuple(map(float, (sum(column) for column in zip(*tallies.values(), strict=True))))},
            tallies={"keys": tallies},
            pairs={
                key: (expected[key], _column(answer.get(key), names, nothing))
                for key, names in self.matrices.items()
                if expected.get(key) in names
            },
        )


def _values(schema: Any) -> tuple[str, ...]:
    """The texts that a key may have, if the schema lists them and they are few."""
    listed = schema.get("enum", []) if isinstance(schema, dict) else []
    texts = isinstance(listed, list) and all(isinstance(value, str) for value in listed)
    return tuple(listed) if texts and 1 < len(listed) <= MOST_VALUES else ()


def _column(value: Any, names: tuple[str, ...], nothing: str) -> str:
    return value if isinstance(value, str) and value in names else nothing
