"""Rows → what is trained on, what each stage is measured on, and the hold-out that training never sees.

The split is drawn by question: rows that ask the same thing (see ``data.question``) stay on one
side, so that no answer of the hold-out was seen in training. It depends on the rows and the seed alone, and a
row that is added later moves few others. The validation rows are drawn from the training rows in the same way: they
travel to the training machine, which measures each stage on them, but trains on none.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from cloudft.errors import ConfigError, DataError
from jobs.spec import FileRef
from local.files import atomic_open, sha256_file
from local.jsonl import NOTHING
from local.planning.data import Row, load_rows

# Below these numbers a before/after says nothing: with 10 rows, one answer is 10 points.
LEAST_TRAIN: Final = 10
LEAST_HOLDOUT: Final = 10
# Validation rows, of the training rows: a twentieth, or so many if there are rows enough, and never more than a tenth.
# With fewer than the least, one answer decides, and none are drawn.
VALIDATION_SHARE: Final = 0.05
VALIDATION_WANTED: Final = 16
VALIDATION_LEAST: Final = 8
VALIDATION_MOST: Final = 64


class Writable(Protocol):
    """A row of any kind."""

    def canonical(self) -> str: ...


@dataclass(frozen=True)
class Split:
    """All parts, without exact repetitions.

    ``duplicates``: repetitions that were left out; ``contaminated``: training rows left out because a hold-out
    file asks the same. Both are 0 for clean data, and a person should be told when they are not.
    """

    train: tuple[Row, ...]
    holdout: tuple[Row, ...]
    duplicates: int = 0
    contaminated: int = 0
    validation: tuple[Row, ...] = ()


def split(rows: list[Row], holdout: float | Path, seed: int, validation: float | None = 0.0) -> Split:
    """Part the rows.

    Args:
        rows: all rows, or, where ``holdout`` is a file, those for training.
        holdout: share of the rows to hold out (between 0 and 1), or a data file of rows held out.
        seed: of the draw.
        validation: share of the training rows to measure stages on; None: a few, if there are rows enough.

    Raises:
        ConfigError: the share is not between 0 and 1.
        DataError: too few rows on either side, or the hold-out file is unfit.
        NotFound: the hold-out file is not there.
    """
    distinct = _distinct(rows)
    duplicates = len(rows) - len(distinct)
    if isinstance(holdout, Path):
        found = load_rows(holdout, "data.holdout")
        held = _distinct(found)
        asked = {row.question() for row in held}
        rest = tuple(row for row in distinct if row.question() not in asked)
        duplicates += len(found) - len(held)
        parts = Split(rest, tuple(held), duplicates, len(distinct) - len(rest))
    else:
        if not 0 < holdout < 1:
            raise ConfigError(
                f"data.holdout is {holdout}; it must be a share between 0 and 1, or a file",
                effect=NOTHING,
                hint="0.2 holds out a fifth of the rows",
            )
        held = _draw(distinct, round(len(distinct) * holdout), seed)
        chosen = {id(row) for row in held}
        parts = Split(tuple(row for row in distinct if id(row) not in chosen), tuple(held), duplicates)
    held_back = _draw(list(parts.train), _validation_rows(len(parts.train), validation), seed + 1)
    kept_back = {id(row) for row in held_back}
    train = tuple(row for row in parts.train if id(row) not in kept_back)
    parts = replace(parts, train=train, validation=tuple(held_back))
    _refuse_too_few(parts, len(rows), holdout)
    return parts


def _validation_rows(train: int, share: float | None) -> int:
    if share is not None:
        return round(train * share)
    wanted = max(round(train * VALIDATION_SHARE), min(VALIDATION_WANTED, train // 10))
    return min(wanted, VALIDATION_MOST) if wanted >= VALIDATION_LEAST else 0


def write_rows(path: Path, rows: Iterable[Writable]) -> FileRef:
    """Write rows as canonical JSON lines, whole or not at all; returns name, sha256 and size of the file."""
    with atomic_open(path) as out:
        for row in rows:
            out.write(row.canonical().encode() + b"\n")
    return FileRef(path=path.name, sha256=sha256_file(path), bytes=path.stat().st_size)


def _distinct(rows: list[Row]) -> list[Row]:
    """The first of each set of equal rows, in order."""
    seen: dict[str, Row] = {}
    for row in rows:
        seen.setdefault(row.canonical(), row)
    return list(seen.values())


def _draw(rows: list[Row], count: int, seed: int) -> list[Row]:
    """At most ``count`` rows: whole groups of one question each, in an order that the seed decides."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.question(), []).append(row)
    held: set[int] = set()
    for question in sorted(groups, key=lambda text: hashlib.sha256(f"{seed} {text}".encode()).digest()):
        if len(held) + len(groups[question]) <= count:
            held |= {id(row) for row in groups[question]}
    return [row for row in rows if id(row) in held]


def _refuse_too_few(parts: Split, given: int, holdout: float | Path) -> None:
    train, held = len(parts.train), len(parts.holdout)
    if train >= LEAST_TRAIN and held >= LEAST_HOLDOUT:
        return
    how = f"the file {holdout}" if isinstance(holdout, Path) else f"a share of {holdout}"
    alike = 0 if isinstance(holdout, Path) else _alike((*parts.train, *parts.holdout))
    reasons = [
        f"{parts.duplicates} repeated rows are left out" if parts.duplicates else "",
        f"{parts.contaminated} rows are left out because the hold-out asks the same" if parts.contaminated else "",
        f"{alike} rows have the same first message of the user, and such rows stay on one side" if alike else "",
    ]
    notes = "".join(f"; {reason}" for reason in reasons if reason)
    raise DataError(
        f"too few rows: of {given}, with {how} held out, {train} are left to train on (at least {LEAST_TRAIN}) "
        f"and {held} to measure with (at least {LEAST_HOLDOUT}){notes}",
        effect=NOTHING,
        hint="put what differs between the rows into the user's first message"
        if alike
        else "add examples: a few hundred are a good start; or set data.holdout in cloudft.yaml",
    )


def _alike(rows: Sequence[Row]) -> int:
    """How many rows ask the one question that more than half of them ask; 0 if there is none."""
    most = max(Counter(row.question() for row in rows).values(), default=0)
    return most if most > max(1, len(rows) / 2) else 0
