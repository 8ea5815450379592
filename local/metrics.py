"""The metrics of a JSON task. Pure functions: text and expectation in, numbers out.

An answer counts as parsed only if the whole of it is one JSON object (RFC 8259), with nothing but white
space around it. Code fences, prose before or after, two objects, a key given twice, NaN, a number beyond the range of a
double: all of that breaks programs that read the answer, so none of it counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloudft.errors import ConfigError

SCHEMA_VALID = "schema_valid"
EXACT_MATCH = "exact_match"


@dataclass(frozen=True)
class Score:
    """How one answer did. ``keys`` tells for each key whether its value is the expected one."""

    parsed: dict[str, Any] | None
    schema_valid: bool
    keys: dict[str, bool]
    problem: str = ""

    @property
    def exact(self) -> bool:
        return all(self.keys.values())


@dataclass(frozen=True)
class Rate:
    """A share of rows, with its 95 % Wilson interval."""

    hits: int
    n: int

    @property
    def value(self) -> float:
        return self.hits / self.n

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.hits, self.n)


class JsonScorer:
    """What an answer must look like and which of its keys are compared.

    Args:
        schema: JSON schema of an answer.
        keys: the keys to compare; None: all properties of the schema.

    Raises:
        ConfigError: the schema is no valid JSON schema, refers to something outside itself, or names no keys.
    """

    def __init__(self, schema: dict[str, Any], keys: Sequence[str] | None = None) -> None:
        import jsonschema
        from referencing import Registry

        cls = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        try:
            cls.check_schema(schema)
        except jsonschema.SchemaError as exc:
            raise ConfigError(
                f"the task's schema is no JSON schema: {exc.message}",
                effect="nothing was measured",
                hint="correct the file that task.schema in cloudft.yaml names",
            ) from exc
        properties = schema.get("properties", {})
        self.keys = tuple(keys) if keys is not None else tuple(properties)
        if not self.keys:
            raise ConfigError(
                "the task has no keys to compare: its schema lists no properties",
                effect="nothing was measured",
                hint="name them as task.keys in cloudft.yaml",
            )
        # An empty registry: a $ref to the outside must not make the evaluation fetch something from the network.
        self._validator = cls(schema, registry=Registry())

    def schema_problem(self, value: Any) -> str:
        """Why ``value`` breaks the schema; empty if it does not."""
        import jsonschema
        from referencing.exceptions import Unresolvable

        try:
            error = jsonschema.exceptions.best_match(self._validator.iter_errors(value))
        except Unresolvable as exc:
            raise ConfigError(
                f"the task's schema refers to something outside itself: {exc}",
                effect="nothing was measured",
                hint="put the definition into the schema's own $defs",
            ) from exc
        if error is None:
            return ""
        where = "/".join(str(part) for part in error.absolute_path)
        return f"{where}: {error.message}" if where else str(error.message)

    def score(self, answer: str | None, expected: Mapping[str, Any]) -> Score:
        """Score one answer; None stands for a request that failed, and fails on everything."""
        if answer is None:
            return Score(None, False, dict.fromkeys(self.keys, False), "the request failed")
        parsed, problem = parse_object(answer)
        if parsed is None:
            return Score(None, False, dict.fromkeys(self.keys, False), problem)
        problem = self.schema_problem(parsed)
        keys = {key: same_value(parsed, expected, key) for key in self.keys}
        return Score(parsed, not problem, keys, problem)


def parse_object(text: str) -> tuple[dict[str, Any] | None, str]:
    """The JSON object that ``text`` is as a whole, or None and the reason why it is none."""
    try:
        value = json.loads(text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_no_duplicates)
    except RecursionError:
        return None, "nested too deeply"
    except ValueError as exc:
        return None, f"not JSON: {exc}"
    if not isinstance(value, dict):
        return None, f"a JSON {_json_name(value)}, not an object"
    return value, ""


def same_value(answer: Mapping[str, Any], expected: Mapping[str, Any], key: str) -> bool:
    """Whether both have the same value at ``key``; a key that is missing in both is the same, too."""
    if key not in answer or key not in expected:
        return key not in answer and key not in expected
    return json_equal(answer[key], expected[key])


def json_equal(a: Any, b: Any) -> bool:
    """Equality of JSON values: 1 is 1.0, but true is not 1; the order of an object's keys is no difference."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(json_equal(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(json_equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def rates(scores: Sequence[Score]) -> dict[str, Rate]:
    """All metrics over all rows: ``schema_valid``, ``exact_match`` and one ``exact_match.<key>`` per key.

    Raises:
        ValueError: there are no rows.
    """
    if not scores:
        raise ValueError("no rows to measure")
    n = len(scores)
    result = {
        SCHEMA_VALID: Rate(sum(s.schema_valid for s in scores), n),
        EXACT_MATCH: Rate(sum(s.exact for s in scores), n),
    }
    for key in scores[0].keys:
        result[f"{EXACT_MATCH}.{key}"] = Rate(sum(s.keys[key] for s in scores), n)
    return result


def wilson(hits: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """The Wilson score interval of a share; ``z`` for 95 %. It stays inside 0..1, also at 0 and n of n."""
    p = hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At the ends the formula is exact, but floating point is not.
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == n else min(1.0, centre + half)
    return low, high


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text} is out of range")
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is given twice")
    return result


def _json_name(value: Any) -> str:
    names = {list: "array", str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    return names[type(value)]
