"""The trainer as the supervisor's child: how it is started, and what its end means. Standard library only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import teardown

TRAINER = (sys.executable, "-P", "-m", "jobs.train")
LAUNCHER = (sys.executable, "-P", "-m", "jobs.launch")
REPORT = "trainer.json"


@dataclass(frozen=True)
class End:
    """How the trainer ended. ``report``: the first process's own, {} for none; ``reason``: in a sentence.

    ``killed``: by somebody else, as by a kernel short of memory; it did not fail by itself. ``again``: it wrote down
    how the next try gets further. ``final``: it says that no try would end better.
    """

    report: dict[str, Any]
    reason: str
    killed: bool = False
    again: bool = False
    final: bool = False


def command(trainer: Sequence[str], work: Path, gpus: int, until: float | None) -> list[str]:
    """What starts it, once for each GPU; it waits for its inputs (``jobs.ready``).

    ``until``: epoch second by which its schedule should have ended.
    """
    start = [*LAUNCHER, str(gpus), *trainer[len(TRAINER) :]] if gpus > 1 else list(trainer)
    return [*start, "--work", str(work), "--wait", *(("--until", str(until)) if until is not None else ())]


def start(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start it in a session of its own. Both its outputs go to the end of the log."""
    # The trainer runs the user's model code: neither the ticket nor the key to the machine is its business.
    env = {k: v for k, v in os.environ.items() if not k.startswith("CLOUDFT_") and k != teardown.ENV_KEY}
    with log.open("ab") as out:
        return subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )


def ended(code: int, out: Path, gpus: int) -> End:
    """What the end means. ``code``: the exit code, negative for a signal."""
    report = read_report(out / REPORT)
    reason = str(report.get("reason") or "")
    if code == 0:
        return End(report, reason, final=report.get("cause") == "diverged")
    reports = [report, *(read_report(out / f"rank-{rank}.json") for rank in range(1, gpus))]
    # A launcher ends with 1 whatever happened; and a rank that only says that another is gone says nothing.
    telling = [r for r in reports if r.get("status") == "failed" and r.get("cause") != "peer"]
    killed = code < 0 if gpus == 1 else not telling
    reason = str(telling[0]["reason"]) if telling else reason if gpus == 1 else ""
    return End(
        report,
        reason or _how(code, killed),
        killed=killed,
        again=any(r.get("cause") == "memory" for r in telling),
        final=any(r.get("cause") == "diverged" for r in telling),
    )


def _how(code: int, killed: bool) -> str:
    """The end of a trainer that said nothing of it."""
    if code == -signal.SIGKILL:
        return "the trainer was killed (signal 9), as by a system that is short of memory"
    if code < 0:
        return f"the trainer ended with signal {-code}; see the log"
    if killed:
        return "one of the trainer's processes was killed, as by a system that is short of memory; see the log"
    return f"the trainer ended with exit code {code}; see the log"


def forget_reports(out: Path) -> None:
    """What an earlier trainer said of its end must not pass for what the next one says."""
    for old in (out / REPORT, *out.glob("rank-*.json")):
        old.unlink(missing_ok=True)


def read_report(path: Path) -> dict[str, Any]:
    """What a process wrote of its end; {} where it did not."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
