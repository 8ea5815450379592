"""Keeps a run's checkpoints in the store, and brings the newest back. Standard library only.

Two slots take turns: a checkpoint goes to the one that does not hold the newest, is checked there, and only then does
``checkpoint.json`` name it. A machine that is lost at any moment leaves a whole checkpoint behind. A checkpoint that
cannot be stored, or brought back, never stops a run: it costs the steps since the one before.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jobs import checkpoints, pieces, transfer
from jobs import ticket as names
from jobs.bundle import pack, unpack
from jobs.checkpoints import Checkpoint
from jobs.ticket import Output
from jobs.transfer import TransferError

POLL = 0.25
# Seconds until a checkpoint that the store did not take is tried again; a newer one takes its place meanwhile.
FIRST_PAUSE, LONGEST_PAUSE = 30, 600


@dataclass(frozen=True)
class Stored:
    """A checkpoint in the store: which slot, the step, and what the tar in it must be. ``at``: epoch seconds."""

    slot: int
    step: int
    sha256: str
    bytes: int
    at: float
    piece_bytes: int


class Keeper:
    """The checkpoints of one machine and those in the store. ``stored``: newest first, two at most."""

    def __init__(
        self, outputs: Mapping[str, Output], work: Path, say: Callable[[str], None], piece_bytes: int = 4_000_000_000
    ) -> None:
        self.outputs = outputs
        self.piece_bytes = piece_bytes
        self.folder = work / checkpoints.FOLDER
        self.scratch = work / "checkpoint.tar"
        self.incoming = work / "incoming"
        self.say = say
        self.stored: tuple[Stored, ...] = ()
        self.resumed_from = 0
        self._lock = threading.Lock()

    @property
    def can_keep(self) -> bool:
        """A ticket of an older client has no slots."""
        return {names.CHECKPOINT, *names.SLOTS} <= set(self.outputs)

    def newest(self) -> Checkpoint | None:
        """The newest on this machine's disk."""
        return next(iter(checkpoints.sealed(self.folder)), None)

    def step_on_disk(self) -> int:
        """Its step; 0 for none."""
        newest = self.newest()
        return newest.step if newest else 0

    def restore(self, until: float) -> None:
        """Have the newest whole checkpoint on this disk, from the store if it is not there already.

        ``resumed_from`` is its step then, 0 for none. ``until``: the epoch second at which trying ends.
        """
        whole = [c for c in checkpoints.sealed(self.folder) if self._is_whole(c)]
        checkpoints.sweep(self.folder, keep=whole)
        self.resumed_from = whole[0].step if whole else 0
        if not self.can_keep:
            return
        try:
            self.stored = transfer.retried(self._read_manifest, until)
        except TransferError as exc:
            self.say(f"cannot find out whether the store has a checkpoint: {exc}")
        for stored in self.stored:
            if stored.step <= self.resumed_from:
                break
            try:
                transfer.retried(partial(self._fetch, stored), until)
            except (TransferError, ValueError, OSError) as exc:
                self.say(f"the checkpoint of step {stored.step} in slot {stored.slot} cannot be used: {exc}")
                continue
            self.resumed_from = stored.step
            self.say(f"the checkpoint of step {stored.step} came from the store")
            return
        if self.resumed_from:
            self.say(f"the checkpoint of step {self.resumed_from} is on this machine's disk")
        elif self.stored:
            self.say("no checkpoint can be used: training begins anew")

    def keep(self, until: float, given_up: Callable[[], bool] = lambda: False) -> None:
        """Store the newest checkpoint unless that is done. ``given_up`` breaks it off.

        Raises:
            TransferError, OSError, ValueError: it could not be; the one before is still there.
        """
        with self._lock:
            newest = self.newest()
            if not self.can_keep or newest is None or (self.stored and newest.step <= self.stored[0].step):
                return
            bundle = pack(newest.path, self.scratch)
            if not newest.files.items() <= bundle.files.items():
                # The trainer keeps two, so this takes an upload that is slower than its checkpoints.
                raise ValueError(f"the checkpoint of step {newest.step} went while it was packed")
            slot = 1 - self.stored[0].slot if self.stored else 0
            stored = Stored(slot, newest.step, bundle.sha256, bundle.bytes, newest.at, self.piece_bytes)
            transfer.retried(partial(self._send, stored, given_up), until)
            self.stored = (stored, *self.stored[:1])
            self.scratch.unlink(missing_ok=True)
            self.say(f"the checkpoint of step {stored.step} is in the store ({stored.bytes / 1e6:.1f} MB)")

    def keep_beside(self, active: Callable[[], bool], done: threading.Event) -> None:
        """Store each new checkpoint as long as ``active`` says so, until ``done``. A failure is said, no more."""
        failures, next_try = 0, 0.0
        while not done.wait(POLL):
            if not active() or time.time() < next_try:
                continue
            try:
                self.keep(until=0, given_up=lambda: not active())
                failures = 0
            except (TransferError, OSError, ValueError) as exc:
                if not active():
                    continue
                failures += 1
                pause = min(FIRST_PAUSE * 2 ** (failures - 1), LONGEST_PAUSE)
                next_try = time.time() + pause
                self.say(f"the store did not take the checkpoint, training goes on, next try in {pause:.0f} s: {exc}")

    def _send(self, stored: Stored, given_up: Callable[[], bool]) -> None:
        pieces.send(self.outputs, names.SLOTS[stored.slot], self.scratch, stored.piece_bytes, given_up)
        # The older one is whole until its slot is written to again.
        older = asdict(self.stored[0]) if self.stored else None
        manifest = json.dumps({**asdict(stored), "previous": older}, indent=1).encode()
        transfer.put_bytes(self.outputs[names.CHECKPOINT].put, manifest)

    def _read_manifest(self) -> tuple[Stored, ...]:
        try:
            raw = transfer.read_bytes(self.outputs[names.CHECKPOINT].get)
        except TransferError as exc:
            if exc.missing:
                return ()
            raise
        try:
            newest = json.loads(raw)
            entries = [newest, newest.pop("previous")]
            return tuple(_stored(entry) for entry in entries if entry)
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            self.say(f"{names.CHECKPOINT} in the store cannot be read: {exc}")
            return ()

    def _fetch(self, stored: Stored) -> None:
        target = self.folder / f"{checkpoints.PREFIX}{stored.step}"
        # Named by content: a broken download goes on where it ended, but never with another object's bytes.
        tar = self.incoming / f"{stored.sha256}.tar"
        slot = names.SLOTS[stored.slot]
        pieces.fetch(self.outputs, slot, tar, stored.sha256, stored.bytes, stored.piece_bytes)
        shutil.rmtree(target, ignore_errors=True)
        unpack(tar, target)
        shutil.rmtree(self.incoming)
        if not any(c.path == target and not c.damage() for c in checkpoints.sealed(self.folder)):
            shutil.rmtree(target)
            raise ValueError("what is in it is not whole")

    def _is_whole(self, checkpoint: Checkpoint) -> bool:
        if damage := checkpoint.damage():
            self.say(f"the checkpoint of step {checkpoint.step} on this disk cannot be used: {damage}")
        return not damage

    def report(self) -> dict[str, Any]:
        """For the heartbeat and the outcome: what the loss of this machine would leave, and where it began."""
        newest = self.stored[0] if self.stored else None
        return {
            "resumed_from": self.resumed_from,
            "checkpoint": {"step": newest.step, "at": newest.at} if newest else None,
        }


def _stored(entry: dict[str, Any]) -> Stored:
    slot = int(entry["slot"])
    if slot not in range(len(names.SLOTS)):
        raise ValueError(f"there is no slot {slot}")
    size = int(entry["bytes"])
    # An older client's checkpoints are one object each.
    whole = int(entry.get("piece_bytes") or size)
    return Stored(slot, int(entry["step"]), str(entry["sha256"]), size, float(entry["at"]), max(whole, 1))
