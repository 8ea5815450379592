"""The clock that tests drive."""

from __future__ import annotations

import pytest

from .clock import ManualClock, RealClock


class Alarm:
    """Rings at the given times and notes when it did."""

    def __init__(self, clock: ManualClock, times: list[float]) -> None:
        self.clock, self.times, self.rung = clock, times, list[float]()
        clock.subscribe(self)

    def next_event(self) -> float | None:
        return min(self.times, default=None)

    def settle(self) -> None:
        due = [at for at in self.times if at <= self.clock.now()]
        self.times = [at for at in self.times if at not in due]
        self.rung += [self.clock.now() for _ in due]


def test_events_happen_when_they_are_due_and_not_when_the_test_next_looks() -> None:
    clock = ManualClock(100)
    first, second = Alarm(clock, [110, 130, 500]), Alarm(clock, [120])
    clock.advance(60)
    assert first.rung == [110, 130]
    assert second.rung == [120]
    assert clock.now() == 160


def test_an_overdue_event_does_not_turn_time_back() -> None:
    clock = ManualClock(100)
    alarm = Alarm(clock, [40])
    clock.advance(5)
    assert alarm.rung == [100]
    assert clock.now() == 105


def test_time_only_moves_forward() -> None:
    with pytest.raises(ValueError, match="forward"):
        ManualClock().advance(-1)


def test_the_real_clock_moves_by_itself() -> None:
    clock = RealClock()
    earlier = clock.now()
    while clock.now() == earlier:
        pass
    assert clock.now() > earlier
