"""How the supervisor tells a trainer that waits with its libraries that all it needs is here. Standard library only.

A file in the work folder, which appears whole: it holds the epoch second at which it was written. Several ranks read
the same one, and a trainer that is started again finds it there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from jobs.transfer import atomic

NAME = "inputs-are-here"
POLL = 0.02


def announce(work: Path) -> None:
    """Let the trainer go on."""
    with atomic(work / NAME) as out:
        out.write(repr(time.time()).encode())


def withdraw(work: Path) -> None:
    """What an earlier life announced counts no more."""
    (work / NAME).unlink(missing_ok=True)


def wait(work: Path, asked: Callable[[], bool]) -> float:
    """Until it is announced, or ``asked`` says that the run is to stop; the epoch second at which it was announced.

    A trainer whose supervisor is gone waits for nothing, so it ends (elsewhere than on Linux no kernel does that).

    Raises:
        SystemExit: the process that started this one has ended.
    """
    parent = os.getppid()
    while not asked():
        try:
            return float((work / NAME).read_text())
        except FileNotFoundError:
            pass
        if os.getppid() != parent:
            raise SystemExit("the supervisor is gone, so nothing will come")
        time.sleep(POLL)
    return time.time()
