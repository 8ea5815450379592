"""What services need to know of this computer, and how they start and end a process."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import psutil
import pytest

REPO = Path(__file__).resolve().parents[2]

# As it was before any test moved HOME or took variables away: pip and docker work as they do for the developer.
ENVIRONMENT: Mapping[str, str] = dict(os.environ)
IN_CI = ENVIRONMENT.get("CI", "").lower() in ("1", "true", "yes")


def unavailable(why: str) -> NoReturn:
    """Skip the test on a developer's computer; in CI, where nothing may be skipped, fail it."""
    if IN_CI:
        pytest.fail(f"in CI this must be there: {why}", pytrace=False)
    pytest.skip(why)


def cache_folder() -> Path:
    """Where builds are kept from one run of the suite to the next; the same as the Makefile's."""
    named = ENVIRONMENT.get("CLOUDFT_CACHE")
    base = ENVIRONMENT.get("XDG_CACHE_HOME") or str(Path(ENVIRONMENT.get("HOME", "~")).expanduser() / ".cache")
    folder = Path(named) if named else Path(base) / "cloudft"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def tool(name: str) -> str:
    """A command of this virtual environment, or else of PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name, path=ENVIRONMENT.get("PATH"))
    if found is None:
        unavailable(f"the command {name} (it comes with the development tools: make test)")
    return found


def bridge_address() -> str | None:
    """The IPv4 address at which containers of the default bridge reach this computer; None without Docker.

    This computer reaches itself by it as well, so a URL that signs its host works on both sides.
    """
    for address in psutil.net_if_addrs().get("docker0", ()):
        if address.family == socket.AF_INET:
            return str(address.address)
    return None


def addresses() -> list[str]:
    """Loopback, and the bridge where there is one: where a service listens. Never the whole network."""
    bridge = bridge_address()
    return ["127.0.0.1", *([bridge] if bridge else [])]


def free_port(preferred: int | None = None) -> int:
    """A TCP port that is free on all of ``addresses()``; the preferred one, if it is."""
    for port in [*([preferred] if preferred else []), *[0] * 20]:
        with contextlib.ExitStack() as stack:
            try:
                for address in addresses():
                    sock = stack.enter_context(socket.socket())
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    sock.bind((address, port))
                    port = sock.getsockname()[1]
            except OSError:
                continue
            return port
    raise RuntimeError("no free port was found")


def answers(address: str, port: int) -> bool:
    """Whether something accepts connections there."""
    with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=1):
        return True
    return False


@contextlib.contextmanager
def running(
    command: Sequence[str],
    log: Path,
    ready: Callable[[], bool],
    *,
    env: Mapping[str, str] | None = None,
    within: float = 60,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours while the block runs: ready at its start, gone at its end. ``within`` in seconds.

    Raises:
        RuntimeError: it ended or did not become ready; the message has the end of its log.
    """
    with log.open("wb") as out:
        process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=dict(env or ENVIRONMENT)
        )
    try:
        until = time.monotonic() + within
        while not ready():
            if process.poll() is not None or time.monotonic() > until:
                tail = log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{command[0]} did not start (exit code {process.poll()}):\n{tail}")
            time.sleep(0.05)
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process of ours, also one that was stopped or does not listen."""
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
