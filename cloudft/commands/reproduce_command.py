"""``cloudft reproduce``."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloudft.commands.common import PROVIDERS, budget_option, cloudft_command, goes_on, if_interrupted, open_project
from cloudft.commands.diff_command import describe
from cloudft.commands.submit_command import begun, hand_over, interruptible, show_quote, watch_to_success
from cloudft.errors import Interrupted, UsageError
from cloudft.output import Output

if TYPE_CHECKING:
    from local.config import ProviderName
    from local.planning.quote import Quote
    from local.project import Project, RunFolder
    from local.runs.reproduce import Plan


@cloudft_command("reproduce")
@click.argument("run_id", metavar="RUN")
@click.option("--provider", type=click.Choice(PROVIDERS), help="Where to train; default: where the run was trained.")
@click.option("--gpu", multiple=True, help="GPU to rent; several: in order of preference.")
@budget_option
@click.option("--yes", is_flag=True, help="Rent without asking.")
@click.option("--detach", is_flag=True, help="Return when the training has begun, without the comparison.")
def command(
    run_id: str,
    out: Output,
    directory: Path,
    provider: ProviderName | None,
    gpu: tuple[str, ...],
    budget: float | None,
    yes: bool,
    detach: bool,
) -> None:
    """Repeat a run from its run.lock.json, and say how the numbers differ.

    The same spec under a new name: rows, task and base are compared by sha256 first, and nothing is rented if one is
    missing or was changed. Then it goes as far as the run went: trained, pulled, quantised, measured.
    """
    from local.config import Wanted
    from local.runs.reproduce import plan_reproduction, reproduce
    from local.runs.session import open_session

    project = open_project(directory)
    old = project.pick_run(run_id)
    with interruptible(project), out.progress() as progress:
        plan = plan_reproduction(project, old, Wanted(provider=provider, gpu=gpu, budget=budget), progress)
        submitted = reproduce(project, plan, progress, _asking(plan, yes, out))
    session = open_session(project, submitted.run)
    with _compared_later(old, submitted.run), goes_on(session, "no longer watching"):
        out.note("\n".join([f"run {old.run_id} again", *(f"  differs     {text}" for text in plan.differences)]))
        out.note(begun(submitted))
        if submitted.command is not None:
            hand_over(submitted, submitted.command, out)
            return
        if detach:
            out.result({"run_id": submitted.run.run_id, "of": old.run_id}, submitted.run.run_id)
            out.next_commands("cloudft status --follow", f"cloudft diff {old.run_id} {submitted.run.run_id}")
            return
        watch_to_success(session, out)
    _finish(project, plan, submitted.run, out)


def _asking(plan: Plan, yes: bool, out: Output) -> Callable[[Quote], None]:
    """Show what it would cost, and ask. A run that costs nothing needs no answer."""

    def agree(quoted: Quote) -> None:
        show_quote(quoted, out)
        if quoted.budget_usd is None or yes:
            return
        if out.as_json or not sys.stdin.isatty():
            raise UsageError(
                f"repeating run {plan.lock.run_id} rents a machine for up to ${quoted.budget_usd:.2f}, "
                "and nobody is here to ask",
                effect="nothing was rented",
                hint=f"cloudft reproduce {plan.lock.run_id} --yes",
            )
        if not click.confirm(f"Rent a machine for up to ${quoted.budget_usd:.2f}?", err=True):
            raise UsageError("not confirmed", effect="nothing was rented")

    return agree


@contextlib.contextmanager
def _compared_later(old: RunFolder, run: RunFolder) -> Iterator[None]:
    """Ctrl-C during the training: say besides how to come to the comparison."""
    try:
        yield
    except Interrupted as exc:
        steps = (f"{name} {run.run_id}" for name in ("pull", "quantize", "eval", f"diff {old.run_id}"))
        exc.hint += "    when it has ended:  " + " && ".join(f"cloudft {step}" for step in steps)
        raise


def _finish(project: Project, plan: Plan, run: RunFolder, out: Output) -> None:
    """Take what was trained as far as the old run went, and compare."""
    from local.runs.compare import diff_runs
    from local.runs.reproduce import complete

    old = project.run(plan.lock.run_id)
    unharmed = if_interrupted("interrupted", "the new run is trained; nothing is lost", f"cloudft pull {run.run_id}")
    with unharmed, out.progress() as progress:
        complete(project, plan, run, progress)
    found = diff_runs(project, old, run, time.time())
    data = {"run_id": run.run_id, "of": old.run_id, "differences": list(plan.differences), "diff": found.as_dict()}
    out.result(data, describe(found))
    out.note(f"\nwhat is served is what it was; to serve this one:  cloudft quantize {run.run_id}")
    out.next_commands(f"cloudft report {run.run_id}")
