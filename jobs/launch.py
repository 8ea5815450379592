"""Starts the trainer once for each GPU of this machine, with torchrun.

    python -m jobs.launch RANKS --work DIR [what jobs.train takes]

torchrun alone would end a training badly: told to stop, it gives its ranks half a minute, and whatever code a rank ends
with becomes 1. So SIGTERM becomes a file here, which the ranks look for after each step (``jobs.environment``), and how
the training ended stands in ``DIR/out/trainer.json``. A rank that dies takes the others with it: they wait for it in
a collective, and would be billed.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType

from jobs.child import forget_reports
from jobs.environment import STOP_FILE, end_process, end_with_parent

# Seconds that the others have to end when one rank is dead: they have nothing left to save.
SHUTDOWN = 5
# torchrun must handle some signal itself; this one nobody sends.
UNUSED = "SIGUSR2"


def main(argv: list[str]) -> int:
    count, options = argv[0], argv[1:]
    work = Path(options[options.index("--work") + 1])
    end_with_parent()
    stop = work / STOP_FILE
    stop.unlink(missing_ok=True)
    forget_reports(work / "out")

    def ask(number: int, _: FrameType | None) -> None:
        stop.touch()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    os.environ["PYTHONSAFEPATH"] = "1"
    # All ranks are here: no other interface is asked for, and no name looked up.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    settings = ["--standalone", "--local-addr", "localhost", "--nproc-per-node", count]
    settings += ["--signals-to-handle", UNUSED, "--shutdown-timeout", str(SHUTDOWN)]
    try:
        run.main([*settings, "-m", "jobs.train", *options])
    except ChildFailedError:
        return 1  # the rank itself has said why, in the log and in its outcome
    return 0


if __name__ == "__main__":
    end_process(main(sys.argv[1:]))
