"""The plugin that collects every service, and marks the tests that use one, so that no mark is ever forgotten."""

from __future__ import annotations

from typing import Any

import pytest

from tests.services.browser import browser
from tests.services.ceph import ceph
from tests.services.compose import compose
from tests.services.engine import base_image, docker_engine
from tests.services.registry import registry
from tests.services.s3 import s3_server
from tests.services.train import pip_args, pip_offline, train_image

__all__ = [
    "base_image",
    "browser",
    "ceph",
    "compose",
    "docker_engine",
    "pip_args",
    "pip_offline",
    "registry",
    "s3_server",
    "train_image",
]

# A first build fetches and installs hundreds of megabytes; whichever test comes first pays for it.
BUILD_TIMEOUT = 1200


# A file with one of these words uses the engine.
OF_DOCKER = ("docker_engine", "train_image", "RegistryServer", "Compose", "base_image")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several workers the tests of a file stay together, and all files of Docker's: they share images that are
    built once, and look at the engine's containers. (pytest-xdist's own groups do nothing under this pytest.)"""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            text = (config.rootpath / file).read_text(encoding="utf-8")
            return "docker" if any(word in text for word in OF_DOCKER) else file

    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes first, so that no worker is left alone with one in the end."""
    long = [{item.path for item in items if item.get_closest_marker(mark)} for mark in ("docker", "train")]
    items.sort(key=lambda item: [item.path not in files for files in long])


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test of a GPU is skipped without one, in CI too, which has none."""
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no GPU here")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what is used."""
    used = set(getattr(item, "fixturenames", ()))
    if "docker_engine" in used:
        item.add_marker(pytest.mark.docker)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(BUILD_TIMEOUT))
    if "browser" in used:
        item.add_marker(pytest.mark.browser)
    if "ceph" in used:
        item.add_marker(pytest.mark.ceph)
