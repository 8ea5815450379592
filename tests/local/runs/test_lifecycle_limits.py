"""A run that is longer than its provider lets a machine live: split into attempts, within one budget and one time."""

from __future__ import annotations

import pytest

from local.runs.lifecycle import Begin, Command, Create, Created, Observed
from local.runs.records import PlannedOffer, RunRecord
from tests.local.runs.test_lifecycle import HOUR, play, record

DAY = 24 * HOUR
MODAL = PlannedOffer(provider="modal", id="L4", name="L4", rate_usd=1.0, longest_seconds=DAY)


def after_a_day(start: RunRecord, outcome: str = "stopped", at: float = DAY - 700) -> tuple[RunRecord, list[Command]]:
    """Its machine has saved, shortly before the day is over, and is gone."""
    begun, _ = play(start, (0, Begin()), (1, Created(1, "m1", 1.0)), (2, Observed(1, "m1", 1.0, heartbeat=2)))
    seen = Observed(1, None, outcome=outcome, outcome_at=at, reason="the deadline is near", has_result=True)  # type: ignore[arg-type]
    return play(begun, (DAY - 600, seen))


def long(budget: float = 60.0, hours: float = 40.0) -> RunRecord:
    return record(budget, (MODAL,)).model_copy(update={"max_hours": hours})


def test_no_attempt_plans_for_more_than_its_provider_lets_it_live() -> None:
    begun, _ = play(long(), (0, Begin()))
    assert begun.attempt.deadline == DAY


def test_the_next_attempt_goes_on_for_the_rest_of_the_runs_time() -> None:
    after, said = after_a_day(long())
    assert any(isinstance(command, Create) for command in said)
    assert after.attempt.number == 2
    assert after.attempt.deadline == pytest.approx(40 * HOUR)
    assert after.worst_case() <= 60.0


def test_the_budget_is_one_for_all_attempts() -> None:
    after, _ = after_a_day(long(budget=26.0))
    assert after.attempt.number == 2
    assert after.worst_case() <= 26.0


@pytest.mark.parametrize(
    ("start", "outcome", "at"),
    [
        (long(budget=24.1), "stopped", DAY - 700),  # no money left for a useful one
        (long(hours=24.2), "stopped", DAY - 700),  # no time left for a useful one
        (long(), "completed", DAY - 700),
        (long(), "stopped", DAY / 2),  # it stopped for a reason of its own
    ],
)
def test_otherwise_the_adapter_is_the_runs_own(start: RunRecord, outcome: str, at: float) -> None:
    after, said = after_a_day(start, outcome, at)
    assert not any(isinstance(command, Create) for command in said)
    assert (after.status, len(after.attempts)) == (outcome, 1)


def test_a_training_that_diverged_does_not_go_on_elsewhere() -> None:
    begun, _ = play(long(), (0, Begin()), (1, Created(1, "m1", 1.0)), (2, Observed(1, "m1", 1.0, heartbeat=2)))
    seen = Observed(1, None, outcome="stopped", outcome_at=DAY - 700, has_result=True, final=True)
    after, said = play(begun, (DAY - 600, seen))
    assert (after.status, len(after.attempts)) == ("stopped", 1)
    assert not any(isinstance(command, Create) for command in said)
    failed, _ = play(begun, (DAY - 600, Observed(1, None, outcome="failed", outcome_at=DAY - 700, final=True)))
    assert (failed.status, len(failed.attempts)) == ("failed", 1)


def test_a_run_that_was_cancelled_does_not_go_on() -> None:
    after, said = after_a_day(long().model_copy(update={"stop_asked": True}))
    assert after.status == "stopped"
    assert not any(isinstance(command, Create) for command in said)


def test_without_such_a_limit_a_deadline_is_the_end() -> None:
    free = MODAL.model_copy(update={"longest_seconds": None})
    after, _ = after_a_day(record(24.5, (free,)).model_copy(update={"max_hours": 100.0}))
    assert (after.status, len(after.attempts)) == ("stopped", 1)
