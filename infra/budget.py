"""The arithmetic of a budget, pure: dollars, seconds, and what is left for another attempt.

    exhausted = created + (budget - committed) / rate        when the money would be gone
    deadline  = exhausted - teardown                          when the machine must be down

``committed`` counts every attempt of the run: an ended one by what it cost, a live one as if it ran to the moment
when its own money is gone. So the sum over all attempts stays within the budget if each is down by then.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from cloudft.errors import BudgetError

# Kept between the deadline and the moment when the money is gone: a reaper comes by every five minutes, a provider
# takes its time to end a machine and may bill in steps of five minutes, and clocks differ.
TEARDOWN_SECONDS = 600.0
# The least that is worth renting for: booting and pulling the image, some training, saving.
BOOT_SECONDS = 900.0
LEAST_TRAINING_SECONDS = 300.0


@dataclass(frozen=True)
class Charge:
    """What one attempt costs. Epoch seconds; ``rate_usd`` dollars per hour, disk included.

    ``ended_at`` None: it may still run, and is counted to ``exhausted_at``.
    """

    created_at: float
    exhausted_at: float
    rate_usd: float
    ended_at: float | None = None

    def committed(self) -> float:
        """Dollars that this attempt can cost at most, as far as is known now."""
        until = self.exhausted_at if self.ended_at is None else self.ended_at
        return cost(until - self.created_at, self.rate_usd)

    def spent(self, now: float) -> float:
        """Dollars that it has cost by ``now``."""
        return cost((self.ended_at or now) - self.created_at, self.rate_usd)


@dataclass(frozen=True)
class Allowance:
    """What the rest of a budget buys at one rate. Epoch seconds, dollars."""

    deadline: float
    exhausted_at: float
    worst_case_usd: float


def cost(seconds: float, rate_usd: float) -> float:
    """Dollars for that time; never negative."""
    return max(seconds, 0.0) * rate_usd / 3600


def committed(charges: Iterable[Charge]) -> float:
    """Dollars that all these attempts can cost together at most."""
    return math.fsum(charge.committed() for charge in charges)


def allow(
    budget_usd: float, charges: Iterable[Charge], rate_usd: float, now: float, longest_seconds: float = math.inf
) -> Allowance:
    """What may be rented now, at that rate, with what the other attempts left over.

    Args:
        longest_seconds: a limit of the provider or of ``max_hours``; the deadline comes no later.

    Raises:
        BudgetError: less than a useful run remains; the message says how much would do.
    """
    left = budget_usd - committed(charges)
    if rate_usd <= 0:
        return Allowance(now + longest_seconds, now + longest_seconds, 0.0)
    seconds = min(max(left, 0.0) * 3600 / rate_usd, longest_seconds + TEARDOWN_SECONDS)
    if seconds < least_seconds():
        needed = budget_usd - left + least_budget(rate_usd)
        raise BudgetError(
            f"${max(left, 0.0):.2f} of the budget of ${budget_usd:.2f} are left: at ${rate_usd:.2f}/h that is "
            f"{max(seconds, 0) / 60:.0f} min, less than a useful run ({least_seconds() / 60:.0f} min)",
            effect="nothing was rented",
            hint=f"a budget of ${math.ceil(needed * 100) / 100:.2f} would do, or a cheaper GPU:  cloudft offers",
        )
    return Allowance(now + seconds - TEARDOWN_SECONDS, now + seconds, cost(seconds, rate_usd))


def least_seconds() -> float:
    """The shortest rental that can bring something home."""
    return BOOT_SECONDS + LEAST_TRAINING_SECONDS + TEARDOWN_SECONDS


def least_budget(rate_usd: float) -> float:
    """Dollars for the shortest useful rental at that rate."""
    return cost(least_seconds(), rate_usd)
