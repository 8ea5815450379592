"""``cloudft pull``."""

from __future__ import annotations

from pathlib import Path

import click

from cloudft.commands.common import cloudft_command, follow_to_end, if_interrupted, of_run, open_run, run_argument
from cloudft.output import Output


@cloudft_command("pull")
@run_argument
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait for a run that is still training.")
def command(run_id: str | None, out: Output, directory: Path, wait: bool) -> None:
    """Bring the adapter of a run home, checked by sha256.

    A pull that breaks off goes on where it was when the same command is typed again.
    """
    from local.files import human_bytes
    from local.runs.pull import pull
    from local.runs.stage_report import kept_out, stage_lines

    session = open_run(directory, run_id)
    if wait and not session.observe().ended:
        follow_to_end(session, out)
    stopped = if_interrupted(
        "interrupted", "nothing is half-written; what came so far is kept, and the next pull goes on from there"
    )
    with stopped, out.progress() as progress:
        pulled = pull(session, progress)
    data = {
        "run_id": session.run.run_id,
        "adapter": str(pulled.folder),
        "bytes": pulled.bytes,
        "files": pulled.files,
        "complete": pulled.complete,
        "reason": pulled.reason,
        "already_here": pulled.already_here,
        "stages": list(pulled.stages),
    }
    state = "already here and intact" if pulled.already_here else "checked"
    text = f"adapter of run {session.run.run_id}: {pulled.folder} ({human_bytes(pulled.bytes)}, {state})"
    if not pulled.complete:
        text += f"\nthe training was stopped before its end: {pulled.reason}"
    text += "".join(f"\n  stage {line}" for line in stage_lines(pulled.stages))
    if pulled.stages and len(kept_out(pulled.stages)) == len(pulled.stages):
        text += "\nno stage made the model better, so this is the base: what is served would be what it was"
    out.result(data, text)
    out.next_commands(f"cloudft quantize{of_run(run_id)}")
