"""``cloudft offers``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloudft.commands.common import RENTERS, budget_option, cloudft_command, max_rate_option, open_project
from cloudft.commands.quotes import quote_table
from cloudft.errors import CloudftError, DataError, NotFound, ProviderError, UsageError
from cloudft.output import Output

if TYPE_CHECKING:
    from local.config import ProviderName, Wanted
    from local.planning.quote import Line


@cloudft_command("offers")
@click.option("--provider", type=click.Choice([*RENTERS, "auto"]), help="Whom to ask; default: as in cloudft.yaml.")
@click.option("--gpu", multiple=True, help="GPU to rent (A10G, 24GB, H100:2); several: in order of preference.")
@budget_option
@click.option("--spot/--on-demand", default=None, help="Interruptible machines, which are cheaper.")
@max_rate_option
def command(
    out: Output,
    directory: Path,
    provider: ProviderName | None,
    gpu: tuple[str, ...],
    budget: float | None,
    spot: bool | None,
    max_rate: float | None,
) -> None:
    """Show the GPUs that can be rented now, at live prices, and what the budget buys of each. Rents nothing."""
    project = open_project(directory)
    from infra.provider import open_provider
    from local.config import Wanted, load_config
    from local.planning.draft import draft
    from local.planning.preview import preview
    from local.planning.quote import show_offers, wishes_of

    wanted = Wanted(provider=provider, gpu=gpu, budget=budget, spot=spot, max_rate=max_rate)
    config = wanted.applied_to(load_config(project.config_file))
    if not config.rents:
        raise UsageError(
            f"provider {config.provider} rents nothing",
            effect="it costs nothing",
            hint="cloudft offers --provider runpod",
        )
    wishes_of(config)
    with out.progress() as progress, _rents_nothing():
        try:
            work = preview(project, draft(project, config, progress), progress).work
        except (DataError, NotFound, ProviderError) as exc:
            # Prices can be shown without data or base; only the estimate needs them.
            out.note(f"no estimate of time and cost: {exc}")
            work = None
        progress(f"ask {config.provider}")
        quoted = show_offers(open_provider(config.provider, project.state), config, work)
    data = {
        "provider": quoted.provider,
        "rule": quoted.rule,
        "offers": [_plain(line) for line in quoted.lines],
        "unasked": [{"provider": name, "why": why} for name, why in quoted.unasked],
        "image_build_usd": quoted.ahead.charge.committed() if quoted.ahead else None,
    }
    out.result(
        data, quote_table(quoted) or f"{config.provider} offers nothing that matches {', '.join(config.gpus)} now"
    )
    if quoted.plan:
        out.next_commands(" ".join(_submit(wanted, budget or config.budget or 5)))


@contextlib.contextmanager
def _rents_nothing() -> Iterator[None]:
    """What goes wrong here has no effect, whatever the one that says it knows of that."""
    try:
        yield
    except CloudftError as exc:
        exc.effect = "nothing was rented: this command only asks"
        raise


def _submit(wanted: Wanted, budget: float) -> list[str]:
    """The submit that means what was asked here."""
    words = ["cloudft submit", *(f"--gpu {name}" for name in wanted.gpu), f"--budget {budget:.12g}"]
    words += [f"--provider {wanted.provider}"] if wanted.provider else []
    words += [f"--max-rate {wanted.max_rate:.12g}"] if wanted.max_rate is not None else []
    return [*words, "--spot"] if wanted.spot else words


def _plain(line: Line) -> dict[str, object]:
    """A row of the table for a program."""
    guess = asdict(line.estimate) if line.estimate else None
    need = asdict(line.memory) if line.memory else None
    return {
        **line.offer.model_dump(),
        "stock": line.stock,
        "latest_end": line.latest_end or None,
        "worst_case_usd": line.worst_case_usd or None,
        "estimate": guess,
        "memory_bytes": need,
        "refusal": line.refusal,
        "would_do": line.would_do,
        "made_of": line.made_of,
    }
