"""What a pod's container is made of: a script (SimRunner), a process (ProcessRunner), Docker (docker_runner).

The server restarts whatever exits; a runner only starts and stops. Each start gets a fresh disk, as the service
says of the container disk ("wiped on restart" [doc]).
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, Protocol

ContainerState = Literal["pulling", "running", "exited", "failed"]


@dataclass(frozen=True)
class RegistryLogin:
    """A private registry's credentials, as stored at the server."""

    id: str
    name: str
    username: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class Launch:
    """One start of a pod's container; ``env`` holds the injected variables and the secrets in clear."""

    pod_id: str
    name: str
    image: str
    args: str
    env: Mapping[str, str] = field(repr=False)
    start: int = 1
    at: float = 0.0
    disk_gb: int = 10
    registry: RegistryLogin | None = None
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None

    def command(self) -> list[str]:
        """What stands behind the image's entrypoint: ``cmd``, or ``args`` split like a shell does [assumed]."""
        return list(self.cmd) if self.cmd is not None else shlex.split(self.args)


class Container(Protocol):
    """One started container."""

    def state(self) -> ContainerState:
        """``failed``: it could not be started, e.g. the image can't be pulled."""

    def exit_code(self) -> int | None:
        """The code once it has exited."""

    def take_lines(self) -> list[str]:
        """What it has printed since the last call."""

    def stop(self, grace_s: float) -> None:
        """SIGTERM, and SIGKILL ``grace_s`` later; silent if it is gone."""


class Runner(Protocol):
    """Starts containers. ``real`` ones move by themselves, so that the server must watch them."""

    real: bool

    def start(self, launch: Launch) -> Container:
        """Start a container; returns at once."""

    def started(self, container: Container) -> None:
        """Called after each start, once the server's lock is free."""

    def close(self) -> None:
        """End whatever is left."""


class SimContainer:
    """A container played by a test: ``log``, ``exit``; ``stopped`` says that the server has ended it."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.stopped = False
        self._code: int | None = None
        self._lines: list[str] = []

    def log(self, line: str) -> None:
        """Print a line."""
        self._lines.append(line)

    def exit(self, code: int = 0) -> None:
        """End by itself (the server will start another)."""
        if self._code is None:
            self._code = code

    @property
    def alive(self) -> bool:
        return self._code is None

    def state(self) -> ContainerState:
        return "running" if self._code is None else "exited"

    def exit_code(self) -> int | None:
        return self._code

    def take_lines(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines

    def stop(self, grace_s: float) -> None:
        self.stopped = True
        self.exit(143)


class SimRunner:
    """Containers without any process, for tests on a manual clock.

    Args:
        on_start: called with each container after its start, with no lock held: it may call the server.
    """

    real = False

    def __init__(self, on_start: Callable[[SimContainer], None] | None = None) -> None:
        self.on_start = on_start
        self.containers: list[SimContainer] = []

    def start(self, launch: Launch) -> SimContainer:
        container = SimContainer(launch)
        self.containers.append(container)
        return container

    def started(self, container: Container) -> None:
        if self.on_start is not None and isinstance(container, SimContainer):
            self.on_start(container)

    def of(self, pod_id: str) -> list[SimContainer]:
        """All starts of one pod, the oldest first."""
        return [container for container in self.containers if container.launch.pod_id == pod_id]

    def close(self) -> None:
        for container in self.containers:
            container.stop(0)


class ExitedContainer:
    """A container that was over before its command ran (a crash loop, an image that can't be pulled)."""

    def __init__(self, state: ContainerState, code: int | None, lines: Sequence[str]) -> None:
        self._state, self._code, self._lines = state, code, list(lines)

    def state(self) -> ContainerState:
        return self._state

    def exit_code(self) -> int | None:
        return self._code

    def take_lines(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines

    def stop(self, grace_s: float) -> None:
        """It is over already."""


def _waiting(stream: IO[str] | None) -> int:
    """Bytes in a pipe that nobody has read."""
    count = array.array("i", [0])
    if stream is not None:
        fcntl.ioctl(stream.fileno(), termios.FIONREAD, count)
    return count[0]


class ProcessContainer:
    """A process group of this machine in a folder of its own, which goes when the process has ended."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], folder: Path) -> None:
        self.folder = folder
        self._ended = False
        self._lines: list[str] = []
        self._lock = threading.Lock()
        self.process = subprocess.Popen(
            list(command),
            cwd=folder,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def state(self) -> ContainerState:
        if self.process.poll() is None:
            return "running"
        self._end_group()
        return "exited"

    def exit_code(self) -> int | None:
        return self.process.poll()

    def take_lines(self) -> list[str]:
        self._let_read()
        with self._lock:
            lines, self._lines = self._lines, []
        return lines

    def _let_read(self) -> None:
        """What was printed before this moment counts, though the reader may not have come to it yet."""
        give_up = time.monotonic() + 2
        with contextlib.suppress(OSError, ValueError):  # its end of the pipe is closed: all is read
            while _waiting(self.process.stdout) and time.monotonic() < give_up:
                time.sleep(0.005)
            time.sleep(0.005)  # the last line is out of the pipe, and perhaps not yet in the list

    def stop(self, grace_s: float) -> None:
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(grace_s)
        self._end_group()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end_group(self) -> None:
        """A container takes all of its processes down with its first one, and its last lines are read."""
        self._signal(signal.SIGKILL)
        self.process.wait()
        self._ended = True  # from here on the group's number may be somebody else's
        self._reader.join(timeout=5)

    def _signal(self, number: signal.Signals) -> None:
        if not self._ended:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)

    def _read(self) -> None:
        if (stream := self.process.stdout) is None:
            return
        with stream:
            for line in stream:
                with self._lock:
                    self._lines.append(line.rstrip("\n"))


class ProcessRunner:
    """Containers as local processes: the image is not run, ``command`` is, with the pod's args behind it.

    Args:
        command: what to run, a list or a function of the launch.
        env: variables that an image would bring along (PATH by default); nothing else of ours is inherited.
    """

    real = True

    def __init__(
        self, command: Sequence[str] | Callable[[Launch], Sequence[str]], env: Mapping[str, str] | None = None
    ) -> None:
        self._command = command
        self._env = dict(env) if env is not None else {"PATH": os.environ.get("PATH", os.defpath)}
        self._containers: list[ProcessContainer] = []

    def start(self, launch: Launch) -> Container:
        command = self._command(launch) if callable(self._command) else self._command
        folder = Path(tempfile.mkdtemp(prefix=f"pod-{launch.pod_id}-"))
        try:
            container = ProcessContainer([*command, *launch.command()], {**self._env, **launch.env}, folder)
        except (OSError, ValueError) as exc:
            shutil.rmtree(folder, ignore_errors=True)
            return ExitedContainer("failed", None, [f"cannot start: {exc}"])
        self._containers.append(container)
        return container

    def started(self, container: Container) -> None:
        """A process needs no script."""

    def close(self) -> None:
        for container in self._containers:
            container.stop(2)
