"""How the core tells the person at the keyboard that it moves: it calls back, and never prints."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called often and cheaply with where a long piece of work stands.

    ``what`` names the piece ("merge", "download adapter.tar"); ``done`` and ``total`` are in ``unit``
    ("bytes", "tensors", "rows", "steps"), ``total`` None when unknown. ``note`` is a short free text.
    """

    def __call__(
        self, what: str, done: float = 0, total: float | None = None, unit: str = "", note: str = ""
    ) -> None: ...


def silent(what: str, done: float = 0, total: float | None = None, unit: str = "", note: str = "") -> None:
    """A ``Progress`` that says nothing."""
