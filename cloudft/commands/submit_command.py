"""``cloudft submit``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from time import gmtime, strftime
from typing import TYPE_CHECKING

import click

from cloudft.commands.common import (
    PROVIDERS,
    budget_option,
    cloudft_command,
    follow_to_end,
    goes_on,
    max_rate_option,
    open_project,
)
from cloudft.commands.quotes import memory_line, quote_table
from cloudft.commands.status_command import built_there, ended_message, money, next_after
from cloudft.errors import Interrupted, RunFailed
from cloudft.output import Output

if TYPE_CHECKING:
    from jobs.spec import RunSpec
    from local.config import ProviderName
    from local.planning.quote import Quote
    from local.project import Project
    from local.runs.session import Session
    from local.runs.submit import Submitted
    from local.runs.watch import View


@cloudft_command("submit")
@click.option("--provider", type=click.Choice(PROVIDERS), help="Where to train.")
@click.option("--gpu", multiple=True, help="GPU to rent (A10G, 24GB, H100:2); several: in order of preference.")
@budget_option
@click.option("--spot/--on-demand", default=None, help="Rent interruptible machines, which are cheaper.")
@max_rate_option
@click.option("--detach", is_flag=True, help="Return at once instead of watching the training.")
def command(
    out: Output,
    directory: Path,
    provider: ProviderName | None,
    gpu: tuple[str, ...],
    budget: float | None,
    spot: bool | None,
    max_rate: float | None,
    detach: bool,
) -> None:
    """Start a fine-tune of this project.

    Checks config, data, base and store first; nothing is started when one of them is wrong. Then watches the
    training. Ctrl-C stops the watching, not the training.
    """
    project = open_project(directory)
    from local.config import Wanted
    from local.runs.session import open_session
    from local.runs.submit import submit

    wanted = Wanted(provider=provider, gpu=gpu, budget=budget, spot=spot, max_rate=max_rate)
    with interruptible(project), out.progress() as progress:
        submitted = submit(project, wanted, progress, lambda quoted: show_quote(quoted, out))
    session = open_session(project, submitted.run)
    with goes_on(session, "no longer watching"):
        out.note(begun(submitted))
        if submitted.command is not None:
            hand_over(submitted, submitted.command, out)
            return
        if detach:
            data = {"run_id": submitted.run.run_id, "status": submitted.record.status, **_found(submitted)}
            out.result(data, submitted.run.run_id)
            out.next_commands(*_after_detach(submitted))
            return
        view = watch_to_success(session, out)
    out.result({**view.as_dict(), **_found(submitted)}, ended_message(view))
    out.next_commands(*next_after(view))


def watch_to_success(session: Session, out: Output) -> View:
    """Watch a run that was just begun to its end.

    Raises:
        RunFailed: it ended without an adapter.
    """
    view = follow_to_end(session, out, may_rent=True)
    if view.status not in ("completed", "stopped"):
        raise RunFailed(
            f"run {view.run_id} {view.status}: {view.reason}",
            effect=f"{money(view)}; {view.survives}",
            hint="see why:  cloudft logs",
        )
    return view


def show_quote(quoted: Quote, out: Output) -> None:
    """The table of offers, before money moves."""
    if quoted.lines:
        out.note(quote_table(quoted))


def begun(submitted: Submitted) -> str:
    spec, attempt = submitted.spec, submitted.record.attempt
    end = strftime("%Y-%m-%d %H:%M UTC", gmtime(attempt.deadline))
    return (
        f"run {submitted.run.run_id}\n"
        f"  base        {spec.base.id} at {spec.base.revision[:12]}\n"
        f"  data        {spec.data.train_rows} rows to train, {spec.data.validation_rows} to measure stages, "
        f"{spec.data.holdout_rows} held out\n"
        f"{_notes(submitted)}"
        f"{_labels(submitted)}"
        f"{_stages(spec)}"
        f"{_memory(submitted)}"
        f"  machine     {_machine(submitted)}\n"
        f"{_image(submitted)}"
        f"  ends        {end} at the latest\n"
        f"  worst case  {_worst_case(submitted)}\n"
        f"  survives    nothing is trained yet; from the first step on, a stop saves the adapter"
    )


def _stages(spec: RunSpec) -> str:
    """A line for each stage."""
    return "".join(
        f"  training    {stage.kind} {stage.method}, {stage.max_steps} steps of "
        f"{stage.batch_size * stage.gradient_accumulation} {'blocks' if stage.packing else 'rows'}, "
        f"learning rate {stage.learning_rate:g}\n"
        for stage in spec.stages
    )


def _found(submitted: Submitted) -> dict[str, object]:
    """For a program: what was found out before the machine was started."""
    audit, need = submitted.preview.audit.audit, submitted.quote.memory
    return {
        "audit": audit.as_dict() if audit else None,
        "notes": list(submitted.notes),
        "memory_bytes": asdict(need) if need else None,
    }


def _labels(submitted: Submitted) -> str:
    """What the label audit found."""
    first, *rest = submitted.preview.audit.lines()
    return f"  labels      {first}\n" + "".join(f"              {line}\n" for line in rest)


def _notes(submitted: Submitted) -> str:
    return "".join(f"              {note}\n" for note in submitted.notes)


def _memory(submitted: Submitted) -> str:
    """What a card must have, where the table of offers has not said it."""
    quoted = submitted.quote
    if quoted.memory is None or quoted.lines or submitted.record.provider == "local":
        return ""
    return f"  estimate    {memory_line(quoted)}\n"


def _machine(submitted: Submitted) -> str:
    offer = submitted.record.attempt.offer
    if submitted.quote.budget_usd is None:
        return f"{offer.provider}: {offer.name}"
    return f"{offer.provider} {offer.name}, {offer.why}; rule: {submitted.quote.rule}"


def _image(submitted: Submitted) -> str:
    build = submitted.record.build
    return f"  image       {built_there(build.model_dump())}\n" if build else ""


def _worst_case(submitted: Submitted) -> str:
    if submitted.record.provider == "manual":
        return "not known here: it is your machine, and no budget holds there"
    if submitted.quote.budget_usd is None:
        return "$0.00: nothing is rented, and you are not being billed"
    worst = submitted.record.worst_case()
    return f"${worst:.2f} of the budget of ${submitted.quote.budget_usd:.2f}; you are being billed from now on"


def hand_over(submitted: Submitted, command: str, out: Output) -> None:
    """The command for a machine of the user's own. It goes to standard output alone, so that it can be piped."""
    out.note(
        "\nRun this on a machine with Python 3.11 or newer and a GPU (Colab, Lambda, Vast, SageMaker, a desktop):\n"
        "  it installs what is missing into a folder of its own, trains, uploads the adapter, and ends\n"
        "  it may be run once; whoever has it can read this run's data until its end\n"
        "  end the machine when the run has ended: nobody else does (a RunPod pod ends with the run if you put\n"
        "  CLOUDFT_END_MACHINE=1 before the command)\n"
    )
    status = submitted.record.status
    out.result({"run_id": submitted.run.run_id, "status": status, "command": command, **_found(submitted)}, command)
    out.next_commands("cloudft status --follow", "cloudft pull")


def _after_detach(submitted: Submitted) -> tuple[str, ...]:
    """A rented run needs somebody who watches: only that rents the next machine when one is taken away."""
    if submitted.quote.budget_usd is None:
        return ("cloudft status --follow", "cloudft pull    (when it has ended)")
    return ("cloudft watch    (rents the next machine if this one is lost)", "cloudft status", "cloudft cancel")


@contextlib.contextmanager
def interruptible(project: Project) -> Iterator[None]:
    """Ctrl-C during a submit: either nothing was started, or the run exists and is named."""
    before = set(project.run_ids())
    try:
        yield
    except KeyboardInterrupt as exc:
        new = sorted(set(project.run_ids()) - before)
        if new:
            raise Interrupted(
                f"interrupted while the machine of run {new[-1]} was being started",
                effect="it was told to end, and no other is rented for this run",
                hint="see that it is gone:  cloudft status",
            ) from exc
        raise Interrupted("interrupted before anything was started", effect="nothing was rented or kept") from exc
