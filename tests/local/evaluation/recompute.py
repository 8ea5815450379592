"""Every number of an evaluation again, from the raw answers alone, by other means than the ones that made it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import local.evaluation
from local.evaluation.document.eval_json import Document, read_document
from local.evaluation.document.measurement import FAILED, OTHER
from local.evaluation.document.outputs import OutputLine, read_outputs
from local.project import RunFolder
from tests.local.evaluation.rebootstrap import bootstrap, differ, field_f1, paired
from tests.local.evaluation.rescore import right


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
    _assert_f1(raw, {label: read_outputs(run, side.outputs) for label, side in document.sides.items()}, keys)
    _assert_holm(raw)
    if document.ladder is not None:
        _assert_ladder(run, raw, schema, keys)
    if document.judging is not None:
        _assert_judging(run, raw)
    assert_forgetting(run)
    return document


def assert_forgetting(run: RunFolder) -> None:
    """Fails unless all numbers of the general set, if it was asked, are what its answers say."""
    for found in json.loads(run.evaluation.read_bytes())["forgetting"]:
        if found["suite"] == "basics":
            _assert_basics(run, found)


def _judge(line: OutputLine, schema: dict[str, Any], keys: list[str]) -> dict[str, bool]:
    answer = _object(line)
    same = {f"exact_match.{key}": _text(answer, key) == _text(line.expected, key) for key in keys}
    same = same if answer is not None else dict.fromkeys(same, False)
    valid = answer is not None and jsonschema.Draft202012Validator(schema).is_valid(answer)
    found = {"schema_valid": valid, "exact_match": all(same.values()), **same}
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
    assert (found["low"], found["high"]) == pytest.approx(_newcombe(pairs), abs=1e-9)
    shown = found["p_adjusted"] < 0.05
    assert found["outcome"] == (("better" if gained > lost else "worse") if shown else "undecided")


def _newcombe(pairs: list[tuple[bool, bool]]) -> tuple[float, float]:
    """The interval of the change (Newcombe 1998, method 10), with the signs and letters of the paper: the first share
    is that after."""
    n = len(pairs)
    e, f, g, h = (pairs.count(pair) for pair in ((True, True), (False, True), (True, False), (False, False)))
    (l2, u2), (l3, u3) = _wilson(e + f, n), _wilson(e + g, n)
    theta, margins = (f - g) / n, (e + f) * (g + h) * (e + g) * (f + h)
    above = e * h - f * g
    corrected = max(above - n / 2, 0) if above > 0 else above
    phi = corrected / margins**0.5 if margins else 0.0
    dl2, du2, dl3, du3 = (e + f) / n - l2, u2 - (e + f) / n, (e + g) / n - l3, u3 - (e + g) / n
    delta = max(dl2**2 - 2 * phi * dl2 * du3 + du3**2, 0) ** 0.5
    epsilon = max(du2**2 - 2 * phi * du2 * dl3 + dl3**2, 0) ** 0.5
    return max(theta - delta, -1), min(theta + epsilon, 1)


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


def _assert_f1(raw: dict[str, Any], lines: Mapping[str, Sequence[OutputLine]], keys: list[str]) -> None:
    """Intervals and p-value of the metric that is no count, on the documented resamples."""
    counts = {label: [_counts(line, keys) for line in found] for label, found in lines.items()}
    n = len(counts["after"])
    for label, rows in counts.items():
        found, ours = raw["sides"][label]["metrics"]["field_f1"], bootstrap(field_f1(rows), n)
        interval = (ours.low, ours.high) if ours.low < ours.high else _wilson(n if ours.value else 0, n)
        assert (found["low"], found["high"]) == pytest.approx(interval, abs=1e-9)
    found, change = raw["comparisons"]["field_f1"], paired(counts["before"], counts["after"])
    assert found["change"] == pytest.approx(change.value)
    if change.low < change.high:
        assert (found["low"], found["high"]) == pytest.approx((change.low, change.high), abs=1e-9)
    chance = 2 * 0.5 ** differ(counts["before"], counts["after"])
    assert found["p_value"] == pytest.approx(min(1.0, max(change.p_value, chance)))


def _counts(line: OutputLine, keys: list[str]) -> tuple[int, int, int]:
    answer = _object(line) or {}
    right = sum(key in line.expected and _text(answer, key) == _text(line.expected, key) for key in keys)
    return sum(key in line.expected for key in keys), sum(key in answer for key in keys), right


def _wilson(hits: int, n: int) -> tuple[float, float]:
    from scipy.stats import binomtest

    found = binomtest(hits, n).proportion_ci(method="wilson")
    return found.low, found.high


def _assert_ladder(run: RunFolder, raw: dict[str, Any], schema: dict[str, Any], keys: list[str]) -> None:
    """Every rung from its own answers, every step from those of its two rungs."""
    from scipy.stats import binomtest

    ladder, metric, hits = raw["ladder"], raw["primary"], {}
    for rung in ladder["rungs"]:
        lines = [json.loads(line) for line in (run.root / rung["measurement"]["outputs"]["path"]).open("rb")]
        answers = [OutputLine.model_validate(line) for line in lines]
        hits[rung["name"]] = found = [_judge(line, schema, keys)[metric] for line in answers]
        estimate = rung["measurement"]["metrics"][metric]
        assert (estimate["hits"], estimate["of"], ladder["n"]) == (sum(found), len(found), len(found))
        assert (estimate["low"], estimate["high"]) == pytest.approx(_wilson(sum(found), len(found)), abs=1e-9)
    p_values = []
    for step in ladder["steps"]:
        pairs = list(zip(hits[step["before"]], hits[step["after"]], strict=True))
        gained, lost = pairs.count((False, True)), pairs.count((True, False))
        compared = step["comparison"]
        assert (compared["gained"], compared["lost"]) == (gained, lost)
        assert compared["change"] == pytest.approx((gained - lost) / len(pairs))
        p_values.append(binomtest(gained, gained + lost).pvalue if gained + lost else 1.0)
        assert compared["p_value"] == pytest.approx(p_values[-1])
        assert (compared["low"], compared["high"]) == pytest.approx(_newcombe(pairs), abs=1e-9)
    for place, step in enumerate(sorted(ladder["steps"], key=lambda step: step["comparison"]["p_value"])):
        least = min(1.0, (len(p_values) - place) * step["comparison"]["p_value"])
        assert step["comparison"]["p_adjusted"] >= least - 1e-12


def _assert_judging(run: RunFolder, raw: dict[str, Any]) -> None:
    """The judge's counts from all that it said: after wins a pair if it was preferred in both places."""
    from scipy.stats import binomtest

    said: dict[str, list[str]] = {}
    for line in map(json.loads, (run.root / raw["judging"]["verdicts"]["path"]).open("rb")):
        named = {"first": line["order"].split()[0], "second": "after" if line["order"] == "before first" else "before"}
        said.setdefault(line["pair_sha256"], []).append(named.get(line["verdict"], "tie"))
    assert all(len(verdicts) == 2 for verdicts in said.values())
    wins, losses = (sum(verdicts == [name, name] for verdicts in said.values()) for name in ("after", "before"))
    found = raw["judging"]
    assert (found["wins"], found["losses"]) == (wins, losses)
    assert found["ties"] == found["pairs"] - wins - losses
    assert found["win_rate"]["value"] == pytest.approx((wins + found["ties"] / 2) / found["pairs"])
    p = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert found["p_value"] == pytest.approx(p)


def _assert_basics(run: RunFolder, found: dict[str, Any]) -> None:
    """The general set from the models' own words: each answer by the rules that stand beside its question."""
    shipped = (Path(local.evaluation.__file__).parent / "general_set.jsonl").read_bytes()
    questions = [json.loads(line) for line in shipped.splitlines()]
    assert (found["sha256"], found["n"]) == (hashlib.sha256(shipped).hexdigest(), len(questions))
    hits: dict[str, list[bool]] = {}
    answers: dict[str, list[Any]] = {}
    for label, ref in found["outputs"].items():
        raw = (run.root / ref["path"]).read_bytes()
        lines = [json.loads(line) for line in raw.split(b"\n") if line]
        assert (hashlib.sha256(raw).hexdigest(), len(lines)) == (ref["sha256"], ref["lines"])
        assert [line["prompt"][-1]["content"] for line in lines] == [one["question"] for one in questions]
        answers[label] = [line["answer"] for line in lines]
        hits[label] = [right(one["check"], said) for one, said in zip(questions, answers[label], strict=True)]
        _assert_share(found[label], hits[label])
    for name, part in found["parts"].items():
        at = [number for number, one in enumerate(questions) if one["part"] == name]
        assert part["n"] == len(at)
        for label, all_hits in hits.items():
            _assert_share(part[label], [all_hits[number] for number in at])
    assert set(found["parts"]) == {one["part"] for one in questions}
    pairs = list(zip(hits["before"], hits["after"], strict=True))
    _assert_comparison(found["comparison"], pairs)
    lost = [number for number, pair in enumerate(pairs) if pair == (True, False)][: len(found["regressions"])]
    assert [one["id"] for one in found["regressions"]] == [questions[number]["id"] for number in lost]
    for shown, number in zip(found["regressions"], lost, strict=True):
        assert (shown["before"], shown["after"]) == (answers["before"][number], answers["after"][number])
    assert len(found["regressions"]) == min(10, pairs.count((True, False)))
    was, now = sum(hits["before"]), sum(hits["after"])
    nothing = was < 6 and found["comparison"]["outcome"] != "better"
    assert found["outcome"] == ("nothing to forget" if nothing else found["comparison"]["outcome"])
    told = f"{was} of {len(pairs)} general questions, the tuned model {now}" if nothing else f"{was} → {now} of"
    assert told in found["sentence"]


def _assert_share(estimate: dict[str, Any], hits: list[bool]) -> None:
    assert (estimate["hits"], estimate["of"]) == (sum(hits), len(hits))
    assert estimate["value"] == sum(hits) / len(hits)
    assert (estimate["low"], estimate["high"]) == pytest.approx(_wilson(sum(hits), len(hits)), abs=1e-9)
