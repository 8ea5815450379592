"""``cloudft reap``."""

from __future__ import annotations

import time
from pathlib import Path
from time import gmtime, strftime
from typing import TYPE_CHECKING, Any

import click

from cloudft.commands.common import RENTERS, cloudft_command, if_interrupted
from cloudft.errors import ConfigError, ProviderError
from cloudft.output import Output

if TYPE_CHECKING:
    from local.runs.reap import Reaped, Sweep


@cloudft_command("reap")
@click.option("--provider", "names", multiple=True, type=click.Choice([*RENTERS, "docker"]), help="Whom to ask.")
@click.option("--all", "everything", is_flag=True, help="End all machines of cloudft, not only the overdue.")
@click.option("--dry-run", is_flag=True, help="Say what would be ended, and end nothing.")
def command(out: Output, directory: Path, names: tuple[str, ...], everything: bool, dry_run: bool) -> None:
    """Find all machines of cloudft by name, and end those whose deadline has passed.

    Needs no project and nothing of the computer that submitted: only the account's key in the environment. Run it
    from a scheduler as the outer guard; docs/reaper.md has a recipe.
    """
    from infra.accounts import accounts, how_to_set_up
    from infra.provider import open_provider
    from local.runs.reap import reap

    asked = list(names) or accounts()
    if not asked:
        raise ConfigError(
            "no provider's account is set up here, so there is nothing to ask",
            effect="machines that other computers can see were not looked for",
            hint=f"set {how_to_set_up()}; or name a provider:  cloudft reap --provider docker",
        )
    again = if_interrupted("interrupted", "machines not looked at yet may go on and be billed", "cloudft reap")
    with again:
        providers = [open_provider(name, directory / ".cloudft") for name in asked]
        sweep = reap(providers, time.time(), everything=everything, dry_run=dry_run)
    unasked = {name for name, _ in sweep.unasked}
    out.result(_plain(sweep), _table(sweep, [name for name in asked if name not in unasked]))
    if not sweep.clean:
        problems = [f"{name}: {why}" for name, why in sweep.unasked]
        problems += [f"{r.machine.name}: {r.why}" for r in sweep.machines if r.action == "not ended"]
        raise ProviderError(
            "not everything could be reaped:\n" + "\n".join(f"  {p}" for p in problems),
            effect="what is named here may go on, and be billed",
            hint="cloudft reap    or end it on the provider's own page",
        )


def _table(sweep: Sweep, asked: list[str]) -> str:
    if not sweep.machines and not asked:
        return ""
    if not sweep.machines:
        return f"no machine of cloudft at {', '.join(asked)}"
    rows = [_row(reaped) for reaped in sweep.machines]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _row(reaped: Reaped) -> tuple[str, ...]:
    machine = reaped.machine
    rate = "?" if machine.rate_usd is None else f"{machine.rate_usd:.2f}"
    due = strftime("%Y-%m-%d %H:%M UTC", gmtime(reaped.deadline))
    return (
        reaped.action,
        machine.provider,
        f"{reaped.run_id} attempt {reaped.attempt}",
        f"machine {machine.id}",
        f"${rate}/h",
        f"{'overdue since' if reaped.overdue else 'due'} {due}",
    )


def _plain(sweep: Sweep) -> dict[str, Any]:
    return {
        "clean": sweep.clean,
        "unasked": [{"provider": name, "why": why} for name, why in sweep.unasked],
        "machines": [
            {
                "provider": r.machine.provider,
                "id": r.machine.id,
                "name": r.machine.name,
                "run_id": r.run_id,
                "attempt": r.attempt,
                "deadline": r.deadline,
                "overdue": r.overdue,
                "rate_usd": r.machine.rate_usd,
                "action": r.action,
                "why": r.why,
            }
            for r in sweep.machines
        ],
    }
