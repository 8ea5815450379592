"""Provider ``local``: real processes that outlive their parent and can be found and ended by name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cloudft.errors import ProviderError
from infra.provider import Order, machine_name, open_provider, parse_machine_name
from infra.provider_local import LocalProvider

REPO = Path(__file__).resolve().parents[2]
NAME = machine_name("20261120-101010-ab12", 1, time.time() + 60)
# A ticket that never comes keeps the supervisor trying until its deadline: a machine that lives.
NO_TICKET = "http://127.0.0.1:9/ticket"


def order(seconds: float = 60) -> Order:
    return Order(name=NAME, ticket_url=NO_TICKET, deadline=time.time() + seconds)


@pytest.fixture
def provider(tmp_path: Path) -> LocalProvider:
    return LocalProvider(tmp_path / "machines")


def test_names_carry_run_attempt_and_deadline() -> None:
    assert parse_machine_name(machine_name("20261120-101010-ab12", 3, 1.9e9)) == ("20261120-101010-ab12", 3, 1.9e9)
    assert parse_machine_name("somebody-elses-machine-1") is None
    assert parse_machine_name("cloudft") is None


def test_a_machine_is_found_by_name_and_ended_for_good(provider: LocalProvider) -> None:
    assert provider.find(NAME) is None
    machine = provider.create(order())
    try:
        assert provider.find(NAME) == machine
        assert provider.machines() == [machine]
        assert machine.rate_usd == 0
    finally:
        provider.terminate(NAME)
    assert provider.find(NAME) is None
    assert provider.machines() == []
    provider.terminate(NAME)
    provider.terminate("cloudft-never-a1-1")


def test_the_deadline_ends_the_machine_from_inside(provider: LocalProvider) -> None:
    provider.create(order(seconds=1))
    give_up = time.monotonic() + 20
    while provider.find(NAME) is not None:
        assert time.monotonic() < give_up
        time.sleep(0.05)


def test_it_is_found_when_its_id_was_never_written_down(provider: LocalProvider) -> None:
    machine = provider.create(order())
    (provider.root / NAME / "machine.json").unlink()
    found = provider.find(NAME)
    provider.terminate(NAME)
    assert found == machine
    assert provider.find(NAME) is None


def test_a_reused_process_id_is_a_stranger(provider: LocalProvider) -> None:
    provider.create(order())
    provider.terminate(NAME)
    (provider.root / NAME / "machine.json").write_text(f'{{"pid": {os.getpid()}, "started": 1.0}}')
    assert provider.find(NAME) is None
    provider.terminate(NAME)
    assert psutil.pid_exists(os.getpid())


def test_it_outlives_its_parent_and_the_terminal(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from infra.provider import Order;"
        "from infra.provider_local import LocalProvider; import os, signal;"
        f"LocalProvider(Path({str(tmp_path)!r})).create(Order({NAME!r}, {NO_TICKET!r}, {time.time() + 60}));"
        "os.killpg(0, signal.SIGHUP)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(REPO)}, start_new_session=True
    )
    assert done.returncode == -signal.SIGHUP
    provider = LocalProvider(tmp_path)
    alive = provider.find(NAME)
    provider.terminate(NAME)
    assert alive is not None


def test_account_keys_do_not_reach_the_machine(provider: LocalProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "topsecret")
    monkeypatch.setenv("RUNPOD_API_KEY", "topsecret")
    machine = provider.create(order())
    environment = psutil.Process(int(machine.id)).environ()
    arguments = psutil.Process(int(machine.id)).cmdline()
    provider.terminate(NAME)
    assert "topsecret" not in str(environment)
    assert NO_TICKET not in " ".join(arguments)


def test_an_unknown_provider_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match="unknown provider 'runpodd'") as caught:
        open_provider("runpodd", tmp_path)
    assert "local" in caught.value.hint
