"""Two answers to the same row, before and after: what a judge and a person compare."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from local.evaluation.document.measurement import Label
from local.evaluation.document.outputs import OutputLine


@dataclass(frozen=True)
class Pair:
    """One row with both answers as text, None for a request that failed. ``reference``: the hold-out's answer."""

    row: int
    prompt: tuple[dict[str, Any], ...]
    reference: str
    before: str | None
    after: str | None

    @property
    def sha256(self) -> str:
        """Of all that is compared: a verdict belongs to these very answers."""
        text = json.dumps([self.prompt, self.reference, self.before, self.after], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def same(self) -> bool:
        """Whether the two answers differ in nothing but white space at their ends."""
        return (self.before or "").strip() == (self.after or "").strip()

    @property
    def differs(self) -> bool:
        """Whether there is anything to compare: two answers, and not the same."""
        return self.before is not None and self.after is not None and not self.same

    def answer(self, label: Label) -> str:
        return (self.before if label == "before" else self.after) or ""


def make_pairs(before: Sequence[OutputLine], after: Sequence[OutputLine]) -> list[Pair]:
    """The first repeat of all rows that both sides were asked, by row."""
    was = {line.row: line for line in before if line.repeat == 0}
    now = {line.row: line for line in after if line.repeat == 0}
    return [
        Pair(row, now[row].prompt, as_text(now[row].expected), _answer(was[row]), _answer(now[row]))
        for row in sorted(was.keys() & now.keys())
    ]


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _answer(line: OutputLine) -> str | None:
    """The text, and the calls of tools after it."""
    if line.answer is None:
        return None
    calls = [as_text(call.get("function", call)) for call in line.tool_calls]
    return "\n".join([*([line.answer] if line.answer or not calls else []), *calls])
