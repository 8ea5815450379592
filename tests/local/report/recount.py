"""Every number of an evaluation of a JSON task, counted again from the raw answers alone, in the plainest way.

None of our code takes part: the answers are parsed by ``json``, checked by ``jsonschema``, and counted.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

from tests.local.evaluation import rebootstrap

Z = 1.959963984540054


@dataclass(frozen=True)
class Count:
    """Hits of one metric, row by row."""

    hits: tuple[bool, ...]

    @property
    def share(self) -> float:
        return sum(self.hits) / len(self.hits)

    @property
    def wilson(self) -> tuple[float, float]:
        """The two roots of (p - share)^2 = z^2 p (1 - p) / n."""
        n, share = len(self.hits), self.share
        a, b, c = 1 + Z * Z / n, -(2 * share + Z * Z / n), share * share
        root = math.sqrt(max(b * b - 4 * a * c, 0.0))
        return (-b - root) / (2 * a), (-b + root) / (2 * a)


def load(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def parse(answer: str | None) -> dict[str, Any] | None:
    try:
        value = json.loads(answer) if answer is not None else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def count(lines: list[dict[str, Any]], holdout: list[dict[str, Any]], schema: dict[str, Any]) -> dict[str, Count]:
    """Metric → hits, by row of the hold-out; expected answers are read from the hold-out itself."""
    wanted = [json.loads(row["messages"][-1]["content"]) for row in holdout]
    answers = [parse(line["answer"]) for line in sorted(lines, key=lambda line: line["row"])]
    valid = jsonschema.Draft202012Validator(schema).is_valid
    keys = list(schema["properties"])
    found = {
        "schema_valid": Count(tuple(answer is not None and valid(answer) for answer in answers)),
        "exact_match": Count(
            tuple(
                answer is not None and all(answer.get(key) == want.get(key) for key in keys)
                for answer, want in zip(answers, wanted, strict=True)
            )
        ),
    }
    for key in keys:
        found[f"exact_match.{key}"] = Count(
            tuple(
                answer is not None and answer.get(key) == want.get(key)
                for answer, want in zip(answers, wanted, strict=True)
            )
        )
    return found


def mcnemar(before: Count, after: Count) -> float:
    """Two-sided exact p of the paired test: how likely a split of the changed rows so uneven is by chance."""
    gained = sum(a and not b for b, a in zip(before.hits, after.hits, strict=True))
    lost = sum(b and not a for b, a in zip(before.hits, after.hits, strict=True))
    changed = gained + lost
    if not changed:
        return 1.0
    tail = sum(math.comb(changed, k) for k in range(min(gained, lost) + 1)) / 2**changed
    return min(1.0, 2 * tail)


def newcombe(before: Count, after: Count) -> tuple[float, float]:
    """The interval of the change of a share on the same rows (Newcombe 1998, method 10), written from the paper."""
    pairs = list(zip(before.hits, after.hits, strict=True))
    n = len(pairs)
    e, f, g, h = (pairs.count(pair) for pair in ((True, True), (False, True), (True, False), (False, False)))
    margins = (e + f) * (g + h) * (e + g) * (f + h)
    product = e * h - f * g
    phi = 0.0 if not margins else (max(product - n / 2, 0) if product > 0 else product) / math.sqrt(margins)
    (l2, u2), (l3, u3) = after.wilson, before.wilson
    p2, p3 = after.share, before.share
    low = math.hypot(p2 - l2, u3 - p3)
    high = math.hypot(u2 - p2, p3 - l3)
    low = math.sqrt(max(low**2 - 2 * phi * (p2 - l2) * (u3 - p3), 0))
    high = math.sqrt(max(high**2 - 2 * phi * (u2 - p2) * (p3 - l3), 0))
    return max(p2 - p3 - low, -1.0), min(p2 - p3 + high, 1.0)


def field_f1(lines: list[dict[str, Any]], holdout: list[dict[str, Any]], keys: list[str]) -> float:
    """2 x correct / (expected + answered) over all keys of all rows."""
    expected, answered, correct = (sum(column) for column in zip(*f1_counts(lines, holdout, keys), strict=True))
    return 2 * correct / (expected + answered)


def f1_counts(
    lines: list[dict[str, Any]], holdout: list[dict[str, Any]], keys: list[str]
) -> list[tuple[int, int, int]]:
    """By row: keys that are expected, answered, and both with one value."""
    found = []
    for line, row in zip(sorted(lines, key=lambda line: line["row"]), holdout, strict=True):
        want, answer = json.loads(row["messages"][-1]["content"]), parse(line["answer"]) or {}
        correct = sum(key in want and key in answer and want[key] == answer[key] for key in keys)
        found.append((sum(key in want for key in keys), sum(key in answer for key in keys), correct))
    return found


def table(text: str, title: str = "| metric |") -> dict[str, list[str]]:
    """The first table of a Markdown file whose header begins so: first cell → the others."""
    lines = text[text.index(title) :].split("\n\n", 1)[0].split("\n")
    rows = [line.strip("| ").split(" | ") for line in lines[2:]]
    return {cells[0].strip("`"): cells[1:] for cells in rows}


def numbers(cell: str) -> list[float]:
    return [float(found.replace("−", "-")) for found in re.findall(r"[−+]?\d+\.\d+", cell)]


def hold_against(run: Path, text: str, schema: dict[str, Any]) -> None:
    """Every number of the table of ``text`` (Markdown) is the one that the raw answers in the run's folder give."""
    held = load(run / "holdout.jsonl")
    raw = {label: load(run / f"outputs-{label}.jsonl") for label in ("before", "after")}
    held = held[: len(raw["after"])]
    found = {label: count(lines, held, schema) for label, lines in raw.items()}
    cells = table(text)
    assert set(cells) == {*found["after"], "field_f1"}
    for name in found["after"]:
        before, after = found["before"][name], found["after"][name]
        for counted, cell in zip((before, after), cells[name], strict=False):
            _close(numbers(cell), [counted.share, *counted.wilson], name, cell)
        _close(numbers(cells[name][2]), [after.share - before.share, *newcombe(before, after)], name, cells[name][2])
        p = mcnemar(before, after)
        assert ("p \\< 0.001" if p < 0.001 else f"p = {p:.3f}") in cells[name][3], (name, p, cells[name][3])
    _hold_f1(
        cells["field_f1"], {label: f1_counts(lines, held, list(schema["properties"])) for label, lines in raw.items()}
    )


def _hold_f1(cells: list[str], counts: dict[str, list[tuple[int, int, int]]]) -> None:
    """A metric that is no share of rows: its intervals and its test come from the bootstrap."""
    n = len(counts["after"])
    for label, cell in zip(counts, cells, strict=False):
        found = rebootstrap.bootstrap(rebootstrap.field_f1(counts[label]), n)
        interval = (found.low, found.high) if found.low < found.high else Count((found.value == 1,) * n).wilson
        assert numbers(cell) == [round(value, 3) for value in (found.value, *interval)], (label, cell)
    change = rebootstrap.paired(counts["before"], counts["after"])
    said = numbers(cells[2])
    assert said[0] == round(change.value, 3)
    if change.low < change.high:
        assert said[1:] == [round(change.low, 3), round(change.high, 3)], cells[2]
    p = max(change.p_value, 2 * 0.5 ** rebootstrap.differ(counts["before"], counts["after"]))
    assert ("p \\< 0.001" if p < 0.001 else f"p = {p:.3f}") in cells[3], (p, cells[3])


def _close(said: list[float], counted: list[float], *where: str) -> None:
    """In per cent, to the digit that is shown."""
    assert len(said) == len(counted), where
    assert all(abs(a - 100 * b) < 0.0501 for a, b in zip(said, counted, strict=True)), (said, counted, where)


def changes(before: Count, after: Count) -> dict[str, int]:
    pairs = Counter(zip(before.hits, after.hits, strict=True))
    return {
        "gained": pairs[False, True],
        "lost": pairs[True, False],
        "right_both_times": pairs[True, True],
        "wrong_both_times": pairs[False, False],
    }


def confusion(
    lines: list[dict[str, Any]], holdout: list[dict[str, Any]], key: str, values: list[str]
) -> dict[tuple[str, str], int]:
    """(expected, answered) → rows, for one key; an answer that is none of the values counts as ``other``."""
    found: Counter[tuple[str, str]] = Counter()
    for line, row in zip(sorted(lines, key=lambda line: line["row"]), holdout, strict=True):
        want = json.loads(row["messages"][-1]["content"])[key]
        answer = (parse(line["answer"]) or {}).get(key)
        found[want, answer if answer in values else "failed" if line["error"] else "other"] += 1
    return dict(found)
