"""The one place that prints: results on standard output, everything else on standard error.

``--json`` prints one JSON object per result, ``{"schema_version": 1, "command": …, "data": {…}}``, and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cloudft.errors import CloudftError

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

SCHEMA_VERSION = 1


class Output:
    """Prints for a person, or, with ``as_json``, for a program."""

    def __init__(self, command: str, as_json: bool) -> None:
        self.command = command
        self.as_json = as_json

    def result(self, data: dict[str, Any], text: str = "") -> None:
        """A result: ``data`` for a program, ``text`` for a person."""
        if self.as_json:
            print(
                json.dumps({"schema_version": SCHEMA_VERSION, "command": self.command, "data": data}, default=str),
                flush=True,
            )
        elif text:
            print(text, flush=True)

    def line(self, text: str) -> None:
        """One line of a stream, such as a log."""
        if self.as_json:
            self.result({"line": text})
        else:
            print(text, flush=True)

    def note(self, text: str) -> None:
        """Something said on the way; silent with ``--json``."""
        if not self.as_json:
            print(text, file=sys.stderr, flush=True)

    def next_commands(self, *commands: str) -> None:
        """The commands that a person would type next."""
        if commands:
            self.note("\nnext:\n" + "\n".join(f"  {command}" for command in commands))

    @contextlib.contextmanager
    def progress(self) -> Iterator[LiveProgress]:
        """A live bar on a terminal, one line a piece of work elsewhere, nothing with ``--json``."""
        live = LiveProgress(silent=self.as_json)
        try:
            yield live
        finally:
            live.close()


class LiveProgress:
    """Renders ``local.progress.Progress`` calls."""

    def __init__(self, silent: bool) -> None:
        self._silent = silent
        self._terminal = not silent and sys.stderr.isatty()
        self._bars: Bars | None = None
        self._tasks: dict[str, Any] = {}
        self._last = ""
        self._last_at = 0.0

    def __call__(self, what: str, done: float = 0, total: float | None = None, unit: str = "", note: str = "") -> None:
        if self._terminal:
            self._draw(what, done, total, unit, note)
        elif not self._silent:
            self._say(what, done, total, unit, note)

    def close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _draw(self, what: str, done: float, total: float | None, unit: str, note: str) -> None:
        if self._bars is None:
            self._bars = _bars()
            self._bars.start()
        if what not in self._tasks:
            for task in self._tasks.values():
                self._finish(task)
            self._tasks[what] = self._bars.add_task(what, total=total, note="")
        shown = note or _amount(done, total, unit)
        self._bars.update(self._tasks[what], completed=done, total=total, note=shown)

    def _finish(self, task: Any) -> None:
        assert self._bars is not None
        known = self._bars.tasks[self._bars.task_ids.index(task)]
        total = known.total or 1
        self._bars.update(task, total=total, completed=total)

    def _say(self, what: str, done: float, total: float | None, unit: str, note: str) -> None:
        """Without a terminal: each new piece of work, then at most one line in ten seconds."""
        now = time.monotonic()
        if what == self._last and now - self._last_at < 10:
            return
        self._last, self._last_at = what, now
        amount = note or _amount(done, total, unit)
        print(f"{what}{': ' + amount if amount else ''}", file=sys.stderr, flush=True)


def _bars() -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    return Progress(
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )


def _amount(done: float, total: float | None, unit: str) -> str:
    if not unit and not total:
        return ""
    if unit == "bytes":
        whole = f" of {total / 1e6:.1f}" if total else ""
        return f"{done / 1e6:.1f}{whole} MB"
    whole = f"/{total:g}" if total else ""
    return f"{done:g}{whole} {unit}".rstrip()


def print_error(error: CloudftError, as_json: bool) -> None:
    """What failed, what it means for money and data, what to do next: on standard error."""
    if as_json:
        print(json.dumps(error.as_dict()), file=sys.stderr)
        return
    red, plain = ("\033[31m", "\033[0m") if sys.stderr.isatty() and "NO_COLOR" not in os.environ else ("", "")
    print(f"{red}error:{plain} {error.what}", file=sys.stderr)
    if error.effect:
        print(f"  {error.effect}", file=sys.stderr)
    if error.hint:
        print(f"  next: {error.hint}", file=sys.stderr)
