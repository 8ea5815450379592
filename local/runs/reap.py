"""The reaper: finds every machine of ours by name alone, and ends the overdue. It needs no project and no record."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from cloudft.errors import CloudftError
from infra.provider import Machine, Provider, parse_machine_name


@dataclass(frozen=True)
class Reaped:
    """One machine and what was done with it. ``deadline`` epoch seconds; ``why`` when it could not be ended."""

    machine: Machine
    run_id: str
    attempt: int
    deadline: float
    overdue: bool
    action: Literal["left", "would end", "ended", "not ended"]
    why: str = ""


@dataclass(frozen=True)
class Sweep:
    """What a sweep found, and the providers that could not be asked, with the reason."""

    machines: tuple[Reaped, ...]
    unasked: tuple[tuple[str, str], ...]

    @property
    def clean(self) -> bool:
        """Nothing overdue is left, as far as every provider could be asked."""
        return not self.unasked and all(r.action != "not ended" for r in self.machines)


def reap(providers: Iterable[Provider], now: float, *, everything: bool = False, dry_run: bool = False) -> Sweep:
    """Look at each provider's machines, and end those whose deadline has passed.

    Args:
        now: epoch seconds.
        everything: end all of ours, overdue or not.
        dry_run: say what would be ended, and end nothing.
    """
    found: list[Reaped] = []
    unasked: list[tuple[str, str]] = []
    for provider in providers:
        try:
            machines = provider.machines()
        except CloudftError as exc:
            unasked.append((provider.name, f"{exc.what} ({exc.hint})" if exc.hint else exc.what))
            continue
        found += _sweep(provider, machines, now, everything, dry_run)
    return Sweep(tuple(found), tuple(unasked))


def _sweep(
    provider: Provider, machines: Sequence[Machine], now: float, everything: bool, dry_run: bool
) -> list[Reaped]:
    found = []
    for machine in machines:
        parsed = parse_machine_name(machine.name)
        if parsed is None:
            continue
        run_id, attempt, deadline = parsed
        overdue = now >= deadline
        action, why = _end(provider, machine, overdue or everything, dry_run)
        found.append(Reaped(machine, run_id, attempt, deadline, overdue, action, why))
    return found


def _end(
    provider: Provider, machine: Machine, wanted: bool, dry_run: bool
) -> tuple[Literal["left", "would end", "ended", "not ended"], str]:
    if not wanted:
        return "left", ""
    if dry_run:
        return "would end", ""
    try:
        provider.terminate(machine.name)
    except CloudftError as exc:
        # One that resists must not save the others.
        return "not ended", exc.what
    return "ended", ""
