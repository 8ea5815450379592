"""``cloudft report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cloudft.commands.common import cloudft_command, open_project, run_argument
from cloudft.output import Output

if TYPE_CHECKING:
    from local.report.write import Written


@cloudft_command("report")
@run_argument
@click.option("--open", "show", is_flag=True, help="Open report.html in the browser.")
def command(run_id: str | None, out: Output, directory: Path, show: bool) -> None:
    """Write the report of a run: report.html, report.md, the model card and the dataset card.

    It is made from the files in the run's folder alone, and can be made again at any time. A run that was not
    evaluated gets a report that says so.
    """
    from local.report.write import write_report

    project = open_project(directory)
    written = write_report(project, project.pick_run(run_id))
    out.result(as_data(written), f"{written.headline}\nreport: {written.html}")
    out.note("beside it: " + ", ".join(name for name in written.files if name != written.html.name))
    if show and click.launch(written.html.as_uri()) != 0:
        out.note("no browser could be opened here; open the file yourself")


def as_data(written: Written) -> dict[str, Any]:
    """What ``--json`` prints of a report."""
    report = written.report
    return {
        "run_id": report.run_id,
        "verdict": report.verdict,
        "headline": written.headline,
        "folder": str(written.folder),
        "html": str(written.html),
        "files": list(written.files),
        "unmeasured": list(report.unmeasured),
    }
