"""The doubles' own fixtures, and small helpers of their tests."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from .clock import ManualClock
from .runpod import RunpodDouble
from .runpod.fixture import runpod_double, runpod_package, sim_double

__all__ = ["runpod_double", "runpod_package", "sim_double"]


@pytest.fixture
def server(sim_double: tuple[RunpodDouble, ManualClock]) -> RunpodDouble:
    """The double on a manual clock."""
    return sim_double[0]


@pytest.fixture
def clock(sim_double: tuple[RunpodDouble, ManualClock]) -> ManualClock:
    """The clock of ``server``."""
    return sim_double[1]


@pytest.fixture
def http(server: RunpodDouble) -> Iterator[httpx.Client]:
    """A plain client of ``server`` with the account's key."""
    with client_of(server, server.api_key) as client:
        yield client


def client_of(server: RunpodDouble, key: str) -> httpx.Client:
    """A plain client with this key; no proxy of the environment gets in between."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(base_url=server.url, headers=headers, trust_env=False, timeout=20)
