"""The result's way into the store, begun while the gate still looks at it. Standard library only.

What the last stage made is most likely what goes home. So the trainer saves it before it is measured for the last time,
as a candidate, and it is sent meanwhile. Kept, it only changes its name; kept out, something else is saved and sent.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jobs import pieces, transfer
from jobs import ticket as names
from jobs.bundle import Bundle, pack
from jobs.ticket import Output

# In the trainer's ``out``.
CANDIDATE, RESULT = "candidate", "adapter"
POLL = 0.25

# Of each file its name, size and time of writing in nanoseconds; a folder that is renamed keeps them.
Marks = frozenset[tuple[str, int, int]]


@dataclass(frozen=True)
class Delivered:
    """What is in the store: the packed folder, and the names of the objects that it was cut into."""

    bundle: Bundle
    pieces: list[str]
    piece_bytes: int

    def artifact(self) -> dict[str, Any]:
        """As the result names it."""
        return {
            "key": names.ADAPTER,
            "pieces": self.pieces,
            "piece_bytes": self.piece_bytes,
            "sha256": self.bundle.sha256,
            "bytes": self.bundle.bytes,
            "files": self.bundle.files,
        }


class Delivery:
    """Packs and sends a folder of ``out``, one at a time; ``tar`` is where it is packed."""

    def __init__(
        self, outputs: Mapping[str, Output], out: Path, tar: Path, piece_bytes: int, say: Callable[[str], None]
    ) -> None:
        self.outputs, self.out, self.tar, self.piece_bytes, self.say = outputs, out, tar, piece_bytes, say
        self._sent: tuple[Marks, Delivered] | None = None
        self._sending = threading.Lock()

    def send_early(self, active: Callable[[], bool], done: threading.Event) -> None:
        """Send each candidate once as long as ``active`` says so, until ``done``. A failure is said, no more."""
        tried: Marks = frozenset()
        while not done.wait(POLL):
            marks = _marks(self.out / CANDIDATE)
            if not marks or marks == tried or not active():
                continue
            tried = marks
            given_up = partial(self._given_up, marks, active)
            try:
                with self._sending:
                    self._put(pack(self.out / CANDIDATE, self.tar), marks, given_up)
                self.say("the result is in the store before it is known whether it is kept")
            except Exception as exc:  # it is only sooner than it must be, and no reason to end a training
                if not given_up():
                    self.say(f"the result could not be sent early: {exc}")

    def send(self, until: float) -> Delivered:
        """The result, unless it is there already; one that is on its way is waited for.

        Raises:
            TransferError: the store did not take it until then (epoch seconds).
        """
        with self._sending:
            marks = _marks(self.out / RESULT)
            if self._sent is not None and self._sent[0] == marks:
                return self._sent[1]
            # Packed once, however often it must be sent.
            bundle = pack(self.out / RESULT, self.tar)
            return transfer.retried(lambda: self._put(bundle, marks, lambda: False), until)

    def _put(self, bundle: Bundle, marks: Marks, given_up: Callable[[], bool]) -> Delivered:
        self._sent = None
        sent = pieces.send(self.outputs, names.ADAPTER, bundle.path, self.piece_bytes, given_up)
        delivered = Delivered(bundle, sent, self.piece_bytes)
        self._sent = marks, delivered
        return delivered

    def _given_up(self, marks: Marks, active: Callable[[], bool]) -> bool:
        """Whether that is no longer what the trainer has, under either name, or something else is more urgent."""
        return not active() or marks not in (_marks(self.out / CANDIDATE), _marks(self.out / RESULT))


def _marks(folder: Path) -> Marks:
    """Empty for a folder that is not there, or goes while it is read."""
    with contextlib.suppress(OSError):
        files = [(path.relative_to(folder).as_posix(), path.stat()) for path in folder.rglob("*") if path.is_file()]
        return frozenset((name, stat.st_size, stat.st_mtime_ns) for name, stat in files)
    return frozenset()
