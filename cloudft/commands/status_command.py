"""``cloudft status``."""

from __future__ import annotations

from pathlib import Path
from time import gmtime, strftime
from typing import TYPE_CHECKING, Any

import click

from cloudft.commands.common import (
    can_draw,
    cloudft_command,
    duration,
    follow_to_end,
    gpu_note,
    of_run,
    open_project,
    open_run,
    run_argument,
    training_note,
)
from cloudft.errors import CloudftError
from cloudft.output import Output
from cloudft.sparkline import sparkline

if TYPE_CHECKING:
    from local.runs.watch import View


@cloudft_command("status")
@run_argument
@click.option("-f", "--follow", is_flag=True, help="Watch until the run has ended.")
@click.option("--all", "show_all", is_flag=True, help="One line for every run of this project.")
def command(run_id: str | None, out: Output, directory: Path, follow: bool, show_all: bool) -> None:
    """Show where a run stands, what it costs and what survives if it stops now."""
    from local.runs.watch import draw_loss, look

    if show_all:
        _all(out, directory)
        return
    session = open_run(directory, run_id)
    view = follow_to_end(session, out) if follow else look(session)
    picture = draw_loss(session)
    text = describe(view) + (f"\n  picture     {picture}" if picture else "")
    out.result({**view.as_dict(), "loss_picture": picture}, text)
    out.next_commands(*next_after(view, run_id))


def _all(out: Output, directory: Path) -> None:
    from local.runs.watch import look

    views: list[dict[str, Any]] = []
    lines: list[str] = []
    for run_id in open_project(directory).run_ids():
        try:
            view = look(open_run(directory, run_id))
        except CloudftError as exc:
            # One run whose store is away must not hide the others.
            views.append({"run_id": run_id, "error": exc.what})
            lines.append(f"{run_id}  unknown     {exc.what}")
            continue
        views.append(view.as_dict())
        lines.append(f"{run_id}  {view.status:<10}  {training_note(view)}".rstrip())
    out.result({"runs": views}, "\n".join(lines) or "no runs yet")


def describe(view: View) -> str:
    """A run in some lines, and one for each stage that has ended."""
    from local.runs.stage_report import stage_lines

    state = view.status + (f" ({view.reason})" if view.reason else "")
    lines = [f"run {view.run_id}: {state}"]
    if not view.ended:
        lines.append(f"  phase       {_phase(view)}")
    if view.progress.get("step"):
        lines.append(f"  training    {training_note(view)}")
    if len(view.losses) > 1 and can_draw():
        lines.append(f"  loss        {sparkline(view.losses)}  {view.losses[0]:.4g} → {view.losses[-1]:.4g}")
    if busy := gpu_note(view):
        lines.append(f"  GPU         {busy}")
    lines += [f"  stage       {line}" for line in stage_lines(view.stages)]
    if not view.ended and view.deadline:
        lines.append(f"  ends        {strftime('%Y-%m-%d %H:%M UTC', gmtime(view.deadline))} at the latest")
    lines.append(f"  money       {money(view)}")
    lines += [f"  image       {built_there(view.build)}"] if view.build else []
    lines += [f"  refused     {refusal}" for refusal in view.refusals]
    lines += [f"  receipt     {line}" for line in receipts(view)]
    lines.append(f"  survives    {view.survives}")
    return "\n".join(lines)


def _phase(view: View) -> str:
    if view.heartbeat_age is not None:
        return f"{view.phase}, last heartbeat {view.heartbeat_age:.0f} s ago"
    return "waits for the command to be run on a machine of yours" if view.provider == "manual" else view.phase


def built_there(build: dict[str, Any]) -> str:
    """The training image that a provider built for a run."""
    usd = build["seconds"] * build["rate_usd"] / 3600
    return f"{build['image']}, ready at {build['provider']} in {duration(build['seconds'])}, counted as ${usd:.2f}"


def receipts(view: View) -> list[str]:
    """One line for each machine that is gone: how long, what it cost at most, and where the time went."""
    lines = []
    for attempt in view.attempts:
        receipt = attempt["receipt"]
        if receipt is None or view.budget_usd is None:
            continue
        rate = receipt["rate_usd"]
        told = ", ".join(
            f"{name} {duration(seconds)} ${seconds * rate / 3600:.2f}" for name, seconds in receipt["phases"].items()
        )
        resumed = f" from step {receipt['resumed_from']} on" if receipt["resumed_from"] else ""
        lines.append(
            f"attempt {attempt['number']}{resumed}, {attempt['offer']['name']}, {_machine(receipt)}, gone: "
            f"{duration(receipt['seconds'])} at ${rate:.2f}/h ({receipt['price_source']}) = ${receipt['usd']:.2f} "
            f"at most{_told(receipt)} ({told}{_around(receipt)})"
        )
    return lines


def _machine(receipt: dict[str, Any]) -> str:
    """A machine that was never seen is counted all the same, for as long as it might have been there."""
    return f"machine {receipt['machine_id']}" if receipt["machine_id"] else "a machine that was never seen"


def _told(receipt: dict[str, Any]) -> str:
    """The machine's own account of its end, where we saw it gone only much later."""
    seconds = receipt["told_seconds"]
    if seconds is None or receipt["seconds"] - seconds < 120:
        return ""
    return f"; by its own account it ended after {duration(seconds)} = ${seconds * receipt['rate_usd'] / 3600:.2f}"


def _around(receipt: dict[str, Any]) -> str:
    """How long its container was there before the first step, and the machine after the last one."""
    before, after = receipt["to_first_step"], receipt["after_last_step"]
    told = [f"{duration(before)} from the container's start to the first step"] if before is not None else []
    told += [f"{duration(after)} from the last step to the end"] if after is not None else []
    return "".join(f"; {each}" for each in told)


def money(view: View) -> str:
    """Spent, worst case and whether it is being billed, in one line."""
    if view.provider == "manual":
        return "what your machine costs is not known here, and no budget holds there"
    billed = "you are being billed now" if view.billed_now else "you are not being billed"
    if view.budget_usd is None:
        return f"worst case $0.00; {billed}"
    bound = f"of the budget of ${view.budget_usd:.2f}"
    return f"spent at most ${view.spent_usd:.2f}, worst case ${view.worst_case_usd:.2f} {bound}; {billed}"


def ended_message(view: View) -> str:
    """One line for a run that has ended with an adapter, and one for each of its stages."""
    from local.runs.stage_report import stage_lines

    trained = training_note(view)
    reason = f" ({view.reason})" if view.reason else ""
    stages = "".join(f"\n  stage       {line}" for line in stage_lines(view.stages))
    return f"run {view.run_id} {view.status}{reason}{': ' + trained if trained else ''}; {view.survives}{stages}"


def next_after(view: View, run_id: str | None = None) -> tuple[str, ...]:
    """The commands that follow the state of a run; ``run_id``: as it was typed, if it was."""
    of = of_run(run_id)
    if not view.ended:
        return (f"cloudft status{of} --follow", f"cloudft logs{of} -f", f"cloudft cancel{of}")
    if view.evaluated:
        return ("cloudft serve",)
    if view.quantized:
        return (f"cloudft eval{of}", "cloudft serve")
    if view.pulled:
        return (f"cloudft quantize{of}",)
    if view.status in ("completed", "stopped") and "adapter" in view.survives and "no adapter" not in view.survives:
        return (f"cloudft pull{of} && cloudft quantize{of}",)
    if all(attempt["state"] == "refused" for attempt in view.attempts):
        return ("cloudft offers", "cloudft submit") if view.budget_usd is not None else ("cloudft submit",)
    return (f"cloudft logs{of}", "cloudft submit")
