"""Starts the supervisor on any machine with Python: the script behind the one command of provider ``manual``.

Standard library only, and sent as text: it is fetched by its URL and run, before anything of ours is there. It fetches
our code, installs the libraries that are missing, and becomes the supervisor. The ticket's URL stands in the
environment from then on, and in no process's arguments.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

TIMEOUT = 120
LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "pydantic")


def start(settings: dict[str, Any]) -> None:
    """Become the supervisor.

    Args:
        settings: ``code`` URL of the archive and ``sha256`` of it, ``deadline`` epoch seconds, ``ticket`` URL.
    """
    if sys.version_info < (3, 11):  # noqa: UP036 - the machine may be anything
        sys.exit(f"cloudft needs Python 3.11 or newer; this is {sys.version.split()[0]}")
    work = Path(os.environ.get("CLOUDFT_WORK") or tempfile.mkdtemp(prefix="cloudft-"))
    code = work / "code"
    with urllib.request.urlopen(settings["code"], timeout=TIMEOUT) as reply:  # noqa: S310 - from our own store
        raw = reply.read()
    if hashlib.sha256(raw).hexdigest() != settings["sha256"]:
        sys.exit("cloudft: the code did not arrive as it was sent; run the command again")
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        archive.extractall(code)
    _install(code / "requirements")
    environment = {
        **os.environ,
        "CLOUDFT_DEADLINE": str(settings["deadline"]),
        "CLOUDFT_TICKET_URL": settings["ticket"],
        "CLOUDFT_WORK": str(work),
        "PYTHONPATH": str(code),
        "PYTHONUNBUFFERED": "1",
    }
    os.execve(sys.executable, [sys.executable, "-P", "-m", "jobs.supervisor"], environment)  # noqa: S606


def _install(requirements: Path) -> None:
    """What is there is taken as it is: a notebook's own torch fits its GPU's driver."""
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if not missing:
        return
    print(f"cloudft: installing what is missing: {', '.join(missing)}", flush=True)
    command = [sys.executable, "-m", "pip", "install", "-q", "-r", str(requirements / "train-requirements.txt")]
    if subprocess.run(command).returncode != 0:
        sys.exit("cloudft: the libraries could not be installed; see above, then run the command again")
