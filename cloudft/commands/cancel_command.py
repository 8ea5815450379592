"""``cloudft cancel``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloudft.commands.common import cloudft_command, if_interrupted, open_run, run_argument
from cloudft.commands.status_command import describe, next_after
from cloudft.output import Output

if TYPE_CHECKING:
    from local.runs.watch import View


@cloudft_command("cancel")
@run_argument
@click.option("--now", "at_once", is_flag=True, help="End the machine at once; what is not saved yet is lost.")
def command(run_id: str | None, out: Output, directory: Path, at_once: bool) -> None:
    """End a run; what is trained so far is saved, unless --now is given. Cancelling an ended run changes nothing."""
    from local.runs.watch import cancel

    session = open_run(directory, run_id)
    asked = if_interrupted(
        f"no longer waiting for the end of run {session.run.run_id}",
        "it has been told to stop, and goes on only to save what is trained; a rented machine is billed until then",
        "cloudft status    or without waiting for that:  cloudft cancel --now",
    )
    with asked, out.progress() as progress:
        for view in cancel(session, at_once):
            progress("stop and save", note=f"{view.phase}{'' if at_once else _while_silent(view)}")
    out.result(view.as_dict(), describe(view))
    out.next_commands(*next_after(view, run_id))


def _while_silent(view: View) -> str:
    """What to do instead of waiting for a machine that has told nothing yet, and so has nothing to save."""
    if view.ended or view.heartbeat_age is not None:
        return ""
    return "; it has told nothing yet: not to wait for it, Ctrl-C, then  cloudft cancel --now"
