"""Pieces of the Markdown files that are easier to build than to lay out in a template."""

from __future__ import annotations

from local.report.model import Example, Examples, Table
from local.report.words import Raw, fence, plain


def table(found: Table, *, caption: bool = True) -> Raw:
    """A table; its caption, if asked for, as a bold line above it."""
    lines = [_line(found.columns), "|" + "---|" * len(found.columns), *map(_line, found.rows)]
    return Raw((f"**{plain(found.caption)}**\n\n" if caption else "") + "\n".join(lines))


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(plain(cell) if cell else " " for cell in cells) + " |"


def examples(title: str, found: Examples, empty: str) -> Raw:
    """A few rows of the hold-out under a heading of the third level."""
    parts = [f"### {plain(title)}"]
    if not found.shown:
        parts.append(plain(empty))
    if found.count > len(found.shown):
        parts.append(f"{len(found.shown)} of {found.count}.")
    return Raw("\n\n".join([*parts, *map(one_example, found.shown)]))


def one_example(found: Example) -> Raw:
    """What was asked, expected and answered, in a block of code: nothing of it is markup."""
    said = {"asked": found.question, "expected": found.expected, "before": found.before, "after": found.after}
    lines = [f"{name:<10}" + text.replace("\n", "\n" + " " * 10) for name, text in said.items()]
    note = f": {plain(found.note)}" if found.note else ""
    return Raw(f"{plain(found.name)}{note}\n\n{fence(chr(10).join(lines))}")
