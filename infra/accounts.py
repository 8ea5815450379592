"""Which rented providers have an account set up on this computer: the one table for offers, reaping and words."""

from __future__ import annotations

import os

# The variables by which an account is known to be set up; the first is the one that messages name.
ACCOUNTS: dict[str, tuple[str, ...]] = {
    "runpod": ("RUNPOD_API_KEY",),
    "modal": ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET"),
}


def accounts() -> list[str]:
    """The rented providers whose account is set up here."""
    return [name for name, variables in ACCOUNTS.items() if all(os.environ.get(v) for v in variables)]
