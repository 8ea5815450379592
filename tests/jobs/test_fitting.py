"""Steps that are fitted to the time, as arithmetic."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.fitting import MEASURED, UNCOUNTED, Schedule, StepClock, fitted


def test_where_the_time_is_enough_nothing_changes() -> None:
    schedule = Schedule(300)
    assert fitted(schedule, 20, per_step=1.0, available=280.0) is schedule
    assert [schedule.position(step) for step in (0, 7, 300)] == [0.0, 7.0, 300.0]


def test_the_rest_of_the_schedule_is_run_through_in_the_steps_that_fit() -> None:
    cut = fitted(Schedule(300), 20, per_step=1.0, available=200.0)
    assert cut.last == 20 + 190  # a twentieth of the time is left unused
    assert cut.position(10) == 10.0
    assert cut.position(20) == 20.0
    assert cut.position(20 + 95) == pytest.approx(20 + 140)
    assert cut.position(cut.last) == 300.0


def test_the_stages_after_it_get_their_share() -> None:
    alone = fitted(Schedule(300), 20, 1.0, 200.0)
    shared = fitted(Schedule(300), 20, 1.0, 200.0, later=280.0)
    assert shared.last - 20 == (alone.last - 20) // 2


def test_without_any_time_one_step_is_left() -> None:
    assert fitted(Schedule(300), 20, 1.0, -50.0).last == 21
    assert fitted(Schedule(300), 299, 1.0, -50.0).last == 300


@given(
    st.integers(2, 2000),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=5),
)
def test_however_often_it_is_cut_the_schedule_goes_forward_without_a_jump_to_its_end(
    planned: int, cuts: list[tuple[float, float]]
) -> None:
    schedule, at = Schedule(planned), 0
    for where, room in cuts:
        step = at + int(where * (schedule.last - at))
        before = schedule
        schedule = fitted(schedule, step, per_step=1.0, available=room * (schedule.last - step))
        assert schedule.last <= before.last
        assert schedule.position(step) == pytest.approx(before.position(step))
        at = step
    positions = [schedule.position(step) for step in range(schedule.last + 1)]
    assert positions == sorted(positions)
    assert positions[-1] == pytest.approx(planned)
    # What travels in a checkpoint is the same schedule.
    again = Schedule.from_list(planned, json.loads(json.dumps(schedule.as_list())))
    assert again == schedule


def test_a_step_is_measured_without_the_first_ones_and_without_what_is_done_beside() -> None:
    clock, now = StepClock(), 0.0
    for step in range(UNCOUNTED + MEASURED + 1):
        assert clock.seconds is None
        now += 60.0 if step <= UNCOUNTED else 2.0
        if step == UNCOUNTED + 3:
            clock.beside(100.0)
            now += 100.0
        clock.step(now)
    assert clock.seconds == pytest.approx(2.0)
