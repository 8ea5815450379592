"""The machine's own end. Standard library only, since it must work when nothing else does.

On RunPod a container that ends is started again and billed on, and deadlines given to the service are not acted
on: only the end of the pod stops the bill. So PID 1 asks for it, by both APIs, again and again, and never returns.
As long as this code runs the pod is not gone, whatever the answers say: there is nothing to check.

The service injects RUNPOD_POD_ID and a key for that pod alone. GraphQL takes the key; REST mostly refuses it, but
is another way when GraphQL is down. RUNPOD_API_BASE_URL moves both to another server.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable

ENV_POD = "RUNPOD_POD_ID"
ENV_KEY = "RUNPOD_API_KEY"
ENV_BASE = "RUNPOD_API_BASE_URL"
BASE = "https://api.runpod.io"
# The service answers 403 to urllib's default agent.
AGENT = "cloudft-supervisor/1"
TIMEOUT = 20.0
LONGEST_PAUSE = 30.0
# A supervisor that is stuck gets this long after the deadline before its machine is ended over its head.
OVERDUE = 60.0
# After that many lines the log is left alone but for one in TALK_EVERY.
TALK_FIRST = 3
TALK_EVERY = 20

Say = Callable[[str], None]


def _print(text: str) -> None:
    print(f"teardown: {text}", flush=True)


def end_own_machine(say: Say = _print) -> None:
    """End the rented machine that this process runs on; elsewhere return at once.

    On RunPod this never returns: the next thing that happens to the process is the end of its machine.
    """
    pod = os.environ.get(ENV_POD)
    if not pod:
        return
    _ignore_signals()
    asked, pause = 0, 1.0
    with contextlib.suppress(BaseException):
        say(f"the end of this machine, pod {pod}")
    while True:
        # Nothing may leave this loop, not even a bug in it or a console that is closed.
        with contextlib.suppress(BaseException):
            asked += 1
            answers = f"GraphQL: {_ask_graphql(pod)}; REST: {_ask_rest(pod)}"
            if asked <= TALK_FIRST or asked % TALK_EVERY == 0:
                say(f"asked {asked} times for the end of pod {pod}. {answers}")
        with contextlib.suppress(BaseException):
            time.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE)


def end_when_overdue(deadline: float) -> None:
    """Watch over the supervisor: if it is stuck past ``deadline`` (epoch seconds), the machine is ended anyway."""

    def watch() -> None:
        while (left := deadline + OVERDUE - time.time()) > 0:
            time.sleep(min(left, 60.0))  # In pieces: the wall clock may be set right meanwhile.
        end_own_machine()

    if os.environ.get(ENV_POD):
        threading.Thread(target=watch, daemon=True, name="overdue").start()


def _ignore_signals() -> None:
    """A PID 1 that ends on a signal would be started again; the service's SIGKILL needs no help."""
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"):
        with contextlib.suppress(ValueError, OSError):  # ValueError: not in the main thread.
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _ask_graphql(pod: str) -> str:
    # A JSON string is a valid GraphQL string: the id cannot break out of its quotes.
    query = f"mutation {{ podTerminate(input: {{podId: {json.dumps(pod)}}}) }}"
    return _ask("POST", "/graphql", json.dumps({"query": query}).encode())


def _ask_rest(pod: str) -> str:
    return _ask("DELETE", f"/v2/pods/{urllib.parse.quote(pod, safe='')}")


def _ask(method: str, path: str, body: bytes | None = None) -> str:
    """One request, and what came back in a few words, without the key."""
    base = (os.environ.get(ENV_BASE) or BASE).rstrip("/")
    key = os.environ.get(ENV_KEY, "")
    headers = {"User-Agent": AGENT, "Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(base + path, data=body, method=method, headers=headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:  # noqa: S310 - the base is the owner's
            said = f"HTTP {reply.status} {reply.read(300).decode(errors='replace')}"
    except urllib.error.HTTPError as exc:
        with exc:
            said = f"HTTP {exc.code} {exc.read(300).decode(errors='replace')}"
    except Exception as exc:  # Broken URLs and headers raise ValueError and others: the other way must still be tried.
        said = f"{type(exc).__name__}: {exc}"
    return " ".join((said.replace(key, "***") if key else said).split())
