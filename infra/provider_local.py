"""Provider ``local``: the supervisor as a detached process on this computer. Costs nothing, needs no account.

A machine is a folder with the process's id and start time; a process id alone may be reused by a stranger.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from cloudft.errors import EnvironmentProblem, ProviderError
from infra.gpus import Wish
from infra.offers import Offer
from infra.provider import ORDINARY, Machine, Order, Terms, parse_machine_name
from jobs.ticket import ENV_DEADLINE, ENV_TICKET, ENV_WORK

NEEDED = ("torch", "transformers", "trl", "peft", "datasets")
# Keys of the user's accounts that a training process has no business with, even on the user's own computer.
WITHHELD = ("AWS_", "RUNPOD_", "MODAL_")
GRACE = 10.0
MODULE = "jobs.supervisor"


class LocalProvider:
    """Machines are processes; ``root`` holds a folder for each, with its work files and its console."""

    name = "local"

    def __init__(self, root: Path) -> None:
        self.root = root

    def check(self) -> None:
        missing = [module for module in NEEDED if importlib.util.find_spec(module) is None]
        if missing:
            raise EnvironmentProblem(
                f"provider local trains on this computer, but {', '.join(missing)} cannot be imported",
                effect="nothing was started",
                hint="install it:  pip install 'cloudft[train]'",
            )

    def create(self, order: Order) -> Machine:
        folder = self.root / order.name
        folder.mkdir(parents=True)
        # The ticket's URL is a capability: the environment of a process is private to its user, arguments are not.
        env = {k: v for k, v in os.environ.items() if not k.startswith(WITHHELD)}
        root = str(Path(__file__).resolve().parent.parent)
        env |= {
            ENV_DEADLINE: str(order.deadline),
            ENV_TICKET: order.ticket_url,
            ENV_WORK: str(folder / "work"),
            "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH")))),
            "PYTHONUNBUFFERED": "1",
        }
        with (folder / "console.log").open("wb") as console:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", MODULE],
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # The terminal may close: no hang-up reaches it.
            )
        started = psutil.Process(process.pid).create_time()
        part = folder / "machine.json.part"
        part.write_text(json.dumps({"pid": process.pid, "started": started}))
        part.replace(folder / "machine.json")
        return self._machine(order.name, process.pid)

    def offers(self, wishes: Sequence[Wish], terms: Terms = ORDINARY) -> list[Offer]:
        return []

    def log(self, name: str) -> str:
        try:
            return (self.root / name / "console.log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def find(self, name: str, machine_id: str | None = None) -> Machine | None:
        process = self._process(name)
        return self._machine(name, process.pid) if process else None

    def machines(self) -> list[Machine]:
        names = sorted(p.name for p in self.root.iterdir()) if self.root.is_dir() else []
        found = (self.find(name) for name in names if parse_machine_name(name))
        return [machine for machine in found if machine]

    def terminate(self, name: str, machine_id: str | None = None) -> None:
        process = self._process(name)
        if process is None:
            return
        family = [*process.children(recursive=True), process]
        for member in family:
            _ignore_gone(member.terminate)
        _, alive = psutil.wait_procs(family, timeout=GRACE)
        for member in alive:
            _ignore_gone(member.kill)
        psutil.wait_procs(alive, timeout=GRACE)
        deadline = time.monotonic() + GRACE
        while self._process(name) is not None:
            if time.monotonic() > deadline:
                raise ProviderError(
                    f"process {process.pid} of {name} does not end",
                    hint=f"end it by hand:  kill -9 {process.pid}",
                )
            time.sleep(0.05)

    def _machine(self, name: str, pid: int) -> Machine:
        return Machine(provider=self.name, id=str(pid), name=name, state="running", rate_usd=0.0)

    def _process(self, name: str) -> psutil.Process | None:
        """The live supervisor of that name; a zombie counts as gone, a reused id as a stranger."""
        folder = self.root / name
        if not folder.is_dir():
            return None
        try:
            known = json.loads((folder / "machine.json").read_text())
            process = psutil.Process(known["pid"])
            same = abs(process.create_time() - known["started"]) < 1.0
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except (OSError, ValueError):
            return _supervisor_in(folder)
        except psutil.NoSuchProcess:
            return None


def _supervisor_in(folder: Path) -> psutil.Process | None:
    """Look for it by its folder: whoever started it may have been killed before writing its id down."""
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        mine = process.info["cwd"] == str(folder) and MODULE in (process.info["cmdline"] or ())
        if mine and process.info["status"] != psutil.STATUS_ZOMBIE:
            return process
    return None


def _ignore_gone(call: Callable[[], None]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        call()
