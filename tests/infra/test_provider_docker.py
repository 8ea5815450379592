"""Provider docker where the engine says no: nothing is left behind, and it says why. Else: the contract test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloudft.errors import ProviderError
from infra.provider import Order, machine_name
from infra.provider_docker import DockerProvider
from tests.services.engine import DockerEngine
from tests.services.registry import RegistryServer

NAME = machine_name(f"20261120-101010-{os.getpid():x}", 7, 4e9)


@pytest.fixture
def broken(docker_engine: DockerEngine, base_image: str, tmp_path: Path) -> Iterator[str]:
    """An image whose first process is not there."""
    tag = f"cloudft-broken:test-{os.getpid()}"
    (tmp_path / "Dockerfile").write_text(f'FROM {base_image}\nENTRYPOINT ["/no/such/program"]\n')
    docker_engine.build(tmp_path, tag, dockerfile="Dockerfile", args={})
    yield tag
    docker_engine.run("rmi", "-f", tag)


def order(image: str) -> Order:
    return Order(name=NAME, ticket_url="http://127.0.0.1:9/t?signature=5ec4e7", deadline=4e9, image=image)


def test_a_container_that_cannot_start_is_not_left_behind(broken: str) -> None:
    with pytest.raises(ProviderError, match="/no/such/program") as info:
        DockerProvider().create(order(broken))
    assert info.value.effect == "nothing was started"
    assert "5ec4e7" not in str(info.value)
    assert DockerProvider().find(NAME) is None
    assert NAME not in {machine.name for machine in DockerProvider().machines()}


def test_an_image_that_is_not_here_and_cannot_be_pulled_is_an_error_with_a_hint(docker_engine: DockerEngine) -> None:
    for image in ("127.0.0.1:9/no-such-image@sha256:" + "0" * 64, "sha256:" + "0" * 64):
        with pytest.raises(ProviderError, match="is not here and cannot be pulled") as info:
            DockerProvider().create(order(image))
        assert "cloudft build" in info.value.hint
        assert info.value.effect == "nothing was started"


def test_an_image_that_is_in_a_registry_is_pulled_with_the_users_login(
    docker_engine: DockerEngine, registry: RegistryServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty image: that its program is not there is known only once it is here."""
    name = f"{registry.host}/me/pulled-{os.getpid()}:1"
    login = str(registry.config(tmp_path / "docker-config"))
    (tmp_path / "Dockerfile").write_text('FROM scratch\nCOPY Dockerfile /\nENTRYPOINT ["/pulled"]\n')
    docker_engine.build(tmp_path, name, dockerfile="Dockerfile", args={})
    docker_engine.run("push", name, env={"DOCKER_CONFIG": login})
    docker_engine.run("rmi", name)
    monkeypatch.setenv("DOCKER_CONFIG", login)
    told: list[str] = []
    with pytest.raises(ProviderError, match="/pulled"):
        DockerProvider().create(replace(order(name), waiting=lambda what, note: told.append(what)))
    assert told == ["pull the image"]
    docker_engine.run("rmi", "-f", name)


def test_where_the_engine_has_nvidias_runtime_all_gpus_are_asked_for(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine's own description is put in place of a real one; that it has no such driver, it says itself."""
    from docker import DockerClient

    real = DockerClient.info

    def with_nvidia(self: DockerClient) -> dict[str, Any]:
        told: dict[str, Any] = real(self)
        return told | {"Runtimes": {"runc": {}, "nvidia": {}}}

    monkeypatch.setattr(DockerClient, "info", with_nvidia)
    with pytest.raises(ProviderError, match=r"capabilities: \[\[gpu\]\]") as info:
        DockerProvider().create(order(broken))
    assert "NVIDIA Container Toolkit" in info.value.hint
    assert DockerProvider().find(NAME) is None
