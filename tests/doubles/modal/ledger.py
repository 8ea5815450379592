"""What the server charges: exact to the second, by its own clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass
class Account:
    """One sandbox's bill: ``rate`` dollars per hour from ``start`` on; ``end`` None while it runs."""

    name: str
    start: float
    rate: float
    end: float | None = None


class Ledger:
    """The bills of all sandboxes."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._accounts: dict[str, Account] = {}

    def open(self, sandbox_id: str, name: str, rate: float, at: float) -> None:
        self._accounts[sandbox_id] = Account(name, at, rate)

    def close(self, sandbox_id: str, at: float) -> None:
        account = self._accounts.get(sandbox_id)
        if account is not None and account.end is None:
            account.end = at

    def total(self, name_prefix: str = "") -> float:
        """Dollars for all sandboxes whose name begins so."""
        return sum(self._amount(a) for a in self._accounts.values() if a.name.startswith(name_prefix))

    def rate_of(self, sandbox_id: str) -> float:
        """Dollars per hour; 0 for one that never got a machine."""
        account = self._accounts.get(sandbox_id)
        return account.rate if account else 0.0

    def _amount(self, account: Account) -> float:
        end = self._now() if account.end is None else account.end
        return max(end - account.start, 0.0) * account.rate / 3600
