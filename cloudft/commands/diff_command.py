"""``cloudft diff``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cloudft.commands.common import cloudft_command, open_project
from cloudft.output import Output

if TYPE_CHECKING:
    from local.runs.compare import Diff

TITLES = {"data": "data", "config": "config", "code": "code", "numbers": "numbers"}
LONGEST = 44


@cloudft_command("diff")
@click.argument("first", metavar="RUN")
@click.argument("second", metavar="RUN")
def command(first: str, second: str, out: Output, directory: Path) -> None:
    """Compare two runs: data, config, code and numbers, and only what differs."""
    from local.runs.compare import diff_runs

    project = open_project(directory)
    found = diff_runs(project, project.pick_run(first), project.pick_run(second), time.time())
    out.result(found.as_dict(), describe(found))


def describe(found: Diff) -> str:
    """The differences as a table for a person; hashes and long texts are cut."""
    if found.same:
        return "\n".join([f"{found.first} and {found.second} do not differ", *found.notes])
    values = {
        name: [(key, _short(pair[0]), _short(pair[1])) for key, pair in getattr(found, name).items()] for name in TITLES
    }
    rows = [row for section in values.values() for row in section]
    width = max(len(key) for key, _, _ in rows)
    left = max(len(found.first), *(len(value) for _, value, _ in rows))
    lines = [f"{'':<{width + 2}}  {found.first:<{left}}  {found.second}"]
    for name, title in TITLES.items():
        if not values[name]:
            lines.append(f"{title}: the same")
            continue
        lines.append(title)
        lines += [f"  {key:<{width}}  {one:<{left}}  {two}" for key, one, two in values[name]]
    return "\n".join([*lines, *found.notes])


def _short(value: Any) -> str:
    if value is None:
        return "–"
    text = " ".join((f"{value:.6g}" if isinstance(value, float) else str(value)).split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
