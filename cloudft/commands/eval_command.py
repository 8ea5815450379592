"""``cloudft eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloudft.commands.common import cloudft_command, if_interrupted, open_project, run_argument
from cloudft.commands.eval_more import More, measure_more, more_options, more_text
from cloudft.output import Output

if TYPE_CHECKING:
    from local.evaluation.document import Document, Estimate, Metric


@cloudft_command("eval")
@run_argument
@click.option("--limit", type=click.IntRange(min=1), help="Use only the first rows of the hold-out.")
@click.option(
    "--repeat", type=click.IntRange(min=1), default=1, help="Ask each row so often, each time with a new seed."
)
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, help="0, the default, decodes greedily.")
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
    from local.evaluation.endpoint import other_endpoint
    from local.evaluation.evaluate import evaluate_run
    from local.evaluation.measuring import Settings
    from local.report.write import write_report

    project = open_project(directory)
    run = project.pick_run(run_id)
    more.check(endpoint)
    settings = Settings(limit, repeat, temperature, seed, workers, use_cache=not no_cache)
    unharmed = if_interrupted(
        "interrupted", "no result was written; an earlier evaluation is unchanged", "cloudft eval"
    )
    with unharmed, out.progress() as progress:
        against = other_endpoint(endpoint, model, key_env)
        found = evaluate_run(project, run, progress=progress, settings=settings, against=against)
    document = found.document
    try:
        if against is None:
            document = measure_more(project, run, document, settings, more, out)
    finally:
        # Also of what was measured before a judge was declined or a key pressed.
        written = write_report(project, run)
    out.result(document.as_dict(), evaluation_text(document) + more_text(document))
    out.note(f"\nwritten: {found.record}\nreport:  {written.html}")
    out.next_commands("docker compose up serve    (or: cloudft serve)")


def evaluation_text(document: Document) -> str:
    """The numbers side by side with their intervals, the sentence, and what to know before believing it."""
    names = document.metrics
    width = max(len(name) for name in (*names, "held-out examples"))
    head = f"{f'{document.n} held-out examples':<{width}}  {'before':>21}  {'after':>21}  {'change':>8}"
    lines = [head]
    for name, about in names.items():
        was, now = (_shown(about, side.metrics[name]) for side in document.sides.values())
        found = document.comparisons[name]
        change = f"{100 * found.change:+.1f}" if about.unit == "share" else f"{found.change:+.3f}"
        mark = {"better": " *", "worse": " *", "undecided": ""}[found.outcome]
        lines.append(f"{name:<{width}}  {was:>21}  {now:>21}  {change:>8}{mark}")
    lines.append("[95 % interval]  * more than chance explains")
    lines += ["", document.verdict.sentence]
    # What the sentence says already is not said twice.
    lines += [f"note: {warning.text}" for warning in document.warnings if warning.code not in ("worse", "regression")]
    return "\n".join(lines)


def _shown(about: Metric, estimate: Estimate) -> str:
    value, low, high = estimate.value, estimate.low, estimate.high
    if about.unit == "share":
        return f"{value:.1%} [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
