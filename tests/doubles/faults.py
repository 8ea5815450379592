"""Faults of a double, switched on by a test: what all doubles share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Fault:
    """One thing that goes wrong with ``target``; ``times`` is how often, None for always, ``hits`` how often it did."""

    kind: str
    target: str
    times: int | None
    value: float = 0.0
    hits: int = 0

    def left(self) -> bool:
        return self.times is None or self.hits < self.times


@dataclass
class FaultList:
    """All that is switched on. Safe to use from several threads."""

    list_lag_s: float = 0.0
    _all: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def clear(self) -> None:
        """All is well again."""
        with self._lock:
            self._all.clear()
            self.list_lag_s = 0.0

    def _take(self, kind: str, matches: Callable[[str], bool]) -> Fault | None:
        """The first fault of that kind that is left and strikes now, counted as a hit."""
        with self._lock:
            for fault in self._all:
                if fault.kind == kind and fault.left() and matches(fault.target):
                    fault.hits += 1
                    return fault
        return None

    def _add(self, kind: str, target: str, times: int | None, value: float = 0.0) -> Fault:
        fault = Fault(kind, target, times, value)
        with self._lock:
            self._all.append(fault)
        return fault
