"""Starts the supervisor on any machine with Python: the script behind the one command of provider ``manual``.

Standard library only, and sent as text: it is fetched by its URL and run, before anything of ours is there. It fetches
our code, installs the libraries that are missing, and becomes the supervisor. The ticket's URL stands in the
environment from then on, and in no process's arguments.

The machine is its owner's. What is installed goes into a folder of its own, and the machine is not ended with the run,
not even one that could be: only with CLOUDFT_END_MACHINE=1 before the command.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import io
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TIMEOUT, TRIES = 120, 4
ENV_END = "CLOUDFT_END_MACHINE"
# By such a variable the supervisor knows a rented machine that it must end: see jobs.teardown.
MACHINES = ("RUNPOD_POD_ID",)
# A torch that is there fits its machine's driver, and stays; so do the libraries that belong to it.
TORCH = re.compile(r"torch|triton|nvidia-.*|cuda-.*")
# These are compiled for one version of torch, and fit no other.
BOUND = re.compile(r"torchvision|torchao|xformers")


def start(settings: dict[str, Any]) -> None:
    """Become the supervisor.

    Args:
        settings: ``code`` URL of the archive and ``sha256`` of it, ``lock``: the name of the locked requirements in
            it, ``deadline`` epoch seconds, ``ticket`` URL.
    """
    if sys.version_info < (3, 11):  # noqa: UP036 - the machine may be anything
        sys.exit(f"cloudft needs Python 3.11 or newer; this is {sys.version.split()[0]}")
    work = Path(os.environ.get("CLOUDFT_WORK") or tempfile.mkdtemp(prefix="cloudft-"))
    # By that part of a path dill, which hashes our data sets, knows a library from code of the user's own.
    code, site = work / "code", work / "site-packages"
    with zipfile.ZipFile(io.BytesIO(_fetch(settings["code"], settings["sha256"]))) as archive:
        archive.extractall(code)
    _install(code / "requirements", settings["lock"], site)
    path = [str(code), str(site), os.environ.get("PYTHONPATH", "")]
    environment = own_environment() | {
        "CLOUDFT_DEADLINE": str(settings["deadline"]),
        "CLOUDFT_TICKET_URL": settings["ticket"],
        "CLOUDFT_WORK": str(work),
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "PYTHONUNBUFFERED": "1",
    }
    os.execve(sys.executable, [sys.executable, "-P", "-m", "jobs.supervisor"], environment)  # noqa: S606


def own_environment() -> dict[str, str]:
    """The environment, without what would let the supervisor end the machine, unless its owner wants that."""
    wanted = os.environ.get(ENV_END) == "1"
    found = [name for name in MACHINES if os.environ.get(name)]
    if found:
        told = "is ended with the run" if wanted else f"goes on when the run has ended ({ENV_END}=1 would end it too)"
        print(f"cloudft: this machine {told}", flush=True)
    elif wanted:
        print(f"cloudft: {ENV_END}=1 has no effect here: this is no machine that could be ended", flush=True)
    return {name: value for name, value in os.environ.items() if wanted or name not in MACHINES}


def _fetch(url: str, sha256: str) -> bytes:
    for attempt in range(TRIES):
        time.sleep(2 * attempt)
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as reply:  # noqa: S310 - from our own store
                raw = bytes(reply.read())
        except urllib.error.HTTPError as exc:
            sys.exit(f"cloudft: the store answers {exc.code}: the command is too old, or its run was cancelled")
        except OSError as exc:
            print(f"cloudft: the store does not answer: {exc}", flush=True)
            continue
        if hashlib.sha256(raw).hexdigest() == sha256:
            return raw
    sys.exit("cloudft: the code did not arrive as it was sent; run the command again")


def _install(requirements: Path, lock: str, site: Path) -> None:
    """Install what is missing, or other than locked, beside what is there."""
    wanted, locked = ((requirements / f"{lock}-{name}.txt").read_text() for name in ("requirements", "constraints"))
    missing, arguments = missing_libraries(wanted, locked, _installed())
    if not missing:
        return
    if importlib.util.find_spec("pip") is None:
        sys.exit("cloudft: this Python has no pip; install it (apt install python3-pip), then run the command again")
    print(f"cloudft: installing into {site} what is missing: {', '.join(missing)}", flush=True)
    (requirements / "missing.txt").write_text("\n".join(arguments) + "\n")
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--target", str(site)]
    command += ["--no-deps"] if "torch" not in missing else []
    if subprocess.run([*command, "-r", str(requirements / "missing.txt")]).returncode != 0:
        sys.exit("cloudft: the libraries could not be installed; see above, then run the command again")


def missing_libraries(wanted: str, locked: str, installed: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """What of the requirements is not there as locked, and the lines to hand to pip.

    Where a torch is there, all that is locked is named one by one but torch and what belongs to it: left to itself, pip
    would install another torch for the sake of the rest.

    Args:
        wanted, locked: the text of the requirements, and of the lock of all that they need.
        installed: name → version, without what stands behind a plus.
    """
    pins, lock = _pins(wanted), _pins(locked)
    missing = [n for n, (version, marker) in pins.items() if installed.get(n) != version and _applies(marker)]
    if "torch" not in installed:
        return missing, [line for line in wanted.splitlines() if line]
    same = "torch" in lock and installed["torch"] == lock["torch"][0]
    there = {name for name in lock if TORCH.fullmatch(name) or (BOUND.fullmatch(name) and not same)}
    rest = {name: version for name, (version, _) in lock.items() if name not in there}
    markers = {name: marker for name, (_, marker) in pins.items()}
    lines = [f"{name}=={version}{markers.get(name, '')}" for name, version in rest.items()]
    return [name for name in missing if name not in there], lines


def _pins(text: str) -> dict[str, tuple[str, str]]:
    """Name → version and marker of each line ``name==version ; marker``."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)([^\n]*)$", text, re.MULTILINE)
    return {name: (version, marker) for name, version, marker in found}


def _applies(marker: str) -> bool:
    """Whether a requirement holds for this machine; of pip's markers ours have one kind."""
    kind = re.search(r"platform_machine == '(\w+)'", marker)
    return kind is None or kind[1] == platform.machine()


def _installed() -> dict[str, str]:
    found = [(d.metadata["Name"], d.version) for d in importlib.metadata.distributions()]
    return {re.sub(r"[-_.]+", "-", name).lower(): version.partition("+")[0] for name, version in found if name}
