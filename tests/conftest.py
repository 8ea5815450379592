"""Every test starts with a clean environment and a home of its own, and reaches nothing but this computer."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.services.host import addresses

REPO = Path(__file__).resolve().parent.parent
# Variables that would let a developer's own accounts or caches leak into a test.
PRIVATE = ("AWS_", "RUNPOD_", "MODAL_", "HF_", "HUGGING", "CLOUDFT_", "WANDB_", "MLFLOW_", "OPENAI_")
# Set by those who run the suite, not by the user of cloudft.
OURS = ("CLOUDFT_TEST_",)

# A shell starts what runs in its background with Ctrl-C ignored, nohup ignores a hang-up, and children inherit both:
# without these lines the tests of such signals would fail there, and only there.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _is_private(name: str) -> bool:
    return name.startswith(PRIVATE) and not name.startswith(OURS)


@pytest.fixture(autouse=True)
def _clean_environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = os.environ.get("CLOUDFT_CACHE") or os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    shared = Path(os.environ["CLOUDFT_CACHE"]) if "CLOUDFT_CACHE" in os.environ else Path(cache) / "cloudft"
    for name in list(os.environ):
        if _is_private(name):
            monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(home / "aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(home / "aws-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("CLOUDFT_CACHE", str(shared))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("PYTHONPATH", raising=False)


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches for the network fails at once and says so. Child processes are not covered."""
    real: Callable[..., None] = socket.socket.connect

    def connect(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = str(address[0])  # type: ignore[index]
            if not (host.startswith("127.") or host in ("::1", "localhost", *addresses())):
                raise AssertionError(f"a test reached for {host}")
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture
def repo() -> Path:
    return REPO
