"""Every number of an evaluation again, from the raw answers alone, by other means than the ones that made it."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from local.evaluation.document import FAILED, OTHER, Document, OutputLine, read_document, read_outputs
from local.project import RunFolder


def assert_recomputed(run: RunFolder) -> Document:
    """Fails unless all numbers of a JSON task, asked once, are what its answers say."""
    document = read_document(run)
    raw = json.loads(run.evaluation.read_bytes())
    schema = json.loads(run.task.read_bytes())["json_schema"]
    keys = document.task.settings["keys"]
    holdout = [json.loads(line)["messages"] for line in run.holdout.read_text().split("\n") if line]
    rates: dict[str, list[dict[str, bool]]] = {}
    for label, side in document.sides.items():
        lines = read_outputs(run, side.outputs)
        assert [list(line.prompt) for line in lines] == [row[:-1] for row in holdout[: document.n]]
        assert [line.expected for line in lines] == [json.loads(row[-1]["content"]) for row in holdout[: document.n]]
        rates[label] = [_judge(line, schema, keys) for line in lines]
        _assert_side(raw, label, lines, rates[label], schema, keys)
    for name in rates["after"][0]:
        pairs = [(b[name], a[name]) for b, a in zip(rates["before"], rates["after"], strict=True)]
        _assert_comparison(raw["comparisons"][name], pairs)
        if name == raw["primary"]:
            assert raw["changes"] == {
                "gained": pairs.count((False, True)),
                "lost": pairs.count((True, False)),
                "right_both_times": pairs.count((True, True)),
                "wrong_both_times": pairs.count((False, False)),
            }
    _assert_holm(raw)
    return document


def _judge(line: OutputLine, schema: dict[str, Any], keys: list[str]) -> dict[str, bool]:
    answer = _object(line)
    right = {f"exact_match.{key}": _text(answer, key) == _text(line.expected, key) for key in keys}
    right = right if answer is not None else dict.fromkeys(right, False)
    valid = answer is not None and jsonschema.Draft202012Validator(schema).is_valid(answer)
    found = {"schema_valid": valid, "exact_match": all(right.values()), **right}
    assert {name: bool(score) for name, score in line.score.items()} == found
    return found


def _object(line: OutputLine) -> Any:
    try:
        value = json.loads(line.answer or "")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _text(value: Any, key: str) -> str | None:
    return json.dumps(value[key], sort_keys=True) if value and key in value else None


def _assert_side(
    raw: dict[str, Any],
    label: str,
    lines: list[OutputLine],
    rates: list[dict[str, bool]],
    schema: dict[str, Any],
    keys: list[str],
) -> None:
    from scipy.stats import binomtest
    from sklearn.metrics import confusion_matrix

    side, n = raw["sides"][label], len(lines)
    for name in rates[0]:
        hits = sum(row[name] for row in rates)
        estimate = side["metrics"][name]
        theirs = binomtest(hits, n).proportion_ci(method="wilson")
        assert (estimate["hits"], estimate["of"]) == (hits, n)
        assert raw[label][name] == estimate["value"] == hits / n
        assert (estimate["low"], estimate["high"]) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    counts = {"expected": 0, "answered": 0, "correct": 0}
    for key in keys:
        tally = side["tables"]["keys"][key]
        texts = [(_text(line.expected, key), _text(_object(line), key)) for line in lines]
        found = {
            "expected": sum(e is not None for e, _ in texts),
            "answered": sum(a is not None for _, a in texts),
            "correct": sum(e is not None and e == a for e, a in texts),
        }
        assert {name: tally[name] for name in found} == found
        assert tally["precision"] == (found["correct"] / found["answered"] if found["answered"] else 0)
        assert tally["recall"] == (found["correct"] / found["expected"] if found["expected"] else 0)
        counts = {name: counts[name] + found[name] for name in counts}
        if key in side["confusion"]:
            names = schema["properties"][key]["enum"]
            expected = [line.expected[key] for line in lines]
            answered = [FAILED if line.error else (_object(line) or {}).get(key) for line in lines]
            columns = [*names, OTHER, FAILED]
            known = [a if a in columns else OTHER for a in answered]
            theirs = confusion_matrix(expected, known, labels=columns)
            assert side["confusion"][key]["counts"] == theirs[: len(names)].tolist()
    f1 = 2 * counts["correct"] / (counts["expected"] + counts["answered"])
    assert raw[label]["field_f1"] == side["metrics"]["field_f1"]["value"] == pytest.approx(f1)
    usage = side["usage"]
    assert (usage["requests"], usage["failed"]) == (n, sum(line.error is not None for line in lines))
    for name in ("prompt_tokens", "completion_tokens"):
        assert usage[name] == sum(getattr(line, name) or 0 for line in lines)


def _assert_comparison(found: dict[str, Any], pairs: list[tuple[bool, bool]]) -> None:
    from scipy.stats import binomtest

    gained, lost = pairs.count((False, True)), pairs.count((True, False))
    assert (found["gained"], found["lost"], found["test"]) == (gained, lost, "mcnemar")
    assert found["change"] == pytest.approx((gained - lost) / len(pairs))
    p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert found["p_value"] == pytest.approx(p)
    assert found["low"] <= found["change"] <= found["high"]
    shown = found["p_adjusted"] < 0.05
    assert found["outcome"] == (("better" if gained > lost else "worse") if shown else "undecided")


def _assert_holm(raw: dict[str, Any]) -> None:
    """The primary metric stands alone; of the others the i-th smallest counts as often as there are others left."""
    found = dict(raw["comparisons"])
    primary = found.pop(raw["primary"])
    assert primary["p_adjusted"] == primary["p_value"]
    ordered = sorted(found.values(), key=lambda c: c["p_value"])
    steps = [min(1.0, (len(ordered) - place) * c["p_value"]) for place, c in enumerate(ordered)]
    for place, comparison in enumerate(ordered):
        assert comparison["p_adjusted"] == pytest.approx(max(steps[: place + 1]))
    assert raw["verdict"]["worse"] == [name for name, c in found.items() if c["outcome"] == "worse"]
    assert raw["verdict"]["outcome"] == primary["outcome"]
