"""The process that trains: its end, its signals, and what the libraries read when they are imported."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import logging
import os
import platform
import signal
import sys
import threading
import warnings
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import NoReturn

from jobs import ranks, tracking
from jobs.backends import Backend
from jobs.outcome import StoppedEarly
from jobs.runlog import log, say
from jobs.spec import RunSpec

# prctl(2)
PR_SET_PDEATHSIG = 1
# Below this many parameters a second thread costs more than it gives, and one thread repeats bit for bit.
SMALL_MODEL = 20_000_000
# In the work folder: how several ranks are asked to stop (``jobs.launch``).
STOP_FILE = "stop-asked"
# Seconds that libraries have to end with the process.
ENDING_PATIENCE = 10.0


class StopFlag:
    """Set by the first SIGTERM or SIGINT, or by a file; looked at between the phases, and after every step."""

    def __init__(self, file: Path) -> None:
        self.name = ""
        self.file = file
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._set)

    def _set(self, number: int, _: FrameType | None) -> None:
        self.name = self.name or signal.Signals(number).name
        # Not print(): the signal may have come in the middle of one.
        os.write(sys.stdout.fileno(), f"{self.name}: stopping at the end of this step, then saving\n".encode())

    def asked(self) -> bool:
        """Whether this process was."""
        if not self.name and ranks.count() > 1 and self.file.exists():
            self.name = "SIGTERM"
        return bool(self.name)

    def agreed(self) -> bool:
        """Whether any rank was; all of them must call it at the same point, and all then stop there."""
        asked = bool(ranks.agree([self.asked()])[0])
        self.name = self.name or ("SIGTERM" if asked else "")
        return asked

    def check(self, resumed_from: int = 0) -> None:
        if self.agreed() and resumed_from:
            raise StoppedEarly(f"{self.name} came before a step beyond the {resumed_from} of the checkpoint")
        if self.name:
            raise StoppedEarly(f"{self.name} came before the first step; nothing was learned, so there is no adapter")


def end_with_parent() -> None:
    """A trainer whose supervisor was killed has nobody who keeps its deadline: the kernel ends it as well (Linux)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def set_environment(spec: RunSpec) -> None:
    """What the libraries read when they are imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if ranks.count() == 1:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one process trains on one device
    if spec.base.source == "folder":
        os.environ["HF_HUB_OFFLINE"] = "1"  # everything is here, so nothing may be asked for
    quiet_hub()
    # The log is read by people: no progress bars, and no advice of one library to another.
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = os.environ["TQDM_DISABLE"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)


def quiet_hub() -> None:
    """What the hub's library reads."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # trl tells its makers of each trainer otherwise
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


def end_process(code: int) -> NoReturn:
    """End at once: to take down what is imported costs an interpreter seconds, which are billed.

    What libraries wish to do at the end is done. A tracker may have threads that still send: with one of them the
    interpreter ends in its own way. Some wait there for a service that is away, and know no end: they get
    ``ENDING_PATIENCE`` seconds, since the machine is billed.
    """
    limit = threading.Timer(ENDING_PATIENCE, _end_hard, (code,))
    limit.daemon = True
    limit.start()
    if tracking.begun():
        sys.exit(code)
    atexit._run_exitfuncs()
    for console in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # closed, or on a full disk
            console.flush()
    os._exit(code)


def _end_hard(code: int) -> None:
    say(f"warning: a library has not ended in {ENDING_PATIENCE:.0f} s; nothing waits for it any longer")
    os._exit(code)


def log_versions(backend: Backend) -> dict[str, str]:
    """Python and the libraries that decide about the numbers, told and returned."""
    names = ["torch", "transformers", "trl", "peft", *(["unsloth", "unsloth_zoo"] if backend == "unsloth" else [])]
    versions = {"Python": platform.python_version(), **{name: version(name) for name in names}}
    say(", ".join(f"{name} {value}" for name, value in versions.items()))
    return versions


def limit_threads(parameters: int) -> None:
    """One thread for a small model on a CPU, unless the environment says how many."""
    import torch

    if not torch.cuda.is_available() and parameters < SMALL_MODEL and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
        log("threads", 1, "a small model on a CPU: more threads are slower, and one repeats bit for bit")
