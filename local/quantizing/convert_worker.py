"""The child process of ``local.quantizing.worker``: does one job and reports on it, a JSON object per line.

Run as ``python -P convert_worker.py JOB_FILE``, with standard input held open by the parent.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# By path and with -P, this script has no package around it; nothing of the current folder may stand before ours.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cloudft.errors import CloudftError, EnvironmentProblem


def _follow_parent() -> None:
    """End when the parent ends, also when it was killed: nobody would clean up or read the result."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _translated(exc: Exception) -> CloudftError:
    if isinstance(exc, CloudftError):
        return exc
    if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return EnvironmentProblem("the disk is full", hint="free some space, then type the same command again")
    # torch has no type of its own for it on a CPU.
    if isinstance(exc, MemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(exc):
        return EnvironmentProblem("this computer ran out of memory", hint="close other programs, then try again")
    return CloudftError(
        f"it failed in a way that was not foreseen: {type(exc).__name__}: {exc}", hint="CLOUDFT_DEBUG=1 shows more"
    )


def main(argv: list[str]) -> int:
    _follow_parent()
    # Libraries print; what they print goes to the log, and only events to the parent.
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def tell(**event: Any) -> None:
        events.write(json.dumps(event) + "\n")

    def progress(what: str, done: float = 0, total: float | None = None, unit: str = "", note: str = "") -> None:
        tell(progress={"what": what, "done": done, "total": total, "unit": unit, "note": note})

    task = json.loads(Path(argv[1]).read_text(encoding="utf-8"))
    try:
        from local.quantizing import adapter_gguf, build

        jobs: dict[str, Callable[..., dict[str, Any]]] = {
            "build": build.build,
            "adapter": adapter_gguf.build_adapter,
        }
        tell(result=jobs[task["job"]](progress=progress, **task["arguments"]))
    except Exception as exc:
        with contextlib.suppress(OSError):  # the log may lie on the disk that is full
            traceback.print_exc()
        tell(error=_translated(exc).as_dict())
    events.flush()
    # Native libraries may crash while they are taken down; the work is done and reported.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv)
