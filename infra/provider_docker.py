"""Provider ``docker``: the training image as a container on this computer's engine, with its GPUs if it has any.

A container is found by its name. It is kept after its end until it is terminated, so that its console can be read;
a container that has exited counts as ended, since nothing of it runs or costs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from cloudft.errors import EnvironmentProblem, ProviderError
from infra.gpus import Wish
from infra.offers import Offer
from infra.provider import ORDINARY, PREFIX, Machine, Order, Terms, parse_machine_name
from jobs.ticket import ENV_DEADLINE, ENV_TICKET

if TYPE_CHECKING:
    from docker import DockerClient

LABEL = "cloudft.machine"
STOP_SECONDS = 10


class DockerProvider:
    """Machines are containers. They see the network, the ticket's URL and nothing of this computer's files."""

    name = "docker"

    def check(self) -> None:
        with self._client("use this computer's containers") as client:
            client.ping()

    def create(self, order: Order) -> Machine:
        if order.image is None:
            raise ProviderError("provider docker needs a training image", hint="set image in cloudft.yaml")
        with self._client(f"start {order.name}") as client:
            container = _created(client, order)
            try:
                container.start()
            except BaseException:
                # One that never ran would count as a machine that is about to.
                container.remove(force=True)
                raise
            container.reload()
            return _machine(container)

    def offers(self, wishes: Sequence[Wish], terms: Terms = ORDINARY) -> list[Offer]:
        return []

    def log(self, name: str) -> str:
        from docker.errors import NotFound

        with self._client(f"read the console of {name}") as client:
            try:
                return str(client.containers.get(name).logs().decode(errors="replace"))
            except NotFound:
                return ""

    def find(self, name: str, machine_id: str | None = None) -> Machine | None:
        from docker.errors import NotFound

        with self._client(f"look for {name}") as client:
            try:
                return _machine(client.containers.get(name))
            except NotFound:
                return None

    def machines(self) -> list[Machine]:
        with self._client("list the containers") as client:
            found = client.containers.list(all=True, filters={"name": f"^{PREFIX}-", "label": LABEL})
            return sorted((_machine(c) for c in found if parse_machine_name(c.name or "")), key=lambda m: m.name)

    def terminate(self, name: str, machine_id: str | None = None) -> None:
        from docker.errors import NotFound

        with self._client(f"end {name}") as client:
            with contextlib.suppress(NotFound):
                container = client.containers.get(name)
                container.stop(timeout=STOP_SECONDS)
                container.remove(force=True)
            with contextlib.suppress(NotFound):
                client.containers.get(name)
                raise ProviderError(f"container {name} is still there", hint=f"end it by hand:  docker rm -f {name}")

    @contextlib.contextmanager
    def _client(self, doing: str) -> Iterator[DockerClient]:
        import docker

        with _translated(doing):
            client = docker.from_env(timeout=60)
            try:
                yield client
            finally:
                client.close()


def _created(client: DockerClient, order: Order) -> Any:
    """The container, not started yet; an image that is not here is pulled with the login of Docker's own config."""
    from docker.errors import APIError, ImageNotFound

    assert order.image is not None
    options: dict[str, Any] = {
        "name": order.name,
        "labels": {LABEL: order.name},
        "environment": {ENV_DEADLINE: str(order.deadline), ENV_TICKET: order.ticket_url, **_secrets(order)},
        "device_requests": _gpus(client),
        # The engine's init does not reap for us: the supervisor is PID 1, as on a rented machine.
        "init": False,
    }
    try:
        return client.containers.create(order.image, **options)
    except ImageNotFound:
        order.waiting("pull the image", "minutes for a new one")
    try:
        client.images.pull(order.image)
    except APIError as exc:
        raise ProviderError(
            f"cannot start {order.name}: {order.image} is not here and cannot be pulled: {exc.explanation or exc}",
            effect="nothing was started",
            hint="make it:  cloudft build --no-push    or correct image in cloudft.yaml",
        ) from exc
    return client.containers.create(order.image, **options)


def _secrets(order: Order) -> dict[str, str]:
    """Here it is this computer's environment that keeps them, by the names that ``machine.secrets`` gives."""
    missing = [name for name in order.secrets.values() if name not in os.environ]
    if missing:
        raise ProviderError(
            f"machine.secrets names {missing[0]}, which is no variable of this computer's environment",
            effect="nothing was started",
            hint=f"export {missing[0]}=…",
        )
    return {variable: os.environ[name] for variable, name in order.secrets.items()}


def _machine(container: Any) -> Machine:
    states: dict[str, Literal["starting", "running", "ended"]] = {"created": "starting", "exited": "ended"}
    state = "ended" if container.status == "dead" else states.get(container.status, "running")
    return Machine(provider="docker", id=container.id, name=container.name, state=state, rate_usd=0.0)


def _gpus(client: DockerClient) -> list[Any]:
    """All GPUs, where the engine has NVIDIA's runtime; none elsewhere."""
    from docker.types import DeviceRequest

    if "nvidia" not in client.info().get("Runtimes", {}):
        return []
    return [DeviceRequest(count=-1, capabilities=[["gpu"]])]


@contextlib.contextmanager
def _translated(doing: str) -> Iterator[None]:
    """The Docker SDK's errors as ours; the environment of a container, which holds its ticket, is never shown."""
    from docker.errors import APIError, DockerException
    from requests.exceptions import RequestException

    try:
        yield
    except APIError as exc:
        said = str(exc.explanation or exc)
        gpus = "let the engine use the GPUs: install the NVIDIA Container Toolkit, then restart Docker"
        hint = gpus if "gpu" in said or "nvidia" in said else ""
        raise ProviderError(f"cannot {doing}: {said}", effect="nothing was started", hint=hint) from exc
    except (DockerException, RequestException) as exc:
        raise EnvironmentProblem(
            f"cannot {doing}: no Docker engine answers",
            effect="nothing was started; a container that runs goes on",
            hint="start Docker, or use provider: local",
        ) from exc
