"""A step of a benchmark in a process of its own, and what it took."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EVERY = 0.01


def watched(
    command: Sequence[str],
    log: Path,
    beside: Callable[[], object] | None = None,
    every: float = EVERY,
    env: Mapping[str, str] | None = None,
) -> dict[str, float]:
    """Run a command, and watch it: ``wall`` and ``cpu`` in seconds, largest ``anonymous`` and ``resident`` in bytes.

    Args:
        log: where its output is added.
        beside: called every ``every`` seconds as long as it runs.
        env: variables besides those of this process.
    """
    began = time.monotonic()
    with log.open("ab") as out:
        child = subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT, env={**os.environ, **(env or {})})
    peak = {"RssAnon": 0, "VmHWM": 0}
    threads = [threading.Thread(target=_while_running, args=(child, lambda: _look(child.pid, peak), EVERY))]
    if beside is not None:
        threads.append(threading.Thread(target=_while_running, args=(child, beside, every)))
    for thread in threads:
        thread.start()
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.monotonic() - began
    child.returncode = os.waitstatus_to_exitcode(status)
    for thread in threads:
        thread.join()
    if child.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text(errors='replace')[-2000:]}")
    return {
        "wall": wall,
        "cpu": usage.ru_utime + usage.ru_stime,
        "anonymous": peak["RssAnon"],
        "resident": peak["VmHWM"],
    }


def _while_running(child: subprocess.Popen[bytes], look: Callable[[], object], every: float) -> None:
    while child.returncode is None:
        look()
        time.sleep(every)


def _look(pid: int, peak: dict[str, int]) -> None:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return
    for line in status.splitlines():
        key, _, rest = line.partition(":")
        if key in peak:
            peak[key] = max(peak[key], int(rest.split()[0]) * 1024)
