"""The client's decisions about a run, played without clock or network."""

from __future__ import annotations

import pytest

from infra.budget import TEARDOWN_SECONDS
from local.config import StoreConfig
from local.runs.lifecycle import (
    DOUBT,
    Abandoned,
    Asked,
    AskToStop,
    Begin,
    CancelAsked,
    Command,
    Create,
    Created,
    CreateFailed,
    EndOthers,
    Event,
    Observed,
    Revoke,
    Terminate,
    decide,
    free_plan,
)
from local.runs.records import ImageBuild, PlannedOffer, RunRecord

L4 = PlannedOffer(provider="runpod", id="NVIDIA L4", name="L4", rate_usd=0.50)
A40 = PlannedOffer(provider="runpod", id="NVIDIA A40", name="A40", rate_usd=1.00)
HOUR = 3600.0


def record(budget: float | None = 5.0, plan: tuple[PlannedOffer, ...] = (L4, A40)) -> RunRecord:
    return RunRecord(
        run_id="r",
        project="p",
        created_at=0,
        provider="runpod",
        store=StoreConfig(url="s3://b"),
        spec_sha256="0" * 64,
        budget_usd=budget,
        max_hours=100,
        plan=plan,
    )


def play(start: RunRecord, *events: tuple[float, Event]) -> tuple[RunRecord, list[Command]]:
    said: list[Command] = []
    for now, event in events:
        start, commands = decide(start, event, now)
        said += commands
    return start, said


def names(commands: list[Command]) -> list[str]:
    return [type(command).__name__ for command in commands]


def running(start: RunRecord | None = None) -> RunRecord:
    begun, said = play(
        start or record(), (0, Begin()), (1, Created(1, "m1", 0.50)), (2, Observed(1, "m1", 0.5, heartbeat=2))
    )
    assert names(said) == ["Create"]
    assert begun.status == "running"
    return begun


def test_the_deadline_is_what_the_budget_buys_less_the_teardown() -> None:
    begun, said = play(record(), (0, Begin()))
    attempt = begun.attempt
    assert attempt.exhausted_at == pytest.approx(10 * HOUR)
    assert attempt.deadline == attempt.exhausted_at - TEARDOWN_SECONDS
    assert attempt.name == f"cloudft-r-a1-{int(attempt.deadline)}"
    assert begun.worst_case() == pytest.approx(5.0)
    assert said == [Create(attempt)]
    # Intended, and in the record, before the machine can exist.
    assert (attempt.state, attempt.machine_id) == ("intended", None)


def test_what_the_image_may_have_cost_is_missing_from_the_budget_of_every_attempt() -> None:
    build = ImageBuild(provider="modal", image="modal:im-1", content="0", started_at=-600, seconds=600, rate_usd=3.0)
    built = record().model_copy(update={"build": build})
    begun, _ = play(built, (0, Begin()))
    # Half a dollar of five, at half a dollar an hour.
    assert begun.attempt.exhausted_at == pytest.approx(9 * HOUR)
    assert begun.worst_case() == pytest.approx(5.0)
    assert begun.spent(0) == pytest.approx(0.5)
    again, _ = play(begun, (1, Created(1, "m1", 0.5)), (HOUR, Observed(1, None)))
    assert again.attempt.exhausted_at - HOUR == pytest.approx(8 * HOUR)
    assert again.worst_case() == pytest.approx(5.0)


def test_a_result_and_a_machine_that_is_gone_end_the_run_with_a_receipt() -> None:
    seen = Observed(1, None, outcome="completed", has_result=True, phases={"train": 1000.0, "fetch": 200.0})
    ended, said = play(running(), (HOUR, seen))
    assert (ended.status, names(said)) == ("completed", ["Revoke", "EndOthers"])
    receipt = ended.attempt.receipt
    assert receipt is not None
    assert (receipt.machine_id, receipt.seconds, receipt.usd) == ("m1", HOUR, pytest.approx(0.5))
    assert receipt.phases == {"train": 1000.0, "fetch": 200.0, "teardown": 2400.0}
    assert receipt.price_source == "read from the machine"


def test_while_the_machine_lives_the_run_has_not_ended_even_with_a_result() -> None:
    seen = Observed(1, "m1", heartbeat=2, outcome="completed", outcome_at=49, has_result=True)
    assert names(play(running(), (50, seen))[1]) == []
    lingering, said = play(running(), (111, seen))
    assert (lingering.status, names(said)) == ("running", ["Terminate"])
    # Asked for again with each look, until it is gone.
    assert names(play(lingering, (120, seen))[1]) == ["Terminate"]
    assert play(lingering, (130, Observed(1, None, outcome="completed", has_result=True)))[0].status == "completed"


@pytest.mark.parametrize(
    ("seen", "status"),
    [
        (Observed(1, None, outcome="failed", reason="no memory"), "failed"),
        (Observed(1, None, outcome="stopped", reason="cancelled", has_result=True), "stopped"),
        # An outcome without the result is no success: the result is written last.
        (Observed(1, None, outcome="completed"), "failed"),
    ],
)
def test_how_a_run_ends(seen: Observed, status: str) -> None:
    ended, said = play(running(), (50, seen))
    assert ended.status == status
    assert ended.reason
    assert names(said) == ["Revoke", "EndOthers"]
    for event in (Observed(1, "m1"), CancelAsked(True), Created(1, "m2", 1.0), Begin()):
        assert decide(ended, event, 60) == (ended, ())


def test_a_preempted_machine_is_followed_by_another_within_what_is_left() -> None:
    again, said = play(running(), (2 * HOUR, Observed(1, None)))
    assert names(said) == ["Revoke", "EndOthers", "Create"]
    assert [a.number for a in again.attempts] == [1, 2]
    assert again.attempts[0].charge.committed() == pytest.approx(1.0)
    assert again.attempt.exhausted_at == pytest.approx(2 * HOUR + 8 * HOUR)
    assert again.worst_case() <= 5.0 + 1e-9
    # What belongs to the first machine is late now.
    assert decide(again, Observed(1, None, outcome="failed"), 2 * HOUR + 1) == (again, ())


def test_a_machine_that_is_taken_away_is_helped_to_its_end_and_the_receipt_says_what_it_left() -> None:
    # It has said that it has nothing more to do, without an outcome: the run goes on elsewhere.
    lingering, said = play(running(), (HOUR, Observed(1, "m1", heartbeat=HOUR, outcome_at=HOUR - 61, kept_step=70)))
    assert names(said) == ["Terminate"]
    again, said = play(lingering, (HOUR + 9, Observed(1, None, kept_step=70)))
    assert names(said) == ["Revoke", "EndOthers", "Create"]
    ended, _ = play(
        again,
        (HOUR + 10, Created(2, "m2", 0.50)),
        (2 * HOUR, Observed(2, None, outcome="completed", has_result=True, resumed_from=70, kept_step=90)),
    )
    left = [attempt.receipt for attempt in ended.attempts]
    assert [(r.resumed_from, r.kept_step) for r in left if r] == [(0, 70), (70, 90)]


def test_no_money_for_another_attempt_ends_the_run_and_says_so() -> None:
    lost, said = play(running(), (9.6 * HOUR, Observed(1, None)))
    assert (lost.status, names(said)) == ("lost", ["Revoke", "EndOthers"])
    assert "$0.20 of the budget of $5.00 are left" in lost.reason


def test_no_capacity_takes_the_next_offer_and_keeps_the_refusal() -> None:
    begun, said = play(record(), (0, Begin()), (1, CreateFailed(1, "capacity", "no free L4")))
    assert names(said) == ["Create", "Create"]
    assert (begun.attempt.offer, begun.refusals) == (A40, ("L4: no free L4",))
    assert begun.worst_case() <= 5.0 + 1e-9
    none, said = play(begun, (2, CreateFailed(2, "capacity", "no free A40")))
    assert (none.status, names(said)) == ("failed", [])
    assert "no free A40" in none.reason
    assert none.worst_case() == 0


def test_a_refusal_that_no_other_offer_mends_ends_the_run() -> None:
    ended, said = play(record(), (0, Begin()), (1, CreateFailed(1, "refused", "wrong key")))
    assert (ended.status, ended.reason, len(said)) == ("failed", "wrong key", 1)


def test_a_lost_reply_is_looked_up_by_name_and_never_retried_blindly() -> None:
    doubtful, said = play(record(), (0, Begin()), (30, CreateFailed(1, "unknown", "time-out")), (40, Observed(1, None)))
    assert names(said) == ["Create"]
    assert doubtful.worst_case() == pytest.approx(5.0)
    found, said = play(doubtful, (50, Observed(1, "m1", 0.50)))
    assert (found.status, found.attempt.machine_id, said) == ("running", "m1", [])
    # Not there after a while: its ticket is taken away before another is rented.
    gone, said = play(doubtful, (30 + DOUBT + 1, Observed(1, None)))
    assert names(said) == ["Revoke", "EndOthers", "Create"]
    assert gone.worst_case() <= 5.0 + 1e-9
    # It was never seen, so it may still turn up: every look sweeps for it.
    _, said = play(gone, (200, Created(2, "m2", 0.5)), (210, Observed(2, "m2", 0.5, heartbeat=1)))
    assert said == [EndOthers("r", gone.attempt.name)]


def test_a_list_that_lags_is_not_taken_for_an_end() -> None:
    begun, _ = play(record(), (0, Begin()), (1, CreateFailed(1, "unknown", "time-out")))
    assert play(begun, (60, Observed(1, None)))[0] == begun
    # One whose id is known is read by it: what is not there then is gone.
    known, _ = play(record(), (0, Begin()), (1, Created(1, "m1", 0.5)))
    assert names(play(known, (60, Observed(1, None)))[1]) == ["Revoke", "EndOthers", "Create"]


def test_a_machine_that_is_dearer_than_quoted_is_ended_at_once() -> None:
    dear, said = play(record(), (0, Begin()), (1, Created(1, "m1", 0.60)))
    assert names(said) == ["Create", "Terminate"]
    assert "$0.60/h instead of the quoted $0.50/h" in dear.attempt.ending
    after, said = play(dear, (5, Observed(1, "m1", 0.6)), (200, Observed(1, None)))
    assert names(said) == ["Terminate", "Revoke", "EndOthers", "Create"]
    assert after.attempt.offer == A40


def test_a_machine_that_never_boots_is_ended_and_the_next_offer_tried() -> None:
    begun, _ = play(record(), (0, Begin()), (1, Created(1, "m1", 0.5)), (890, Observed(1, "m1")))
    assert begun.attempt.ending == ""
    stuck, said = play(begun, (902, Observed(1, "m1")))
    assert names(said) == ["Terminate"]
    after, said = play(stuck, (905, Observed(1, None)))
    assert names(said) == ["Revoke", "EndOthers", "Create"]
    assert after.attempt.offer == A40
    assert "no sign of life" in after.refusals[0]


def test_a_machine_that_was_there_for_seconds_only_counts_for_them() -> None:
    """The wait for it was over, and it came in the moment in which the order was taken back."""
    begun, _ = play(record(), (0, Begin()), (300, CreateFailed(1, "capacity", "none free", billed_seconds=36)))
    assert begun.attempts[0].charge.committed() == pytest.approx(0.005)
    assert begun.attempt.offer == A40
    assert begun.attempt.exhausted_at - 300 == pytest.approx((5 - 0.005) * HOUR)


def test_the_time_for_a_sign_of_life_begins_when_the_machine_exists() -> None:
    """A provider may take its minutes to fetch the image and to find a machine: that is not the machine's silence."""
    late, _ = play(record(), (0, Begin()), (850, Created(1, "m1", 0.5)), (1700, Observed(1, "m1")))
    assert (late.attempt.alive_at, late.attempt.ending) == (850, "")
    silent, said = play(late, (850 + 901, Observed(1, "m1")))
    assert names(said) == ["Terminate"]
    assert "no sign of life" in silent.attempt.ending
    found, _ = play(record(), (0, Begin()), (60, CreateFailed(1, "unknown", "lost")), (850, Observed(1, "m1")))
    assert play(found, (1700, Observed(1, "m1")))[0].attempt.ending == ""


def test_an_overdue_machine_is_ended_and_no_other_rented() -> None:
    late = running()
    overdue, said = play(late, (late.attempt.deadline, Observed(1, "m1", heartbeat=9)))
    assert names(said) == ["Terminate"]
    ended, said = play(overdue, (late.attempt.deadline + 30, Observed(1, None)))
    assert (ended.status, names(said)) == ("lost", ["Revoke", "EndOthers"])


def test_a_machine_that_its_provider_stopped_is_ended_before_another_is_rented() -> None:
    stopped, said = play(running(), (HOUR, Observed(1, "m1", stopped=True)))
    assert names(said) == ["Terminate"]
    after, said = play(stopped, (HOUR + 5, Observed(1, None)))
    assert (names(said), after.attempt.offer) == (["Revoke", "EndOthers", "Create"], L4)


def test_cancel_is_soft_or_at_once_and_rents_no_more() -> None:
    soft, said = play(running(), (5, CancelAsked(at_once=False)))
    assert said == [AskToStop(soft.attempt)]
    hard, said = play(soft, (6, CancelAsked(at_once=True)))
    assert said == [Terminate(hard.attempt)]
    ended, said = play(hard, (7, Observed(1, None)))
    assert (ended.status, said) == ("stopped", [Revoke(hard.attempt), EndOthers("r", None)])


def test_cancel_while_the_reply_is_lost_ends_the_machine_that_turns_up() -> None:
    doubtful, _ = play(record(), (0, Begin()), (1, CreateFailed(1, "unknown", "time-out")))
    cancelled, said = play(doubtful, (2, CancelAsked(at_once=False)))
    assert names(said) == ["Terminate"]
    found, said = play(cancelled, (9, Observed(1, "m1", 0.5)))
    assert names(said) == ["Terminate"]
    assert play(found, (20, Observed(1, None)))[0].status == "stopped"


def test_a_submit_that_broke_off_before_its_first_attempt_rented_nothing() -> None:
    ended, said = play(record(), (3, Abandoned()))
    assert (ended.status, said) == ("failed", [])
    assert "nothing was rented" in ended.reason


def test_on_this_computer_a_machine_that_is_gone_is_gone() -> None:
    begun, said = play(record(None, free_plan("local")), (0, Begin()))
    assert begun.attempt.deadline == 100 * HOUR
    assert names(said) == ["Create"]
    lost, _ = play(begun, (1, Created(1, "m1", 0.0)), (2, Observed(1, None)))
    assert (lost.status, lost.worst_case()) == ("lost", 0)
    never, _ = play(begun, (2, Observed(1, None)))
    assert never.status == "failed"


def test_on_this_computer_one_that_was_killed_goes_on_from_its_checkpoint_as_long_as_it_gets_further() -> None:
    begun, _ = play(
        record(None, free_plan("local")), (0, Begin()), (1, Created(1, "m1", 0.0)), (1, Observed(1, "m1", heartbeat=1))
    )
    second, said = play(begun, (2, Observed(1, None, kept_step=7)))
    assert names(said) == ["Revoke", "Create"]
    assert (second.attempt.number, second.worst_case()) == (2, 0)
    # Nothing is booted here: a few minutes are enough. The last one is not.
    for left, names_of in ((300, ["Revoke", "Create"]), (30, ["Revoke"])):
        _, said = play(begun, (100 * HOUR - left, Observed(1, None, kept_step=7)))
        assert names(said) == names_of
    stuck, _ = play(second, (3, Created(2, "m2", 0.0)), (4, Observed(2, None, resumed_from=7, kept_step=7)))
    assert stuck.status == "lost"
    cancelled, _ = play(begun, (2, CancelAsked(at_once=True)), (3, Observed(1, None, kept_step=7)))
    assert cancelled.status == "stopped"
    elsewhere, _ = play(record(None, free_plan("manual")), (0, Begin()), (1, Created(1, "m1", 0.0)))
    lost, _ = play(elsewhere, (2, Observed(1, None, kept_step=7)))
    assert lost.status == "lost"


def test_a_rate_that_is_read_late_counts_all_the_same() -> None:
    begun, _ = play(record(), (0, Begin()), (1, Created(1, "m1", None)))
    assert begun.attempt.rate_usd is None
    same, said = play(begun, (10, Observed(1, "m1", 0.45, heartbeat=9)))
    assert (same.attempt.rate_usd, said) == (0.45, [])
    # The ledger never counts less than what was quoted.
    assert same.worst_case() == pytest.approx(5.0)
    dear, said = play(same, (20, Observed(1, "m1", 2.0, heartbeat=19)))
    assert (dear.attempt.rate_usd, names(said)) == (2.0, ["Terminate"])


def test_a_machine_that_has_stopped_shows_no_rate_and_is_counted_at_its_quote() -> None:
    doubtful, _ = play(record(), (0, Begin()), (1, CreateFailed(1, "unknown", "time-out")))
    stopped, said = play(doubtful, (2 * HOUR, Observed(1, "m1", None, stopped=True)))
    assert names(said) == ["Terminate"]
    assert stopped.spent(2 * HOUR) == pytest.approx(1.0)


def test_a_machine_that_falls_silent_is_ended_and_another_rented() -> None:
    silent, said = play(running(), (800, Observed(1, "m1", heartbeat=700)), (1600, Observed(1, "m1", heartbeat=700)))
    assert said == []
    silent, said = play(silent, (1701, Observed(1, "m1", heartbeat=700)))
    assert names(said) == ["Terminate"]
    assert "no sign of life" in silent.attempt.ending
    again, _ = play(silent, (1800, Observed(1, None)))
    assert again.attempt.offer == L4


def test_doubt_begins_when_the_call_is_sent_not_when_it_is_decided() -> None:
    slow, _ = play(record(), (0, Begin()), (300, Asked(1)))
    assert play(slow, (350, Observed(1, None)))[1] == []
    assert names(play(slow, (300 + DOUBT + 1, Observed(1, None)))[1]) == ["Revoke", "EndOthers", "Create"]


def test_a_receipt_tells_what_was_seen_and_what_the_machine_said() -> None:
    late, _ = play(running(), (20 * HOUR, Observed(1, None, outcome="completed", outcome_at=HOUR, has_result=True)))
    receipt = late.attempt.receipt
    assert receipt is not None
    # Seen gone only now: an upper bound over the budget is said, not hidden.
    assert (receipt.seconds, receipt.told_seconds, receipt.usd) == (20 * HOUR, HOUR, pytest.approx(10.0))


def test_an_offer_that_lost_two_machines_is_left_for_another() -> None:
    second, _ = play(running(), (HOUR, Observed(1, None)))
    third, _ = play(
        second,
        (HOUR + 1, Created(2, "m2", 0.5)),
        (HOUR + 2, Observed(2, "m2", 0.5, heartbeat=1)),
        (HOUR + 300, Observed(2, None)),
    )
    assert third.attempt.offer == A40
