"""The arithmetic of a budget: whatever the attempts, their sum stays within it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudft.errors import BudgetError
from infra.budget import TEARDOWN_SECONDS, Charge, allow, committed, least_budget, least_seconds

rates = st.floats(0.05, 30)


def test_a_budget_that_is_too_small_is_refused_with_the_sum_that_would_do() -> None:
    with pytest.raises(BudgetError, match=r"\$0\.10 of the budget of \$0\.10 are left") as caught:
        allow(0.10, [], 2.00, 0)
    assert f"${least_budget(2.0):.2f} would do" in caught.value.hint
    granted = allow(least_budget(2.0) + 0.001, [], 2.00, 0)
    assert granted.deadline >= least_seconds() - TEARDOWN_SECONDS


def test_a_longest_time_bounds_the_deadline_and_the_worst_case() -> None:
    granted = allow(100, [], 1.00, 0, longest_seconds=7200)
    assert granted.deadline == pytest.approx(7200)
    assert granted.worst_case_usd == pytest.approx((7200 + TEARDOWN_SECONDS) / 3600)


@given(
    budget=st.floats(0.01, 100),
    lives=st.lists(st.tuples(rates, st.floats(0, 1), st.booleans()), min_size=1, max_size=8),
)
def test_any_attempts_stay_within_the_budget_together(budget: float, lives: list[tuple[float, float, bool]]) -> None:
    """Each attempt ends somewhere before its money is gone, or is never heard of again."""
    charges: list[Charge] = []
    now = 0.0
    for rate, share, known in lives:
        try:
            granted = allow(budget, charges, rate, now)
        except BudgetError:
            break
        assert now < granted.deadline < granted.exhausted_at
        ended = now + share * (granted.exhausted_at - now)
        charges.append(Charge(now, granted.exhausted_at, rate, ended if known else None))
        now = ended
    assert committed(charges) <= budget * (1 + 1e-9)
