"""``cloudft logs``."""

from __future__ import annotations

from pathlib import Path

import click

from cloudft.commands.common import cloudft_command, if_interrupted, open_run, run_argument
from cloudft.output import Output


@cloudft_command("logs")
@run_argument
@click.option("-f", "--follow", is_flag=True, help="Go on printing until the run has ended.")
def command(run_id: str | None, out: Output, directory: Path, follow: bool) -> None:
    """Print the log of a run: the supervisor's and the trainer's lines."""
    from local.runs.watch import log_lines

    session = open_run(directory, run_id)
    goes_on = "the training goes on by itself" if follow else "the run is not touched"
    with if_interrupted("no longer reading the log", goes_on, "cloudft status"):
        for line in log_lines(session, follow):
            out.line(line)
