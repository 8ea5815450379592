"""A person's blind votes on drawn pairs: the draw, and the file that keeps every vote.

``runs/<id>/votes.jsonl`` is only ever appended to, one line a key press, on the disk before the next pair is shown.
A vote belongs to the two answers it was given on: after another evaluation, old votes stay in the file and count no
more. The last line may be half-written, if the computer went down; it is left out.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ValidationError

from cloudft.errors import IntegrityError
from jobs.spec import Frozen
from local.evaluation.document.measurement import Label
from local.evaluation.pairs import Pair
from local.files import atomic_open

Choice = Literal["before", "after", "tie", "skip"]
VOTES: Final = "votes.jsonl"


class VoteLine(Frozen):
    """One key press. ``left``: which answer stood on the left; ``choice``: "undo" takes the row's last vote back."""

    at: float
    row: int
    pair_sha256: str
    left: Label
    choice: Literal["before", "after", "tie", "skip", "undo"]
    seed: int


@dataclass(frozen=True)
class Drawn:
    """One pair of the sample. ``left``: which of its answers stands on the left."""

    pair: Pair
    left: Label

    @property
    def right(self) -> Label:
        return "after" if self.left == "before" else "before"


def draw(pairs: Sequence[Pair], count: int, seed: int) -> list[Drawn]:
    """A sample of the pairs that differ, with shuffled sides. A larger one of the same seed begins with the smaller."""
    differing = [pair for pair in pairs if pair.differs]
    random.Random(seed).shuffle(differing)  # noqa: S311
    return [Drawn(pair, _side(pair, seed)) for pair in differing[:count]]


def _side(pair: Pair, seed: int) -> Label:
    """By the pair's own content, so that it does not change with the size of the sample."""
    digest = hashlib.sha256(f"{seed} {pair.sha256}".encode()).digest()
    return "before" if digest[0] % 2 else "after"


class VoteFile:
    """The votes of a run on one sample. Not for several threads or processes: the caller sees to that.

    Raises:
        IntegrityError: a line that is not the last cannot be read.
    """

    def __init__(self, path: Path, sample: Sequence[Drawn], seed: int) -> None:
        self.path, self.sample, self._seed = path, tuple(sample), seed
        self._by_pair = {drawn.pair.sha256: drawn for drawn in self.sample}
        self._votes: dict[str, Choice] = {}
        for line in read_votes(path):
            self._take(line)

    @property
    def votes(self) -> Mapping[str, Choice]:
        """The votes that count, by the pair's sha256, in the order in which they were given."""
        return self._votes

    @property
    def current(self) -> Drawn | None:
        """The next pair to vote on; None when all are done."""
        return next((drawn for drawn in self.sample if drawn.pair.sha256 not in self._votes), None)

    def vote(self, drawn: Drawn, choice: Choice) -> None:
        """Keep one vote; it is on the disk when this returns."""
        self._write(drawn, choice)

    def undo(self) -> bool:
        """Take the last vote back; False if there is none."""
        last = next(reversed(self._votes), None)
        if last is None:
            return False
        self._write(self._by_pair[last], "undo")
        return True

    def _write(self, drawn: Drawn, choice: Choice | Literal["undo"]) -> None:
        line = VoteLine(
            at=round(time.time(), 3),
            row=drawn.pair.row,
            pair_sha256=drawn.pair.sha256,
            left=drawn.left,
            choice=choice,
            seed=self._seed,
        )
        _append(self.path, line)
        self._take(line)

    def _take(self, line: VoteLine) -> None:
        if line.pair_sha256 not in self._by_pair:
            return
        self._votes.pop(line.pair_sha256, None)
        if line.choice != "undo":
            self._votes[line.pair_sha256] = line.choice


def _append(path: Path, line: VoteLine) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as out:
        out.write(_line_break(path) + line.model_dump_json().encode() + b"\n")
        out.flush()
        os.fsync(out.fileno())


def _line_break(path: Path) -> bytes:
    """What ends a line that was cut off, so that the next begins on its own."""
    raw = path.read_bytes()
    return b"" if not raw or raw.endswith(b"\n") else b"\n"


def read_votes(path: Path) -> list[VoteLine]:
    """All lines of a file of votes; none if it is not there.

    Raises:
        IntegrityError: a whole line cannot be read.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    found = []
    for number, line in enumerate(raw.split(b"\n"), start=1):
        try:
            found += [VoteLine.model_validate_json(line)] if line else []
        except ValidationError as exc:
            if line.endswith(b"}"):
                raise IntegrityError(
                    f"{path}, line {number}: this is no vote: {exc.errors()[0]['msg']}",
                    effect="no vote was counted, and none was changed",
                    hint="repair the line, or move the file away and vote again:  cloudft review",
                ) from exc
    return found


def preference_pairs(sample: Sequence[Drawn], votes: Mapping[str, Choice]) -> list[dict[str, Any]]:
    """The votes that prefer one answer, in the form that a dpo stage trains on; it takes no empty answer."""
    found = []
    for drawn in sample:
        choice = votes.get(drawn.pair.sha256)
        empty = not (drawn.pair.answer("before").strip() and drawn.pair.answer("after").strip())
        if choice not in ("before", "after") or empty:
            continue
        chosen: Label = "after" if choice == "after" else "before"
        rejected: Label = "before" if choice == "after" else "after"
        found.append(
            {
                "prompt": [dict(message) for message in drawn.pair.prompt],
                "chosen": _answer(drawn.pair, chosen),
                "rejected": _answer(drawn.pair, rejected),
            }
        )
    return found


def _answer(pair: Pair, label: Label) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": pair.answer(label)}]


def write_preference_pairs(path: Path, pairs: Sequence[Mapping[str, Any]]) -> None:
    """Replace ``path`` by the pairs, one a line."""
    with atomic_open(path) as out:
        for pair in pairs:
            out.write(json.dumps(pair, ensure_ascii=False).encode() + b"\n")
