"""Pods as containers of the local Docker engine."""

from __future__ import annotations

import contextlib
import ipaddress
import threading
import uuid
from typing import Any

from .runners import Container, ContainerState, Launch

LABEL = "cloudft.double"


class DockerContainer:
    """One container; the pull and the start happen in a thread of its own."""

    def __init__(self, client: Any, launch: Launch, options: dict[str, Any], *, pull: bool) -> None:
        self._client, self._launch, self._options, self._pull = client, launch, options, pull
        self._state: ContainerState = "pulling"
        self._code: int | None = None
        self._lines: list[str] = []
        self._stopped = False
        self._lock = threading.Lock()
        self.container: Any = None
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def state(self) -> ContainerState:
        return self._state

    def exit_code(self) -> int | None:
        return self._code

    def take_lines(self) -> list[str]:
        with self._lock:
            lines, self._lines = self._lines, []
        return lines

    def stop(self, grace_s: float) -> None:
        import docker.errors

        with self._lock:
            self._stopped = True
            container = self.container
        if container is not None:
            with contextlib.suppress(docker.errors.APIError):
                container.stop(timeout=max(0, round(grace_s)))
        self._thread.join(timeout=grace_s + 30)

    def _live(self) -> None:
        import docker.errors
        import requests

        try:
            self._run()
        except (docker.errors.DockerException, requests.RequestException) as exc:
            self._print(f"error: {exc}")
            self._state = "failed"
        finally:
            if self.container is not None:
                with contextlib.suppress(docker.errors.APIError):
                    self.container.remove(force=True, v=True)

    def _run(self) -> None:
        launch = self._launch
        if self._pull:
            login = launch.registry
            auth = {"username": login.username, "password": login.password} if login else None
            self._client.images.pull(launch.image, auth_config=auth)
        options = dict(self._options)
        if launch.entrypoint is not None:
            options["entrypoint"] = list(launch.entrypoint)
        created = self._client.containers.create(
            launch.image, command=launch.command() or None, environment=dict(launch.env), **options
        )
        with self._lock:
            self.container = created
            if self._stopped:
                return
        created.start()
        self._state = "running"
        rest = b""
        for chunk in created.logs(stream=True, follow=True):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._print(line.decode(errors="replace"))
        if rest:
            self._print(rest.decode(errors="replace"))
        self._code = int(created.wait()["StatusCode"])
        self._state = "exited"

    def _print(self, line: str) -> None:
        with self._lock:
            self._lines.append(line)


class DockerRunner:
    """Starts pods on the local engine; ``close`` removes all that it made.

    Args:
        client: a docker-py client, by default the one of the environment.
        pull: pull the image at each start, with the pod's registry credentials, as the service does.
        options: more keyword arguments of ``containers.create`` (network, mem_limit, …).
    """

    real = True

    def __init__(self, client: Any = None, *, pull: bool = False, **options: Any) -> None:
        import docker

        self._client = client if client is not None else docker.from_env()
        self._pull = pull
        self.label = uuid.uuid4().hex
        self._options = {**options, "labels": {LABEL: self.label}}
        self._containers: list[DockerContainer] = []

    def start(self, launch: Launch) -> Container:
        container = DockerContainer(self._client, launch, self._options, pull=self._pull)
        self._containers.append(container)
        return container

    def started(self, container: Container) -> None:
        """A container needs no script."""

    def close(self) -> None:
        import docker.errors

        for container in self._containers:
            container.stop(1)
        for left in self._client.containers.list(all=True, filters={"label": f"{LABEL}={self.label}"}):
            with contextlib.suppress(docker.errors.APIError):
                left.remove(force=True, v=True)


def bridge_address(client: Any = None) -> str:
    """The host's address on Docker's default bridge, where containers can reach a server of this machine."""
    import docker

    engine = client if client is not None else docker.from_env()
    config = engine.networks.get("bridge").attrs["IPAM"]["Config"][0]
    # An engine that was given no gateway takes the subnet's first address, and does not say so.
    first = next(ipaddress.ip_network(config["Subnet"]).hosts())
    return str(config.get("Gateway") or first)
