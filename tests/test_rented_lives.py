"""A stateful property test over the real wire: whatever happens in whatever order, the server's ledger stays within
the budget and no machine outlives its run, as long as one layer works. The same test for every provider that rents.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cloudft.commands.status_command import receipts
from cloudft.errors import StoreError
from infra.provider import Machine, Order
from local.runs.records import write_record
from local.runs.watch import look
from tests.rented import Life, RentedModal, RentedRunpod

PROVIDERS: dict[str, Any] = {"runpod": RentedRunpod, "modal": RentedModal}
LAYERS = [
    {"supervisor", "client", "reaper"},
    {"supervisor"},
    {"client"},
    {"reaper"},
    {"supervisor", "client"},
    {"client", "reaper"},
]
CREATE_FAULTS = ["drop_reply", "drop_request", "no_capacity", "never_boot", "dearer"]


class Lives(RuleBasedStateMachine):
    """Submit, train, restart, preempt, kill the client, drop the reply, cancel, reap: in any order."""

    provider = "runpod"

    def __init__(self) -> None:
        super().__init__()
        self.life: Life | None = None

    @initialize(
        layers=st.sampled_from(LAYERS),
        budget=st.sampled_from([0.3, 0.6, 1.2]),
        trains_for=st.sampled_from([300.0, 3600.0, 1e6]),
        fault=st.sampled_from([None, None, *CREATE_FAULTS]),
    )
    def submit(self, layers: set[str], budget: float, trains_for: float, fault: str | None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="cloudft-life-"))
        self.rented = PROVIDERS[self.provider]("supervisor" in layers, trains_for).__enter__()
        self.layers, self.budget = layers, budget
        self.life = Life(self.rented, self.folder, budget, client=True, reaper="reaper" in layers)
        # What never boots has no supervisor; what is dearer is seen by the client alone.
        if fault and ("client" in layers or fault in ("drop_reply", "drop_request", "no_capacity")):
            self.rented.break_next_create(fault)
        self.life.begin()

    @rule(minutes=st.sampled_from([1, 5, 20, 60]))
    def time_passes(self, minutes: int) -> None:
        self._life.advance(minutes * 60)

    @rule()
    def the_machine_is_taken_away(self) -> None:
        self.rented.preempt()

    @rule()
    def the_container_ends_and_is_started_again(self) -> None:
        self.rented.restart()

    @rule(fault=st.sampled_from(CREATE_FAULTS[:3]))
    def the_next_create_goes_wrong(self, fault: str) -> None:
        self.rented.break_next_create(fault)

    @rule()
    def an_end_takes_its_time(self) -> None:
        self.rented.slow_end()

    @rule(at_once=st.booleans())
    @precondition(lambda self: self.life is not None and self.life.client)
    def cancel(self, at_once: bool) -> None:
        self._life.cancel(at_once)

    @rule()
    @precondition(lambda self: self.life is not None and "client" not in self.layers)
    def the_client_is_gone_for_good(self) -> None:
        self._life.client = False

    @rule()
    @precondition(lambda self: self.life is not None and "client" in self.layers)
    def the_client_is_killed_and_started_again(self) -> None:
        self._life.restart_client()
        self._life.next_look = self.rented.clock.now() + 240

    @rule(seconds=st.sampled_from([0.0, 60.0, 100.0]))
    def lists_lag_behind(self, seconds: float) -> None:
        self.rented.lag(seconds)

    @invariant()
    @precondition(lambda self: self.life is not None)
    def the_bill_stays_within_the_budget(self) -> None:
        billed = self.rented.billed()
        assert billed <= self.budget + 1e-6, f"billed ${billed:.4f} of ${self.budget}"

    def teardown(self) -> None:
        if self.life is None:
            return
        try:
            if "client" not in self.layers:
                self.life.client = False
            self.life.finish()
            assert self.rented.live() == []
            self.the_bill_stays_within_the_budget()
            if self.life.client:
                assert self.life.session.record().ended
            assert self.rented.misuses() == []
        finally:
            self.rented.__exit__()
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _life(self) -> Life:
        assert self.life is not None
        return self.life


@pytest.mark.timeout(600)
@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_servers_ledger_stays_within_the_budget(provider: str) -> None:
    kind = type("LivesOf" + provider.title(), (Lives,), {"provider": provider})
    run_state_machine_as_test(
        kind,
        settings=settings(
            max_examples=12, stateful_step_count=8, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.fixture(params=PROVIDERS.values(), ids=PROVIDERS)
def kind(request: pytest.FixtureRequest) -> Any:
    """The double of one provider; what follows holds for each."""
    return request.param


@pytest.mark.parametrize("fault", ["drop_reply", "drop_request"])
def test_a_lost_reply_is_really_lost_and_one_machine_is_rented(kind: Any, fault: str, tmp_path: Path) -> None:
    with kind(supervised=True, trains_for=600) as rented:
        life = Life(rented, tmp_path, 1.0, client=True, reaper=False)
        rented.break_next_create(fault)
        life.begin()
        assert rented.hits[0].hits
        assert life.session.record().attempt.state == "doubtful"
        life.restart_client()
        life.advance(3600)
        assert life.session.record().status == "completed"
        assert rented.ever() == 1
        assert rented.billed() <= 1.0


def test_a_machine_that_turns_up_after_a_cancel_finds_that_it_is_not_wanted(kind: Any, tmp_path: Path) -> None:
    """Its create was still on its way when it was told to end, so nobody could see it; and nobody looks again."""
    with kind(supervised=True, trains_for=1e6) as rented:
        life = Life(rented, tmp_path, 2.0, client=True, reaper=False)
        rented.break_next_create("drop_reply")
        life.begin()
        assert life.session.record().attempt.state == "doubtful"
        life.session.provider.terminate = lambda name, machine_id=None: None  # type: ignore[method-assign]
        life.cancel(at_once=True)
        life.client = False
        assert rented.live()
        life.advance(600)
        assert rented.live() == []
        assert rented.billed() < 0.2


def test_a_known_machine_is_read_by_its_id_when_the_list_does_not_show_it(kind: Any, tmp_path: Path) -> None:
    with kind(supervised=True, trains_for=3600) as rented:
        life = Life(rented, tmp_path, 2.0, client=True, reaper=False)
        rented.lag(10_000)
        life.begin()
        life.restart_client()
        life.advance(1800)
        assert life.session.record().status == "running"
        assert len(life.session.record().attempts) == 1
        life.cancel(at_once=True)
        assert rented.live() == []


def test_a_second_process_does_not_judge_while_a_machine_is_being_created(kind: Any, tmp_path: Path) -> None:
    """It would take a slow create for a lost one, and rent another."""
    with kind(supervised=True, trains_for=600) as rented:
        life = Life(rented, tmp_path, 1.0, client=True, reaper=False)
        other = replace(life.session, provider=rented.another())
        create = rented.provider.create

        def slow(order: Order) -> Machine:
            rented.clock.advance(600)
            assert len(other.observe().attempts) == 1
            return create(order)

        rented.provider.create = slow  # type: ignore[method-assign]
        life.begin()
        assert len(life.session.record().attempts) == 1
        assert len(rented.live()) == 1


def test_what_fences_off_comes_first_and_a_failure_there_rents_nothing(kind: Any, tmp_path: Path) -> None:
    with kind(supervised=True, trains_for=1e6) as rented:
        life = Life(rented, tmp_path, 1.0, client=True, reaper=False)
        life.begin()
        life.advance(600)
        rented.preempt()
        store = life.session.store
        real = store.delete

        def away(key: str) -> None:
            raise StoreError("the store is away")

        store.delete = away  # type: ignore[method-assign]
        life.advance(300)
        assert rented.live() == []
        assert len(life.session.record().attempts) == 1
        store.delete = real  # type: ignore[method-assign]
        life.advance(120)
        assert len(life.session.record().attempts) == 2
        assert len(rented.live()) == 1


def test_without_any_layer_the_bill_runs_on(tmp_path: Path) -> None:
    """The test of the test: with every layer off the ledger passes the budget, so the property above can fail."""
    with RentedRunpod(supervised=False, trains_for=1e6) as rented:
        life = Life(rented, tmp_path, 0.3, client=True, reaper=False)
        life.begin()
        life.client = False
        life.advance(3 * 3600)
        assert rented.billed() > 0.3
        assert rented.live()


def test_a_machine_that_is_taken_away_is_followed_by_one_that_goes_on(kind: Any, tmp_path: Path) -> None:
    with kind(supervised=True, trains_for=3 * 3600) as rented:
        life = Life(rented, tmp_path, 3.0, client=True, reaper=False)
        life.begin()
        life.advance(2 * 3600)
        view = look(life.session)
        assert view.checkpoint_step > 3600
        assert f"the checkpoint of step {view.checkpoint_step}," in view.survives
        assert "a stop saves the adapter of the" in view.survives
        rented.preempt()
        life.advance(300)
        # Between two machines, before the second one's first heartbeat and after.
        assert f"the checkpoint of step {view.checkpoint_step}," in look(life.session).survives
        life.finish()
        record = life.session.record()
        assert record.status == "completed"
        first, second = (attempt.receipt for attempt in record.attempts)
        assert first is not None
        assert second is not None
        assert (first.resumed_from, first.kept_step) == (0, view.checkpoint_step)
        assert second.resumed_from == first.kept_step
        # All that was done twice lies between the last checkpoint and the loss.
        assert first.seconds + second.seconds < 3 * 3600 + 1500
        told = receipts(look(life.session))
        assert f"attempt 2 from step {first.kept_step} on," in told[1]
        assert rented.billed() <= 3.0
        assert rented.misuses() == []


def test_modal_itself_keeps_the_deadline_without_any_layer(tmp_path: Path) -> None:
    with RentedModal(supervised=False, trains_for=1e6) as rented:
        life = Life(rented, tmp_path, 0.3, client=True, reaper=False)
        life.begin()
        life.client = False
        assert rented.live()
        life.advance(3 * 3600)
        assert 0 < rented.billed() <= 0.3
        assert rented.live() == []


def test_a_run_of_more_than_a_day_is_split_at_modal_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.rented.STEP", 120.0)
    monkeypatch.setattr("tests.rented.LOOK_EVERY", 900.0)
    monkeypatch.setattr("tests.rented.CHECKPOINT_EVERY", 1200.0)
    with RentedModal(supervised=True, trains_for=30 * 3600) as rented:
        life = Life(rented, tmp_path, 20.0, client=True, reaper=False)
        longer = life.session.record().model_copy(update={"max_hours": 60.0, "boot_seconds": 3600.0})
        write_record(life.session.run, longer, "test")
        life.begin()
        assert rented.server.live()[0].definition.timeout_secs == 24 * 3600
        life.finish()
        record = life.session.record()
        assert (record.status, len(record.attempts)) == ("completed", 2)
        first, second = (attempt.receipt for attempt in record.attempts)
        assert first is not None
        assert second is not None
        assert first.seconds <= 24 * 3600 + 900
        assert second.resumed_from == first.kept_step > 20 * 3600
        assert rented.billed() <= 20.0
        assert rented.live() == []


def test_without_modals_own_deadline_the_bill_runs_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of the test, for Modal: with a timeout of a day and no layer, the ledger passes the budget."""
    monkeypatch.setattr("infra.modal_order._timeout", lambda order, now: 86400)
    with RentedModal(supervised=False, trains_for=1e6) as rented:
        life = Life(rented, tmp_path, 0.3, client=True, reaper=False)
        life.begin()
        life.client = False
        life.advance(3 * 3600)
        assert rented.billed() > 0.3
        assert rented.live()
