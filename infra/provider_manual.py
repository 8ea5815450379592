"""Provider ``manual``: a machine that the user finds and pays for; cloudft hands over a ticket, and waits.

All that is known of such a machine is what it writes to the store. A note in the project's folder stands for it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from infra.gpus import Wish
from infra.offers import Offer
from infra.provider import ORDINARY, Machine, Order, Terms, parse_machine_name


class ManualProvider:
    """Machines are notes.

    Args:
        folder: where the notes are kept.
    """

    name = "manual"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def check(self) -> None:
        """There is nobody to ask."""

    def offers(self, wishes: Sequence[Wish], terms: Terms = ORDINARY) -> list[Offer]:
        return []

    def create(self, order: Order) -> Machine:
        self._folder.mkdir(parents=True, exist_ok=True)
        note = self._folder / f"{order.name}.json"
        # Its beginning is all that it says: the ticket's URL is a capability, and is not kept here.
        part = note.with_suffix(".part")
        part.write_text(json.dumps({"created_at": time.time()}), encoding="utf-8")
        part.replace(note)
        return self._read(note)

    def find(self, name: str, machine_id: str | None = None) -> Machine | None:
        note = self._folder / f"{name}.json"
        return self._read(note) if note.is_file() else None

    def machines(self) -> list[Machine]:
        notes = sorted(self._folder.glob("*.json")) if self._folder.is_dir() else []
        return [self._read(note) for note in notes if parse_machine_name(note.stem)]

    def log(self, name: str) -> str:
        return ""

    def terminate(self, name: str, machine_id: str | None = None) -> None:
        """Forget it: only its owner can end it. It ends by itself, at its deadline at the latest."""
        (self._folder / f"{name}.json").unlink(missing_ok=True)

    def _read(self, note: Path) -> Machine:
        created = float(json.loads(note.read_text(encoding="utf-8"))["created_at"])
        return Machine("manual", note.stem, note.stem, "running", 0.0, created, "a machine of your own")
