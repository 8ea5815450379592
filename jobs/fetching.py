"""What a training needs on this machine, fetched side by side: checkpoint, inputs, base. Standard library only."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jobs import child, transfer
from jobs.ticket import Input
from jobs.transfer import TransferError

# A line is seldom filled by one request; each of them holds a megabyte at a time.
AT_ONCE = 4
DOWNLOADER = (sys.executable, "-P", "-m", "jobs.base_download")
POLL = 0.1


def side_by_side(calls: Iterable[Callable[[], None]], at_once: int) -> None:
    """Make all calls, ``at_once`` at a time. Raises the first error at once, and begins no other call then.

    The threads end with the process: a download that nobody waits for must not hold up the machine's end.
    """
    todo: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    done: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
    given_up = threading.Event()
    for call in calls:
        todo.put(call)
    count = todo.qsize()

    def work() -> None:
        while not given_up.is_set():
            try:
                call = todo.get_nowait()
            except queue.Empty:
                return
            try:
                call()
                done.put(None)
            except Exception as exc:
                given_up.set()
                done.put(exc)

    for _ in range(min(at_once, count)):
        threading.Thread(target=work, daemon=True, name="fetch").start()
    for _ in range(count):
        if (problem := done.get()) is not None:
            raise problem


def fetch_inputs(inputs: Sequence[Input], folder: Path, until: float, wanted: Callable[[], bool]) -> None:
    """Have every input in ``folder``, each with its sha256; one that is there already is not fetched again.

    Args:
        until: the epoch second at which trying ends.
        wanted: whether they still are; what is under way is broken off when they are not.

    Raises:
        TransferError: one of them cannot be had.
    """
    targets = [_inside(folder, item) for item in inputs]
    calls = [partial(_fetch, item, to, until, wanted) for item, to in zip(inputs, targets, strict=True)]
    side_by_side(calls, AT_ONCE)


def _inside(folder: Path, item: Input) -> Path:
    target = (folder / item.path).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise TransferError(f"the ticket wants to write outside of the work folder: {item.path}", final=True)
    return target


def _fetch(item: Input, target: Path, until: float, wanted: Callable[[], bool]) -> None:
    def got(_: int) -> None:
        if not wanted():
            raise TransferError("nobody waits for it any more", final=True)

    if target.exists() and transfer.sha256_file(target) == item.sha256:
        return
    try:
        transfer.retried(partial(transfer.fetch, item.url, target, item.sha256, item.bytes, got), until)
    except TransferError as exc:
        raise TransferError(f"cannot fetch the input {item.path}: {exc}", final=True) from exc


def hub_base(spec: dict[str, Any]) -> tuple[str, str] | None:
    """Repository and commit of a base that comes from the model hub; None for one that came with the inputs."""
    base = spec.get("base") or {}
    return (str(base["id"]), str(base["revision"])) if base.get("source") == "hub" else None


def fetch_base(base: tuple[str, str], log: Path, wanted: Callable[[], bool]) -> None:
    """Have a base of the model hub in its cache here, by a process with the hub's library in it.

    Best effort: the trainer fetches what is missing, and says better what is wrong. Nothing is left running when
    ``wanted`` says that nobody waits for it.
    """
    process = child.start([*DOWNLOADER, json.dumps(base)], log)
    try:
        while wanted():
            try:
                process.wait(timeout=POLL)
                return
            except subprocess.TimeoutExpired:
                continue
    finally:
        process.kill()
        process.wait()
