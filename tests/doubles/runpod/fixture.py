"""Fixtures; a conftest makes them known with ``from tests.doubles.runpod.fixture import …``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from ..clock import ManualClock  # noqa: TID252 (tests are no installed package)
from .double import RunpodDouble

__all__ = ["runpod_double", "runpod_package", "sim_double"]


@pytest.fixture
def runpod_double() -> Iterator[RunpodDouble]:
    """A double on the wall clock, whose pods are played by the test."""
    with RunpodDouble() as server:
        yield server
        assert server.defects == []


@pytest.fixture
def sim_double() -> Iterator[tuple[RunpodDouble, ManualClock]]:
    """A double on a clock that the test moves, and that clock."""
    clock = ManualClock()
    with RunpodDouble(clock=clock) as server:
        yield server, clock
        assert server.defects == []


@pytest.fixture
def runpod_package(runpod_double: RunpodDouble, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The real ``runpod`` package, talking to ``runpod_double`` with the account's key."""
    package = import_runpod()
    monkeypatch.setenv("RUNPOD_API_BASE_URL", runpod_double.url)
    monkeypatch.setattr(package, "api_key", runpod_double.api_key)
    return package


def import_runpod() -> ModuleType:
    """Import ``runpod`` and undo the root log handler that its import makes [code]."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        import runpod  # the real package: this one is a subpackage of ``tests.doubles``
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    return sys.modules[runpod.__name__]
