"""Which rented providers have an account set up on this computer: the one table for offers, reaping and words."""

from __future__ import annotations

import os
from pathlib import Path

# The variables by which an account is known to be set up.
ACCOUNTS: dict[str, tuple[str, ...]] = {
    "runpod": ("RUNPOD_API_KEY",),
    "modal": ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET"),
}
# What a provider's own command writes them into: the variable that names another place, and the usual one.
FILES = {"modal": ("MODAL_CONFIG_PATH", "~/.modal.toml")}


def accounts() -> list[str]:
    """The rented providers whose account is set up here, or half set up: the provider itself says what is missing.

    One that is left out because a half of its token is missing would look like one that has no machines.
    """
    return [name for name, variables in ACCOUNTS.items() if any(map(os.environ.get, variables)) or _has_file(name)]


def how_to_set_up() -> str:
    """The variables that set up an account, in words."""
    return ", or ".join(" and ".join(variables) for variables in ACCOUNTS.values())


def _has_file(name: str) -> bool:
    variable, usual = FILES.get(name, ("", ""))
    place = os.environ.get(variable) or usual
    return bool(place) and Path(place).expanduser().is_file()
