"""What the commands share: their common options, the run they mean, and what Ctrl-C says."""

from __future__ import annotations

import contextlib
import functools
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from time import gmtime, strftime
from typing import TYPE_CHECKING, Any

import click

from cloudft.errors import Interrupted
from cloudft.output import Output
from cloudft.sparkline import sparkline

if TYPE_CHECKING:
    from local.project import Project
    from local.runs.session import Session
    from local.runs.watch import View


def cloudft_command(name: str) -> Callable[[Callable[..., None]], click.Command]:
    """A command with ``--json`` and ``--directory``; the function gets ``out: Output`` and ``directory: Path``."""

    def decorate(function: Callable[..., None]) -> click.Command:
        @click.command(name)
        @click.option("--json", "as_json", is_flag=True, help="Print one JSON object for a program.")
        @click.option(
            "-C",
            "--directory",
            type=click.Path(path_type=Path, file_okay=False),
            default=Path(),
            help="Work as if started in this folder.",
        )
        @functools.wraps(function)
        def wrapped(*args: Any, as_json: bool, directory: Path, **kwargs: Any) -> None:
            function(*args, out=Output(name, as_json), directory=directory, **kwargs)

        return wrapped

    return decorate


# In words: the command line is shown without loading the packages that know them. A test holds them together.
RENTERS = ("runpod", "modal")
PROVIDERS = ("local", "docker", *RENTERS, "auto", "manual")


class FiniteRange(click.FloatRange):
    """A range without nan, which is neither in nor out of any other, and without infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is no number that can be reckoned with", param, ctx)
        return number


max_rate_option = click.option(
    "--max-rate",
    type=FiniteRange(min=0, min_open=True),
    help="Most dollars per hour; stands in for a price that the provider does not tell.",
)


def _dollars(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise click.BadParameter("a budget is a number of dollars above 0, such as 5 or 2.50")
    return value


budget_option = click.option(
    "--budget", type=float, callback=_dollars, metavar="USD", help="Most dollars that the run may cost."
)
run_argument = click.argument("run_id", metavar="[RUN]", required=False)


def of_run(run_id: str | None) -> str:
    """What follows a command that is proposed next: the run that was named. None named is the latest, as there."""
    return f" {run_id}" if run_id else ""


def open_project(directory: Path) -> Project:
    from local.project import find_project

    return find_project(directory)


def open_run(directory: Path, run_id: str | None) -> Session:
    """The run that a command means: the one named, or the latest."""
    from local.runs.session import open_session

    project = open_project(directory)
    return open_session(project, project.pick_run(run_id))


@contextlib.contextmanager
def if_interrupted(what: str, effect: str, hint: str = "") -> Iterator[None]:
    """Say at Ctrl-C what goes on running, what it costs, and how to come back to it."""
    try:
        yield
    except KeyboardInterrupt as exc:
        raise Interrupted(what, effect=effect, hint=hint) from exc


@contextlib.contextmanager
def goes_on(session: Session, what: str) -> Iterator[None]:
    """Say at Ctrl-C that the run goes on by itself, whether it is billed, and when that ends at the latest."""
    from local.runs.watch import billed_now

    try:
        yield
    except KeyboardInterrupt as exc:
        record = session.record()
        effect = "the training goes on by itself; on this computer it costs nothing"
        back = "cloudft status --follow"
        if billed_now(record):
            end = strftime("%Y-%m-%d %H:%M UTC", gmtime(record.attempt.deadline))
            effect = (
                f"the training goes on by itself and you are being billed: ${record.worst_case():.2f} at most; "
                f"the machine ends itself by {end}"
            )
            back = "cloudft watch"
        raise Interrupted(
            f"{what} run {record.run_id}", effect=effect, hint=f"{back}    or end it:  cloudft cancel"
        ) from exc


def follow_to_end(session: Session, out: Output, may_rent: bool = False) -> View:
    """Watch a run with a live bar until it has ended; Ctrl-C leaves it running. ``may_rent``: the next machine too."""
    from local.runs.watch import follow

    session = replace(session, may_rent=may_rent)
    view: View | None = None
    with goes_on(session, "no longer watching"), out.progress() as progress:
        for view in follow(session):
            now = view.progress
            progress(view.phase, now.get("step") or 0, now.get("max_steps"), "steps", live_note(view, _room()))
    assert view is not None
    return view


def training_note(view: View) -> str:
    """Step, loss, speed and time left, in one short text."""
    now = view.progress
    if not now.get("step"):
        return view.reason
    parts = (
        _stage(now),
        _step(now),
        _shortened(now),
        _loss(now),
        _best(view),
        _in_pieces(now),
        _speed(view),
        _left(view),
    )
    return ", ".join(filter(None, parts))


def _stage(now: dict[str, Any]) -> str:
    return f"stage {now['stage']}" if now.get("stage") else ""


def _step(now: dict[str, Any]) -> str:
    return f"step {now['step']}/{now.get('max_steps', '?')}"


def _shortened(now: dict[str, Any]) -> str:
    before = now.get("shortened_from")
    return f"shortened from {before} to {now['max_steps']} steps to fit the budget" if before else ""


def _best(view: View) -> str:
    told = view.evaluation
    if not told.get("best_step"):
        return ""
    return f"best so far step {told['best_step']}, validation loss {told['best_loss']:.4f}"


def _in_pieces(now: dict[str, Any]) -> str:
    return f"micro-batches in {now['pieces']} pieces for want of memory" if now.get("pieces") else ""


def _loss(now: dict[str, Any]) -> str:
    return f"loss {now['loss']:.4f}" if now.get("loss") is not None else ""


def _speed(view: View) -> str:
    return f"{view.tokens_per_second:,.0f} tokens/s" if view.tokens_per_second is not None else ""


def _left(view: View) -> str:
    seconds = view.progress.get("eta_s")
    return "" if seconds is None or view.ended else f"{duration(seconds)} left"


def live_note(view: View, width: int | None = None) -> str:
    """``training_note`` with what changes while one watches: the loss as bars, the money, the GPU.

    What matters least is left out where it does not fit ``width`` characters; None: it always fits.
    """
    now = view.progress
    if not now.get("step"):
        return view.reason
    bars = sparkline(view.losses, 12) if view.losses and can_draw() else ""
    money = f"${view.spent_usd:.2f} of ${view.budget_usd:.2f}" if view.budget_usd is not None else ""
    parts = [_step(now), _loss(now), bars, _speed(view), _left(view), money, gpu_note(view, short=True)]
    for least in (3, 6, 2, 5, 4):
        if width is None or len("  ".join(filter(None, parts))) <= width:
            break
        parts[least] = ""
    return "  ".join(filter(None, parts))


def _room() -> int | None:
    """Characters for a note beside a live bar; None where there is no terminal."""
    beside = 52  # spinner, phase, bar, clock
    return max(shutil.get_terminal_size().columns - beside, 20) if sys.stderr.isatty() else None


def gpu_note(view: View, short: bool = False) -> str:
    """How busy the machine's GPU is; "" where no machine tells."""
    told = view.gpu
    busy, used, total = (told.get(key) for key in ("utilisation", "memory_bytes", "memory_total_bytes"))
    if view.ended or busy is None:
        return ""
    if short:
        return f"GPU {busy:.0f} %"
    count = f"{told['cards']} x " if told.get("cards", 1) > 1 else ""
    memory = f", {used / 1e9:.1f} of {total / 1e9:.1f} GB" if used and total else ""
    return f"{count}{told.get('name', 'GPU')}, {busy:.0f} % busy{memory}"


def can_draw() -> bool:
    """Whether this terminal, or what stands in its place, takes more than ASCII."""
    # A live bar stands in for the stream while it is drawn, and does not know its encoding.
    known = sys.stdout.encoding or getattr(sys.__stdout__, "encoding", None) or ""
    return known.lower().startswith("utf")


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
