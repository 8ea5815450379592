"""The quote: what could be rented, what it would cost at most, and what is taken by which rule. Before money moves."""

from __future__ import annotations

import time
from dataclasses import dataclass

from cloudft.errors import BudgetError, ProviderError
from infra.budget import allow
from infra.gpus import parse_wish
from infra.offers import Match, match
from infra.provider import Provider, Terms
from infra.provider_auto import AutoProvider
from jobs.spec import RunSpec
from local.config import Config
from local.estimate import Estimate, estimate
from local.lifecycle import free_plan
from local.project import Project
from local.records import PlannedOffer, read_record

RULE = "in the order of --gpu, then the cheapest that fits"


@dataclass(frozen=True)
class Line:
    """One row of the table. Dollars, epoch seconds; ``refusal`` says why this offer cannot be taken."""

    offer: PlannedOffer
    stock: str
    latest_end: float
    worst_case_usd: float
    estimate: Estimate | None
    refusal: str = ""


@dataclass(frozen=True)
class Quote:
    """All offers that match, the first that can be taken first among ``plan``.

    ``unasked``: providers that could not be asked, with the reason, where there are several.
    """

    provider: str
    budget_usd: float | None
    lines: tuple[Line, ...]
    plan: tuple[PlannedOffer, ...]
    rule: str = RULE
    unasked: tuple[tuple[str, str], ...] = ()


def show_offers(provider: Provider, config: Config, spec: RunSpec | None) -> Quote:
    """The live offers that match, with what the budget would buy of each, if there is one. Rents nothing.

    Raises:
        UsageError: no such GPU is known.
        ProviderError: the provider cannot be asked.
    """
    lines = tuple(_line(m, config, spec) for m in offers_for(provider, config))
    plan = tuple(line.offer for line in lines if not line.refusal)
    return Quote(provider.name, config.budget, lines, plan, unasked=_unasked(provider))


def quote(provider: Provider, config: Config, spec: RunSpec, spent_usd: float) -> Quote:
    """Ask for live offers, and work out for each what the budget buys.

    Args:
        spent_usd: what this month's other runs have cost or may still cost.

    Raises:
        UsageError: no such GPU is known.
        ProviderError: nothing that matches is offered, or prices are unknown.
        BudgetError: no offer leaves a useful run within the budget or the month's ceiling.
    """
    if not config.rents or config.budget is None:
        return Quote(provider.name, None, (), free_plan(provider.name))
    _within_month(config, spent_usd)
    lines = [_line(m, config, spec) for m in offers_for(provider, config)]
    if not lines:
        wanted = ", ".join(config.gpus)
        raise ProviderError(
            f"{provider.name} offers nothing that matches {wanted} now",
            effect="nothing was rented",
            hint="see what there is:  cloudft offers",
        )
    plan = tuple(line.offer for line in lines if not line.refusal)
    if not plan:
        raise BudgetError(lines[0].refusal, effect="nothing was rented", hint="see what there is:  cloudft offers")
    return Quote(provider.name, config.budget, tuple(lines), plan, unasked=_unasked(provider))


def _unasked(provider: Provider) -> tuple[tuple[str, str], ...]:
    return provider.unasked if isinstance(provider, AutoProvider) else ()


def offers_for(provider: Provider, config: Config) -> list[Match]:
    """The live offers that match, in the order in which they would be tried."""
    wishes = [parse_wish(text) for text in config.gpus]
    clouds = {"secure": ("SECURE", ""), "community": ("COMMUNITY", ""), "any": ("SECURE", "COMMUNITY", "")}
    allowed = clouds[config.machine.cloud]
    bid, most = config.machine.max_bid, config.machine.max_rate
    terms = Terms(config.machine.disk_gb, tuple(config.machine.data_centers), config.machine.spot, most)
    found = [
        offer
        for offer in provider.offers(wishes, terms)
        if offer.cloud in allowed
        and offer.spot == config.machine.spot
        and not (offer.spot and bid is not None and offer.rate_usd > bid)
        and not (most is not None and offer.rate_usd > most)
    ]
    return match(wishes, found)


def _line(found: Match, config: Config, spec: RunSpec | None) -> Line:
    offer = found.offer
    planned = PlannedOffer(
        provider=offer.provider,
        id=offer.id,
        name=offer.name,
        rate_usd=offer.rate_usd,
        why=found.why,
        count=offer.count,
        memory_gb=offer.memory_gb,
        cloud=offer.cloud,
        spot=offer.spot,
        longest_seconds=offer.longest_seconds,
    )
    guess = estimate(spec, offer.gpu, offer.count) if spec else None
    if config.budget is None:
        return Line(planned, offer.stock, 0.0, 0.0, guess)
    try:
        longest = planned.seconds_at_most(config.max_hours * 3600)
        granted = allow(config.budget, [], offer.rate_usd, time.time(), longest)
    except BudgetError as exc:
        return Line(planned, offer.stock, 0.0, 0.0, guess, f"{offer.name}: {exc.what}; {exc.hint}")
    return Line(planned, offer.stock, granted.deadline, granted.worst_case_usd, guess)


def _within_month(config: Config, spent_usd: float) -> None:
    ceiling, budget = config.monthly_budget, config.budget or 0.0
    if ceiling is not None and spent_usd + budget > ceiling:
        raise BudgetError(
            f"this month's runs have cost or may still cost ${spent_usd:.2f}; with this run's ${budget:.2f} "
            f"that is over the ceiling of ${ceiling:.2f}",
            effect="nothing was rented",
            hint=f"--budget {max(ceiling - spent_usd, 0):.2f} would be within it, or raise monthly_budget",
        )


def spent_this_month(project: Project) -> float:
    """Dollars that the runs begun in this calendar month (UTC) have cost, or may still cost, at most.

    A run that has not ended counts with its whole budget: it may rent again.
    """
    month = time.gmtime()[:2]
    total = 0.0
    for run_id in project.run_ids():
        record = read_record(project.run(run_id))
        if time.gmtime(record.created_at)[:2] == month and record.budget_usd is not None:
            total += record.worst_case() if record.ended else record.budget_usd
    return total
