"""The plugin that collects every service, and marks the tests that use one, so that no mark is ever forgotten."""

from __future__ import annotations

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


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what is used. With several workers the tests of a file stay together, and all of Docker's: they share
    images that are built once, and mostly wait for the engine. (Later hooks come after pytest-xdist has looked.)"""
    used = set(getattr(item, "fixturenames", ()))
    docker = bool(used & {"docker_engine", "registry", "compose"})
    item.add_marker(pytest.mark.xdist_group("docker" if docker else item.nodeid.partition("::")[0]))
    if "docker_engine" in used:
        item.add_marker(pytest.mark.docker)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(BUILD_TIMEOUT))
    if "browser" in used:
        item.add_marker(pytest.mark.browser)
    if "ceph" in used:
        item.add_marker(pytest.mark.ceph)
