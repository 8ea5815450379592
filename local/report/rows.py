"""The data of a run, recounted from the run's own copies: what a dataset card says must be true of these files."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.spec import RunSpec
from local.planning.data import plain_question
from local.project import RunFolder
from local.report.model import DataFacts, Spread
from local.runs.runlock import RunLock

# A key with more values than this is no enumeration, and its spread says nothing.
MOST_VALUES = 12


@dataclass(frozen=True)
class _Row:
    """One line, as far as a card needs it."""

    messages: tuple[dict[str, Any], ...]

    @property
    def answer(self) -> str:
        return _text(self.messages[-1].get("content")) if self.messages else ""

    @property
    def question(self) -> str:
        """As the split knows it: rows that share it are kin."""
        first = next((m for m in self.messages if m.get("role") == "user"), {})
        return plain_question(_text(first.get("content")))

    @property
    def system(self) -> str | None:
        first = self.messages[0] if self.messages else {}
        return _text(first.get("content")) if first.get("role") == "system" else None

    @property
    def turns(self) -> int:
        return sum(message.get("role") == "assistant" for message in self.messages)

    @property
    def characters(self) -> int:
        return sum(len(_text(message.get("content"))) for message in self.messages)


def data_facts(run: RunFolder, spec: RunSpec, lock: RunLock | None) -> DataFacts:
    """Facts of both parts. What cannot be read is None, never a guess."""
    train, held = _read(run.train_data), _read(run.holdout)
    rows = [*(train or ()), *(held or ())]
    lengths = [row.characters for row in rows]
    source = lock.source if lock is not None else None
    return DataFacts(
        train_rows=spec.data.train_rows,
        holdout_rows=spec.data.holdout_rows,
        split_seed=spec.data.split_seed,
        train_sha256=spec.data.train.sha256,
        holdout_sha256=spec.data.holdout_sha256,
        train_bytes=spec.data.train.bytes,
        source_file=source.path if source else None,
        source_sha256=source.sha256 if source else None,
        source_rows=source.rows if source else None,
        duplicates=source.duplicates if source else None,
        contaminated=source.contaminated if source else None,
        conflicts=source.conflicts if source else None,
        shared_questions=_shared(train, held),
        systems=tuple(dict.fromkeys(row.system for row in rows if row.system)),
        turns=max((row.turns for row in rows), default=0),
        median_characters=round(statistics.median(lengths)) if lengths else None,
        longest_characters=max(lengths, default=None),
        spreads=_spreads(train or [], held or []),
        sample=json.dumps(train[0].messages, ensure_ascii=False, indent=1) if train else None,
    )


def _shared(train: list[_Row] | None, held: list[_Row] | None) -> int | None:
    """Questions of the hold-out that training saw; 0 unless something went wrong."""
    if train is None or held is None:
        return None
    seen = {row.question for row in train}
    return sum(row.question in seen for row in held)


def _spreads(train: list[_Row], held: list[_Row]) -> tuple[Spread, ...]:
    """For every key whose values are an enumeration (or for the answers, if they are labels): how often each is."""
    parts = [[_values(row.answer) for row in part] for part in (train, held)]
    keys = dict.fromkeys(key for part in parts for values in part for key in values)
    found = []
    for key in keys:
        counts = [Counter(values[key] for values in part if key in values) for part in parts]
        names = sorted(counts[0] | counts[1], key=lambda name: (-counts[0][name] - counts[1][name], name))
        if 1 < len(names) <= MOST_VALUES:
            found.append(Spread(key, tuple((name, counts[0][name], counts[1][name]) for name in names)))
    return tuple(found)


def _values(answer: str) -> dict[str, str]:
    """The scalar values of an answer by key; a short answer that is no object is one value, under ``answer``."""
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict):
        return {k: _text(v) for k, v in value.items() if isinstance(v, (str, bool, int, float)) or v is None}
    return {"answer": answer} if len(answer) <= 40 and "\n" not in answer else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _read(path: Path) -> list[_Row] | None:
    """The rows of a file; None if it is gone or no longer what it was."""
    try:
        # Not splitlines(): it also cuts at characters that may stand inside a JSON string.
        lines = [json.loads(line) for line in path.read_bytes().split(b"\n") if line.strip()]
        return [_Row(tuple(dict(message) for message in line.get("messages", ()))) for line in lines]
    except (OSError, ValueError, TypeError, AttributeError):
        return None
