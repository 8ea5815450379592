"""What a machine tells while it works, and once more at its end: heartbeat, log, metrics, audit, files of trackers.

Standard library only. All of it is best effort: whatever goes wrong with a report, the training goes on.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jobs import ticket as names
from jobs import transfer
from jobs.bundle import pack
from jobs.curve import curve, read_lines
from jobs.fetching import side_by_side
from jobs.gpu import GpuWatch
from jobs.ticket import Output

# The whole log is sent anew each time it grew, so it is cut from the front at this size.
LOG_LIMIT = 2 << 20
# Trackers' files are a comfort: more of them than this stays on the machine.
TRACKING_LIMIT = 200 << 20
# What is sent at the end, each in a request of its own: they wait for the store and not for each other.
AT_ONCE = 4


class Reports:
    """Sends what lies in ``work``. ``state`` says what the heartbeat tells of the machine itself."""

    def __init__(
        self,
        outputs: Mapping[str, Output],
        work: Path,
        log: Path,
        say: Callable[[str], None],
        state: Callable[[], dict[str, Any]],
    ) -> None:
        self.outputs, self.work, self.say, self.state = outputs, work, say, state
        self.out = work / "out"
        self.files = {name: self.out / name for name in (names.METRICS, names.AUDIT)} | {names.LOG: log}
        self.gpu = GpuWatch()
        self._sent: dict[str, tuple[int, int]] = {}
        self._tracking_tried = self._ended = False
        # One for each object: an older state of it must not be written over a newer one.
        self._sending = {name: threading.Lock() for name in (*self.files, names.TRACKING, names.HEARTBEAT)}

    def send(self) -> None:
        """A heartbeat, and what has grown. A report that is lost now is sent again with the next one."""
        self.gpu.sample()
        for name in self.files:
            self._send_if_grown(name)
        self._send_heartbeat(final=False)

    def send_files(self) -> None:
        """What the trainer left beside its result, at the same time; what is in the store already not again."""
        self._quietly([*self._grown(), self._send_tracking])

    def send_last(self) -> None:
        """The last words. They wait for no driver."""
        self._quietly([*self._grown(), lambda: self._send_heartbeat(final=True)])

    def _quietly(self, calls: Sequence[Callable[[], None]]) -> None:
        """What goes home with the result, and the outcome, must not fail for a report."""
        try:
            side_by_side(calls, AT_ONCE)
        except Exception as exc:
            self.say(f"a report could not be made: {type(exc).__name__}: {exc}")

    def _grown(self) -> list[Callable[[], None]]:
        return [partial(self._send_if_grown, name) for name in self.files]

    def _send_heartbeat(self, final: bool) -> None:
        with self._sending[names.HEARTBEAT], contextlib.suppress(transfer.TransferError):
            if self._ended:
                return
            self._ended = final
            lines = read_lines(self.out / names.METRICS)
            beat = {
                "at": time.time(),
                "progress": _last(lines, "loss"),
                "evaluation": _last(lines, "eval_loss"),
                "losses": curve(lines),
                "gpu": self.gpu.report(),
                "final": final,
                **self.state(),
            }
            transfer.put_bytes(self.outputs[names.HEARTBEAT].put, json.dumps(beat).encode())

    def _send_if_grown(self, name: str) -> None:
        # A ticket of an older client has no place for an audit.
        with self._sending[name], contextlib.suppress(transfer.TransferError, KeyError, FileNotFoundError):
            url, path = self.outputs[name].put, self.files[name]
            stat = path.stat()
            mark = (stat.st_size, stat.st_mtime_ns)
            if self._sent.get(name) == mark:
                return
            with path.open("rb") as src:
                src.seek(max(0, stat.st_size - LOG_LIMIT))
                transfer.put_bytes(url, src.read())
            self._sent[name] = mark

    def _send_tracking(self) -> None:
        """Files of trackers, once and as one; a run is no worse without them."""
        with self._sending[names.TRACKING]:
            if not self._tracking_tried:
                self._tracking_tried = True
                self._try_tracking()

    def _try_tracking(self) -> None:
        folder = self.out / "tracking"
        output = self.outputs.get(names.TRACKING)
        if output is None or not folder.is_dir():
            return
        try:
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            if size > TRACKING_LIMIT:
                self.say(f"the files of the trackers stay here: they have {size >> 20} MiB")
                return
            transfer.put_file(output.put, pack(folder, self.work / names.TRACKING).path)
        except (transfer.TransferError, OSError, ValueError) as exc:
            self.say(f"the files of the trackers could not be sent: {exc}")


def _last(lines: Sequence[dict[str, Any]], key: str) -> dict[str, Any]:
    """The last line of the metrics that has the key; {} for none."""
    return next((line for line in reversed(lines) if key in line), {})
