"""``cloudft eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloudft.commands.common import FiniteRange, cloudft_command, if_interrupted, of_run, open_project, run_argument
from cloudft.commands.eval_more import More, check_judge, estimate_text, measure_more, more_options, more_text
from cloudft.errors import CloudftError
from cloudft.output import Output

if TYPE_CHECKING:
    from local.evaluation.document.eval_json import Document
    from local.evaluation.document.measurement import Metric


@cloudft_command("eval")
@run_argument
@click.option("--limit", type=click.IntRange(min=1), help="Use only the first rows of the hold-out.")
@click.option(
    "--repeat", type=click.IntRange(min=1), default=1, help="Ask each row so often, each time with a new seed."
)
@click.option("--temperature", type=FiniteRange(min=0), default=0.0, help="0, the default, decodes greedily.")
@click.option("--seed", type=int, default=0, help="Seed of the first repeat, where the temperature is above 0.")
@click.option(
    "--workers", type=click.IntRange(min=1), help="Requests at the same time; default: what the server takes."
)
@click.option("--no-cache", is_flag=True, help="Ask all again, and keep no answer.")
@click.option(
    "--endpoint", metavar="URL", help="Measure the model at this OpenAI-compatible address in place of the base."
)
@click.option("--model", metavar="NAME", help="The model's name there.")
@click.option("--key-env", metavar="VARIABLE", help="Environment variable with the key of that endpoint.")
@more_options
def command(
    run_id: str | None,
    out: Output,
    directory: Path,
    limit: int | None,
    repeat: int,
    temperature: float,
    seed: int,
    workers: int | None,
    no_cache: bool,
    endpoint: str | None,
    model: str | None,
    key_env: str | None,
    more: More,
) -> None:
    """Measure before and after on the hold-out, each model quantised and served alike."""
    from local.config import load_config
    from local.evaluation.address import other_endpoint
    from local.evaluation.evaluate import evaluate_run
    from local.evaluation.measuring import Settings
    from local.evaluation.task import read_task
    from local.report.write import write_report

    project = open_project(directory)
    run = project.pick_run(run_id)
    more.check(endpoint)
    if endpoint is None:
        check_judge(more, load_config(project.config_file), read_task(run.task).kind)
    settings = Settings(limit, repeat, temperature, seed, workers, use_cache=not no_cache)
    unharmed = if_interrupted(
        "interrupted", "no result was written; an earlier evaluation is unchanged", "type the same command again"
    )
    with unharmed, out.progress() as progress:
        against = other_endpoint(endpoint, model, key_env)
        found = evaluate_run(project, run, progress=progress, settings=settings, against=against)
    document = found.document
    try:
        if against is None:
            document = measure_more(project, run, document, settings, more, out)
    except CloudftError:
        out.note(f"\n{evaluation_text(document)}\n")
        raise
    finally:
        # Also of what was measured before a judge was declined or a key pressed.
        written = write_report(project, run)
    out.result(document.as_dict(), evaluation_text(document) + more_text(document))
    out.note(f"\nwritten: {found.record}\nreport:  {written.html}")
    if document.verdict.outcome == "better":
        out.next_commands("docker compose up serve    (or: cloudft serve)")
    else:
        # Nothing to serve yet: first the rows that tell why.
        out.next_commands(f"cloudft report{of_run(run_id)} --open")


def evaluation_text(document: Document) -> str:
    """The numbers side by side with their intervals, the sentence, and what to know before believing it."""
    names = document.metrics
    other = document.sides["before"].model
    sides = ("before", "after") if other.url is None else (other.name, "tuned")
    rows = [(f"{document.n} held-out examples", *sides, "change", "")]
    for name, about in names.items():
        was, now = (estimate_text(about, side.metrics[name]) for side in document.sides.values())
        found = document.comparisons[name]
        mark = {"better": " *", "worse": " *", "undecided": ""}[found.outcome]
        rows.append((name, was, now, _signed(about, found.change), mark))
    first, *others = (max(len(row[place]) for row in rows) for place in range(4))
    lines = [
        f"{name:<{first}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, others, strict=True)) + mark
        for name, *cells, mark in rows
    ]
    lines.append("[95% interval]  * more than chance explains")
    lines += ["", document.verdict.sentence]
    # What the sentence says already is not said twice.
    lines += [f"note: {warning.text}" for warning in document.warnings if warning.code not in ("worse", "regression")]
    return "\n".join(lines)


def _signed(about: Metric, change: float) -> str:
    """A change: of a share in points of a hundred."""
    return (
        f"{100 * change:+.1f}" if about.unit == "share" else f"{change:{'+.3f' if about.unit == 'ratio' else '+.4g'}}"
    )
