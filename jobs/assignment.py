"""A ticket, and what works by it; what the supervisor tells of it in heartbeat and outcome. Standard library only."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import child
from jobs import ticket as names
from jobs.delivery import Delivered, Delivery
from jobs.keeper import Keeper
from jobs.lifecycle import TAKEN, State
from jobs.phases import Phases
from jobs.reports import Reports
from jobs.rescue import Rescue
from jobs.ticket import Ticket


@dataclass(frozen=True)
class Assignment:
    """What a machine has once it has read its ticket. ``out``: where the trainer leaves what it made."""

    ticket: Ticket
    out: Path
    keeper: Keeper
    rescue: Rescue
    delivery: Delivery
    reports: Reports

    @classmethod
    def of(
        cls, ticket: Ticket, work: Path, log: Path, say: Callable[[str], None], told: Callable[[], dict[str, Any]]
    ) -> Assignment:
        """``told``: what a heartbeat says of the machine."""
        out = work / "out"
        return cls(
            ticket,
            out,
            Keeper(ticket.outputs, work, say, ticket.piece_bytes),
            Rescue(work, ticket.run_id, say),
            Delivery(ticket.outputs, out, work / names.ADAPTER, ticket.piece_bytes, say),
            Reports(ticket.outputs, work, log, say, told),
        )

    def outcome(self, state: State, phases: Phases, delivered: Delivered | None) -> dict[str, Any]:
        """How it ended: the object of that name, and the result."""
        report = child.read_report(self.out / child.REPORT)
        rescued = self.rescue.step
        return {
            "schema_version": names.SCHEMA_VERSION,
            "run_id": self.ticket.run_id,
            "attempt": self.ticket.attempt,
            "status": state.status,
            "reason": state.reason,
            "artifacts": {"adapter": delivered.artifact()} if delivered else {},
            "gpu": self.reports.gpu.report(),
            "adapter_step": report.get("adapter_step") if rescued is None else rescued,
            "trainer": report,
            **self.keeper.report(),
            "phases": phases.seconds,
            "started_at": phases.started,
            "ended_at": time.time(),
        }

    def heartbeat(self, state: State, phases: Phases) -> dict[str, Any]:
        """What a heartbeat says of this machine."""
        report = child.read_report(self.out / child.REPORT)
        return {
            "phase": state.phase.value,
            "reason": state.reason or state.stop_reason,
            "started_at": phases.started,
            "phases": dict(phases.seconds),
            "trainer": {name: report[name] for name in ("phases", "first_step_at", "last_step_at") if name in report},
            "leaving": state.reason == TAKEN,
            **self.keeper.report(),
        }
