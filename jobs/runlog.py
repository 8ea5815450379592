"""The lines that the trainer writes for the person who reads its log."""

from __future__ import annotations

from jobs import ranks


def say(text: str) -> None:
    """One line of the log; of several ranks the first speaks for all."""
    if ranks.first():
        print(text, flush=True)


def log(name: str, value: object, origin: str) -> None:
    """One resolved setting, and where it came from."""
    say(f"  {name:<24} {value!s:<12} {origin}")
