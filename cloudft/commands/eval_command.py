"""``cloudft eval``."""

from __future__ import annotations

from pathlib import Path

import click

from cloudft.commands.common import cloudft_command, if_interrupted, open_project, run_argument
from cloudft.output import Output


@cloudft_command("eval")
@run_argument
@click.option("--limit", type=click.IntRange(min=1), help="Use only the first rows of the hold-out.")
def command(run_id: str | None, out: Output, directory: Path, limit: int | None) -> None:
    """Measure before and after on the hold-out, each model quantised and served alike."""
    from local.evaluate import evaluate_run

    project = open_project(directory)
    run = project.pick_run(run_id)
    unharmed = if_interrupted(
        "interrupted", "no result was written; an earlier evaluation is unchanged", "cloudft eval"
    )
    with unharmed, out.progress() as progress:
        found = evaluate_run(project, run, progress=progress, limit=limit)
    out.result(found.document, before_after_table(found.n, found.before, found.after))
    out.note(f"\nwritten: {found.record} and {found.report}")
    out.next_commands("docker compose up serve    (or: cloudft serve)")


def before_after_table(n: int, before: dict[str, float], after: dict[str, float]) -> str:
    """The two measurements side by side, in per cent of the hold-out's rows."""
    width = max(len(name) for name in after)
    lines = [f"{f'{n} held-out examples':<{width}}   before   after  change"]
    for name, value in after.items():
        was = before[name]
        lines.append(f"{name:<{width}}  {was:7.1%} {value:7.1%} {100 * (value - was):+7.1f}")
    return "\n".join(lines)
