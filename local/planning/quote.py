"""The quote: what could be rented, what it would cost at most, and what is taken by which rule. Before money moves."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cloudft.errors import BudgetError, CloudftError, ConfigError, IntegrityError, ProviderError
from infra.budget import Charge, allow, committed, least_budget
from infra.gpus import Wish, parse_wish
from infra.offers import Match, match
from infra.provider import Provider, Terms
from infra.provider_auto import AutoProvider
from local.config import Config
from local.image_there import Ahead, build_ahead
from local.planning.estimate import Estimate, Work, estimate, gigabytes, needed
from local.planning.fit import Card, fits, too_small
from local.planning.vram import Memory
from local.project import Project
from local.runs.lifecycle import free_plan
from local.runs.records import PlannedOffer, read_record

RULE = "in the order of --gpu, then the cheapest that fits"
NEEDS_IMAGE = "build one and write it into cloudft.yaml:  cloudft build"


@dataclass(frozen=True)
class Line:
    """One row of the table. Dollars, epoch seconds; ``memory`` on each card; ``made_of``: what the price is made of.

    ``refusal`` says why this offer cannot be taken: ``too_small`` is it for its memory; ``would_do``, where it is the
    budget, the least that would do.
    """

    offer: PlannedOffer
    stock: str
    latest_end: float
    worst_case_usd: float
    estimate: Estimate | None
    memory: Memory | None = None
    refusal: str = ""
    too_small: bool = False
    would_do: float | None = None
    made_of: str = ""

    @property
    def tight(self) -> bool:
        """It may fit or may not."""
        return self.memory is not None and not self.too_small and self.memory.most > self.offer.memory_gb * 1e9


@dataclass(frozen=True)
class Quote:
    """All offers that match, the first that can be taken first among ``plan``.

    ``unasked``: providers that could not be asked, with the reason, where there are several. ``ahead``: the training
    image that a submit lets its provider build first; what that may cost is in every worst case. ``memory``: what the
    run needs on a card that computes in bfloat16, None where that is not known.
    """

    provider: str
    budget_usd: float | None
    lines: tuple[Line, ...]
    plan: tuple[PlannedOffer, ...]
    rule: str = RULE
    unasked: tuple[tuple[str, str], ...] = ()
    ahead: Ahead | None = None
    memory: Memory | None = None


def show_offers(provider: Provider, config: Config, work: Work | None) -> Quote:
    """The live offers that match, with what the budget would buy of each, if there is one. Rents nothing.

    Raises:
        UsageError: no such GPU is known.
        ProviderError: the provider cannot be asked.
    """
    ahead = build_ahead(provider, config)
    lines = tuple(_line(m, config, work, ahead) for m in offers_for(provider, config, work))
    plan = tuple(line.offer for line in lines if not line.refusal)
    return Quote(
        provider.name, config.budget, lines, plan, unasked=_unasked(provider), ahead=ahead, memory=_memory(work)
    )


def quote(provider: Provider, config: Config, work: Work, spent_usd: float) -> Quote:
    """Ask for live offers, and work out for each what the budget buys.

    Args:
        spent_usd: what this month's other runs have cost or may still cost.

    Raises:
        UsageError: no such GPU is known.
        ProviderError: nothing that matches is offered, or prices are unknown.
        BudgetError: no offer leaves a useful run within the budget or the month's ceiling.
        ConfigError: the training fits none of the cards.
    """
    memory = _memory(work)
    if not config.rents or config.budget is None:
        return Quote(provider.name, None, (), free_plan(provider.name, config.machine.gpus), memory=memory)
    _within_month(config, spent_usd)
    ahead = build_ahead(provider, config)
    lines = [_line(m, config, work, ahead) for m in offers_for(provider, config, work)]
    if not lines:
        wanted = ", ".join(config.gpus)
        raise ProviderError(
            f"{provider.name} offers nothing that matches {wanted} now",
            effect="nothing was rented",
            hint="see what there is:  cloudft offers",
        )
    plan = tuple(line.offer for line in lines if not line.refusal)
    if not plan:
        raise _none_taken(lines, config, work)
    return Quote(
        provider.name, config.budget, tuple(lines), plan, unasked=_unasked(provider), ahead=ahead, memory=memory
    )


def _memory(work: Work | None) -> Memory | None:
    return needed(work, None, 1) if work else None


def _none_taken(lines: Sequence[Line], config: Config, work: Work) -> CloudftError:
    """Offers match, and none can be taken: why, and the command that would do."""
    small = [Card(line.offer.name, line.offer.memory_gb, line.offer.count) for line in lines if line.too_small]
    if len(small) == len(lines):
        return too_small(work, small)
    dear = [line for line in lines if line.would_do is not None]
    if not dear:
        refusal = next(line.refusal for line in lines if not line.too_small)
        return ConfigError(refusal, effect="nothing was rented", hint=NEEDS_IMAGE)
    cheapest = min(dear, key=lambda line: line.would_do or 0.0)
    which = f"--provider {cheapest.offer.provider} --gpu {cheapest.offer.name} --budget {cheapest.would_do:.2f}"
    return BudgetError(
        dear[0].refusal, effect="nothing was rented", hint=f"the least that would do:  cloudft submit {which}"
    )


def _unasked(provider: Provider) -> tuple[tuple[str, str], ...]:
    return provider.unasked if isinstance(provider, AutoProvider) else ()


def wishes_of(config: Config) -> list[Wish]:
    """What is to be rented, in order of preference.

    Raises:
        UsageError: no such GPU is known.
    """
    return [parse_wish(text) for text in config.gpus]


def offers_for(provider: Provider, config: Config, work: Work | None) -> list[Match]:
    """The live offers that match, in the order in which they would be tried."""
    wishes = wishes_of(config)
    clouds = {"secure": ("SECURE", ""), "community": ("COMMUNITY", ""), "any": ("SECURE", "COMMUNITY", "")}
    allowed = clouds[config.machine.cloud]
    bid, most = config.machine.max_bid, config.machine.max_rate
    parameters = work.parameters if work else None
    terms = Terms(config.machine.disk_gb, tuple(config.machine.data_centers), config.machine.spot, most, parameters)
    found = [
        offer
        for offer in provider.offers(wishes, terms)
        if offer.cloud in allowed
        and offer.spot == config.machine.spot
        and not (offer.spot and bid is not None and offer.rate_usd > bid)
        and not (most is not None and offer.rate_usd > most)
    ]
    return match(wishes, found)


def _line(found: Match, config: Config, work: Work | None, ahead: Ahead | None) -> Line:
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
        memory_gib=offer.memory_gib,
    )
    guess = estimate(work, offer.gpu, offer.count) if work else None
    need = needed(work, offer.gpu, offer.count) if work else None
    line = Line(planned, offer.stock, 0.0, 0.0, guess, need, made_of=offer.billing_note)
    if need is not None and not fits(need, offer.memory_gb):
        refusal = f"{offer.name}: the training needs {gigabytes(need)}, and it has {offer.memory_gb} GB"
        return replace(line, refusal=refusal, too_small=True)
    if config.image is None and (ahead is None or offer.provider != ahead.provider):
        return replace(line, refusal=f"{offer.name}: {offer.provider} needs a training image, and builds none")
    if config.budget is None:
        return line
    kept = [ahead.charge] if ahead else []
    try:
        longest = planned.seconds_at_most(config.max_hours * 3600)
        granted = allow(config.budget, kept, offer.rate_usd, time.time(), longest)
    except BudgetError as exc:
        enough = _would_do(kept, offer.rate_usd)
        why = f" (${committed(kept):.2f} is kept for building the image)" if kept else ""
        return replace(
            line, refusal=f"{offer.name}: {exc.what}{why}; a budget of ${enough:.2f} would do", would_do=enough
        )
    return replace(line, latest_end=granted.deadline, worst_case_usd=granted.worst_case_usd + committed(kept))


def _would_do(kept: Sequence[Charge], rate_usd: float) -> float:
    """The least budget that buys a useful run, in whole cents."""
    return math.ceil(round((committed(kept) + least_budget(rate_usd)) * 100, 6)) / 100


def _within_month(config: Config, spent_usd: float) -> None:
    ceiling, budget = config.monthly_budget, config.budget or 0.0
    if ceiling is not None and spent_usd + budget > ceiling:
        left = math.floor((ceiling - spent_usd) * 100) / 100
        within = f"--budget {left:.2f} would be within it, or " if left > 0 else ""
        raise BudgetError(
            f"this month's runs have cost or may still cost ${spent_usd:.2f}; with this run's ${budget:.2f} "
            f"that is over the ceiling of ${ceiling:.2f}",
            effect="nothing was rented",
            hint=f"{within}raise monthly_budget in cloudft.yaml",
        )


def spent_this_month(project: Project) -> float:
    """Dollars that the runs begun in this calendar month (UTC) have cost, or may still cost, at most.

    A run that has not ended counts with its whole budget: it may rent again.

    Raises:
        IntegrityError: the record of a run of this month cannot be read, so that its cost is not known.
    """
    month = time.gmtime()[:2]
    total = 0.0
    for run_id in project.run_ids():
        try:
            record = read_record(project.run(run_id))
        except IntegrityError as exc:
            # A run's id begins with its time.
            if not run_id.startswith(time.strftime("%Y%m", time.gmtime())):
                continue
            exc.effect = "nothing was rented: what that run costs is not known, and monthly_budget counts it"
            raise
        if time.gmtime(record.created_at)[:2] == month and record.budget_usd is not None:
            total += record.worst_case() if record.ended else record.budget_usd
    return total
