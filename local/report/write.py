"""``runs/<id>/report/``: all files of a report, or the ones that were there before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from local.files import atomic_folder, write_text
from local.project import Project, RunFolder
from local.report.collect import collect
from local.report.model import Report
from local.report.render import render
from local.report.view import headline

HTML = "report.html"


@dataclass(frozen=True)
class Written:
    """A report that is written. ``files`` by name."""

    folder: Path
    files: tuple[str, ...]
    headline: str
    report: Report

    @property
    def html(self) -> Path:
        return self.folder / HTML


def write_report(project: Project, run: RunFolder) -> Written:
    """Write the report of a run from what lies in its folder, in place of an older one.

    Raises:
        CloudftError: as ``collect``; the older report is then as it was.
        OSError: the folder cannot be written; the same.
    """
    report = collect(project, run)
    files = render(report)
    with FileLock(run.root / ".report.lock"):
        _replace(run.report, files)
    return Written(run.report, tuple(sorted(files)), headline(report), report)


def _replace(folder: Path, files: dict[str, str]) -> None:
    """Put the new folder in place of the old one when it is whole."""
    with atomic_folder(folder) as fresh:
        for name, text in files.items():
            # Half a surrogate pair, which a model can answer with, has no place in UTF-8.
            write_text(fresh / name, text.encode("utf-8", "replace").decode())
