"""The time that a double lives in: real, or moved by the test.

All times are epoch seconds. Whoever has something to do at a certain time subscribes; a manual clock then
stops at each such time in order, so that things happen when they are due and not when the test next looks.
"""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Listener(Protocol):
    """Something that acts at certain times."""

    def next_event(self) -> float | None:
        """The time of the next thing to do, None if there is none."""

    def settle(self) -> None:
        """Do all that is due now."""


class Clock(Protocol):
    """Where the time comes from."""

    def now(self) -> float:
        """The time, in epoch seconds."""

    def subscribe(self, listener: Listener) -> None:
        """Have ``listener`` settled whenever this clock is moved by hand (a real clock does nothing)."""


class RealClock:
    """The wall clock."""

    def now(self) -> float:
        return time.time()

    def subscribe(self, listener: Listener) -> None:
        """Nobody moves the wall clock: listeners look by themselves."""


class ManualClock:
    """A clock that stands still until ``advance`` is called. Safe to read from several threads.

    Args:
        start: the first time, in epoch seconds (2026-11-01T00:00:00Z by default).
    """

    def __init__(self, start: float = 1_793_491_200.0) -> None:
        self._now = start
        self._lock = threading.Lock()
        self._listeners: list[Listener] = []

    def now(self) -> float:
        with self._lock:
            return self._now

    def subscribe(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def advance(self, seconds: float) -> None:
        """Move on by ``seconds``, stopping at every event on the way in the order of time."""
        if seconds < 0:
            raise ValueError("time only moves forward")
        target = self.now() + seconds
        while (due := self._earliest()) is not None and due <= target:
            self._set(max(due, self.now()))
            self._settle()
        self._set(target)
        self._settle()

    def _earliest(self) -> float | None:
        times = [at for listener in self._listeners if (at := listener.next_event()) is not None]
        return min(times, default=None)

    def _set(self, at: float) -> None:
        with self._lock:
            self._now = at

    def _settle(self) -> None:
        for listener in list(self._listeners):
            listener.settle()
