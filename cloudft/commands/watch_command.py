"""``cloudft watch``."""

from __future__ import annotations

from pathlib import Path

from cloudft.commands.common import cloudft_command, follow_to_end, open_run, run_argument
from cloudft.commands.status_command import describe, next_after
from cloudft.output import Output


@cloudft_command("watch")
@run_argument
def command(run_id: str | None, out: Output, directory: Path) -> None:
    """Watch a run to its end, and do what it needs.

    Ends a machine that is overdue, never boots or is dearer than quoted, rents the next one after a preemption if
    the budget still pays for it, and writes a receipt for every machine that is gone. `cloudft submit` does the
    same while it watches; start this one when that was interrupted.
    """
    view = follow_to_end(open_run(directory, run_id), out, may_rent=True)
    out.result(view.as_dict(), describe(view))
    out.next_commands(*next_after(view, run_id))
