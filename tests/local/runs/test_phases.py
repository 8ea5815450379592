"""Where an attempt's seconds went: phases that add up, whatever went on side by side."""

from __future__ import annotations

from typing import Any

import pytest

from local.runs.lifecycle import Observed, decide
from local.runs.phases import phases_of, to_first_step
from tests.local.runs.test_lifecycle import running

CREATED = 1000.0
# A container that was there 30 s after the order, read its ticket for 1 s, and had its inputs 20 s later.
TOLD: dict[str, Any] = {
    "started_at": CREATED + 30,
    "phases": {"boot": 1.0, "fetch": 20.0, "train": 100.0, "upload": 4.0, "record": 1.0},
    "trainer": {
        "phases": {"import": 2.0, "load": 5.0, "measure": 8.0, "train": 80.0, "save": 3.0},
        "first_step_at": CREATED + 30 + 1 + 20 + 2 + 5 + 5,
        "last_step_at": CREATED + 30 + 1 + 20 + 92,
    },
}


def test_what_goes_on_side_by_side_is_counted_once() -> None:
    found = phases_of(CREATED, TOLD)
    assert found == {
        "boot and pull": 30.0,
        "download": 20.0,
        "start-up": 1.0 + 2.0 + 5.0 + 2.0,  # two seconds that the trainer does not name
        "measure": 8.0,
        "train": 80.0,
        "save": 3.0,
        "upload": 5.0,
    }
    assert sum(found.values()) == 30 + sum(TOLD["phases"].values())
    assert list(found)[:3] == ["boot and pull", "download", "start-up"]
    assert to_first_step(TOLD) == 33.0


def test_a_machine_that_was_lost_has_trained_for_all_that_is_known() -> None:
    lost = {"started_at": CREATED + 30, "phases": {"boot": 1.0, "fetch": 20.0, "train": 100.0}, "trainer": {}}
    assert phases_of(CREATED, lost) == {"boot and pull": 30.0, "download": 20.0, "start-up": 1.0, "train": 100.0}
    assert to_first_step(lost) is None
    assert phases_of(CREATED, {}) == {}


def test_a_trainer_that_was_started_again_and_one_that_was_stopped() -> None:
    told = {**TOLD, "phases": {"boot": 1.0, "fetch": 20.0, "earlier tries": 50.0, "train": 70.0, "stopping": 30.0}}
    found = phases_of(CREATED, told)
    assert found["train"] == 80 + 50
    assert found["start-up"] == 1.0 + 2.0 + 5.0 + 2.0
    assert sum(found.values()) == 30 + sum(told["phases"].values())


def test_where_a_clock_was_set_no_second_counts_twice() -> None:
    told = {**TOLD, "phases": {"boot": 1.0, "fetch": 20.0, "train": 49.0}}
    assert sum(phases_of(CREATED, told).values()) == pytest.approx(30 + 70)


def test_a_receipt_says_how_long_it_took_to_the_first_step_and_from_the_last() -> None:
    phases = phases_of(0, {**TOLD, "started_at": 30.0})
    seen = Observed(
        1, None, outcome="completed", has_result=True, phases=phases, to_first_step=33.0, last_step_at=143.0
    )
    receipt = decide(running(), seen, 170)[0].attempt.receipt
    assert receipt is not None
    assert sum(receipt.phases.values()) == pytest.approx(receipt.seconds)
    assert receipt.phases["teardown"] == pytest.approx(170 - sum(phases.values()))
    assert (receipt.to_first_step, receipt.after_last_step) == (33.0, 27.0)
