"""Where a machine's seconds went. Standard library only."""

from __future__ import annotations

import time


class Phases:
    """Seconds in each phase that has ended; they follow each other without gaps from ``started`` (epoch seconds) on."""

    def __init__(self) -> None:
        self.started = time.time()
        self.seconds: dict[str, float] = {}

    def end(self, name: str, now: float) -> None:
        """The present phase was ``name``, and has just ended. A clock that was set back takes nothing away."""
        since = min(now, self.started + sum(self.seconds.values()))
        self.seconds[name] = self.seconds.get(name, 0.0) + now - since
