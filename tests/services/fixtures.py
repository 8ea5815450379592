"""The plugin that collects every service, and marks the tests that use one, so that no mark is ever forgotten."""

from __future__ import annotations

import pytest

from tests.services.ceph import ceph
from tests.services.compose import compose
from tests.services.engine import base_image, docker_engine
from tests.services.registry import registry
from tests.services.s3 import s3_server
from tests.services.train import pip_args, train_image

__all__ = ["base_image", "ceph", "compose", "docker_engine", "pip_args", "registry", "s3_server", "train_image"]

# A first build fetches and installs hundreds of megabytes; whichever test comes first pays for it.
BUILD_TIMEOUT = 1200


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        used = set(getattr(item, "fixturenames", ()))
        if "docker_engine" in used:
            item.add_marker(pytest.mark.docker)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(BUILD_TIMEOUT))
        if "ceph" in used:
            item.add_marker(pytest.mark.ceph)
