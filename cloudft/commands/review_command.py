"""``cloudft review``."""

from __future__ import annotations

import contextlib
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloudft.commands.common import cloudft_command, open_project, run_argument
from cloudft.output import Output

if TYPE_CHECKING:
    from local.evaluation.document.eval_json import Document
    from local.evaluation.review import Review
    from local.project import Project


@cloudft_command("review")
@run_argument
@click.option("--pairs", type=click.IntRange(min=1), help="Pairs to look at; default: review.pairs, 30.")
@click.option("--seed", type=int, help="Seed of the draw; default: review.seed.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port of the page; default: any free one.")
@click.option("--open", "open_browser", is_flag=True, help="Open the page in the browser.")
@click.option(
    "--export",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Only write the votes as preference pairs for a dpo stage into this file.",
)
def command(
    run_id: str | None,
    out: Output,
    directory: Path,
    pairs: int | None,
    seed: int | None,
    port: int | None,
    open_browser: bool,
    export: Path | None,
) -> None:
    """Compare answers before and after yourself, blind, on a page of this computer.

    Each vote is kept at once: close the page or press Ctrl-C whenever you like, and go on later with the same command.
    """
    from local.config import load_config
    from local.evaluation.review import open_review

    project = open_project(directory)
    config = load_config(project.config_file).review
    count, chosen = pairs or config.pairs, config.seed if seed is None else seed
    review = open_review(project.pick_run(run_id), count, chosen)
    if export is not None:
        _export(review, export, out)
        return
    with contextlib.suppress(KeyboardInterrupt):
        _vote(review, port or 0, open_browser, out)
    _show(project, review, out)


def _vote(review: Review, port: int, open_browser: bool, out: Output) -> None:
    """Serve the page until the person has finished."""
    from local.evaluation.spotcheck.server import ReviewServer

    left = len(review.votes.sample) - len(review.votes.votes)
    with ReviewServer(review.votes, port=port) as server:
        out.note(f"{left} of {len(review.votes.sample)} pairs are open. Compare them here:\n\n  {server.url}\n")
        out.note("keys: ← and → for the better answer, = for no difference, s to skip, u to undo; Ctrl-C stops")
        if out.as_json:
            out.result({"url": server.url, "open": left})
        if open_browser:
            webbrowser.open(server.url)
        while not server.wait(1):
            pass


def _show(project: Project, review: Review, out: Output) -> None:
    from local.evaluation.review import record_review
    from local.report.write import write_report

    document = record_review(review)
    written = write_report(project, review.run)
    check = document.spot_check
    data = {
        "run_id": document.run_id,
        "votes": str(review.votes.path),
        "spot_check": check.model_dump(mode="json") if check else None,
        "judging": document.judging.model_dump(mode="json") if document.judging else None,
    }
    out.result(data, _text(document))
    again = f"cloudft review {document.run_id}"
    if check is None:
        out.next_commands(again)
        return
    missing = check.drawn - len(review.votes.votes)
    out.note(f"\nwritten: {review.votes.path}" + (f"; {missing} pairs are still open" if missing else ""))
    out.note(f"report:  {written.html}")
    preferred = [f"{again} --export pairs.jsonl"] if check.before + check.after else []
    out.next_commands(*([again] if missing else []), *preferred)


def _text(document: Document) -> str:
    check, judging = document.spot_check, document.judging
    said = check.sentence if check else "no vote was given, and none is counted"
    return said + (f"\n{judging.sentence}" if judging else "")


def _export(review: Review, path: Path, out: Output) -> None:
    from cloudft.errors import DataError
    from local.evaluation.votes import preference_pairs, write_preference_pairs

    pairs = preference_pairs(review.votes.sample, review.votes.votes)
    if not pairs:
        raise DataError(
            "no vote prefers an answer yet", effect="nothing was written", hint="vote first:  cloudft review"
        )
    write_preference_pairs(path, pairs)
    out.result({"path": str(path), "pairs": len(pairs)}, f"{len(pairs)} preference pairs: {path}")
    out.note(
        "these are questions of the hold-out. A run with the same hold-out leaves them out of its training, so that it "
        "can still be measured; to train on them, give that run another (data.holdout)"
    )
