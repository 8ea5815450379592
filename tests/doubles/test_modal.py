"""The double of Modal, spoken to by the real ``modal`` package."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from modal_proto import api_pb2

from tests.doubles.clock import ManualClock
from tests.doubles.modal import RATES, ModalDouble
from tests.doubles.runpod.runners import ProcessRunner, SimRunner

modal = pytest.importorskip("modal")
Result = api_pb2.GenericResult
REPO = Path(__file__).resolve().parents[2]
STATUSES = [name for name in Result.GenericStatus.keys() if not name.endswith("UNSPECIFIED")]  # noqa: SIM118 - a proto's


class Client:
    """The package's own objects, on one client of its own: the package keeps one for a whole process otherwise."""

    def __init__(self, server: ModalDouble) -> None:
        self.client = modal.Client.from_credentials(server.token_id, server.token_secret)
        self.app = modal.App.lookup("cloudft", client=self.client, create_if_missing=True)

    def create(self, *command: str, **options: Any) -> Any:
        image = modal.Image.from_registry("registry.test/train@sha256:00", secret=options.pop("registry", None))
        given = {"gpu": "L4", "timeout": 3600, "cpu": (2.0, 2.0), "memory": (1024, 1024), "name": "cloudft-x"}
        options = {**given, **options}
        return modal.Sandbox.create(*command, app=self.app, image=image, client=self.client, **options)

    def listed(self, **tags: str) -> list[str]:
        return [s.object_id for s in modal.Sandbox.list(app_id=self.app.app_id, tags=tags, client=self.client)]

    def named(self, name: str) -> Any:
        return modal.Sandbox.from_name("cloudft", name, client=self.client)


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[ModalDouble], Client]]:
    clients: list[Client] = []

    def to(server: ModalDouble) -> Client:
        for name, value in server.env().items():
            monkeypatch.setenv(name, value)
        clients.append(Client(server))
        return clients[-1]

    yield to
    for client in clients:
        client.client.close()


@pytest.fixture
def played(connect: Callable[[ModalDouble], Client]) -> Iterator[tuple[ModalDouble, ManualClock, Client]]:
    """On a clock that the test moves; nothing runs."""
    clock = ManualClock()
    with ModalDouble(clock=clock) as server:
        yield server, clock, connect(server)
        assert server.misuses == []


@pytest.fixture
def real(connect: Callable[[ModalDouble], Client]) -> Iterator[tuple[ModalDouble, Client]]:
    """In real time; commands are processes."""
    with ModalDouble(runner=ProcessRunner([])) as server:
        yield server, connect(server)
        assert server.misuses == []


def test_a_command_runs_with_its_environment_and_its_log_is_followed(real: tuple[ModalDouble, Client]) -> None:
    server, client = real
    sandbox = client.create("sh", "-c", "echo $WORD; sleep 0.3; echo two; exit 3", env={"WORD": "one"})
    assert list(sandbox.stdout) == ["one\n", "two\n"]
    sandbox.wait(raise_on_termination=False)
    assert sandbox.returncode == 3
    assert server.box("cloudft-x").result.status == Result.GENERIC_STATUS_FAILURE
    assert [entry.message for entry in sandbox.logs.tail(5)] == ["one\n", "two\n"]


def test_a_log_that_is_cut_is_resumed(real: tuple[ModalDouble, Client]) -> None:
    server, client = real
    cut = server.faults.cut_log(times=2)
    sandbox = client.create("sh", "-c", "echo 1; echo 2; echo 3; echo 4")
    assert sandbox.stdout.read() == "1\n2\n3\n4\n"
    assert cut.hits == 2


def test_the_timeout_is_the_servers_own(real: tuple[ModalDouble, Client]) -> None:
    """Nobody calls: the command is killed, and the bill ends."""
    server, client = real
    client.create("sleep", "60", timeout=1)
    box = server.box("cloudft-x")
    give_up = time.monotonic() + 20
    while box.live:
        assert time.monotonic() < give_up
        time.sleep(0.05)
    bill = server.ledger.total()
    assert box.result.status == Result.GENERIC_STATUS_TIMEOUT
    assert bill == pytest.approx(server.ledger.rate_of(box.id) / 3600)
    container = box.container
    while container.state() == "running":  # type: ignore[union-attr]
        assert time.monotonic() < give_up
        time.sleep(0.05)


def test_tokens_are_checked(connect: Callable[[ModalDouble], Client], monkeypatch: pytest.MonkeyPatch) -> None:
    with ModalDouble() as server:
        connect(server)
        stranger = modal.Client.from_credentials("ak-x", "as-x")
        with pytest.raises(modal.exception.AuthError):
            modal.App.lookup("cloudft", client=stranger, create_if_missing=True)
        stranger.close()


@pytest.mark.parametrize("status", STATUSES)
def test_every_status_and_the_return_code_that_lies(
    played: tuple[ModalDouble, ManualClock, Client], status: str
) -> None:
    server, _, client = played
    sandbox = client.create()
    server.service.end(sandbox.object_id, Result.GenericStatus.Value(status))
    again = modal.Sandbox.from_id(sandbox.object_id, client=client.client)
    # Only these two tell: all others say 0, whatever happened.
    told = {"GENERIC_STATUS_TIMEOUT": 124, "GENERIC_STATUS_TERMINATED": 137}
    assert again.poll() == told.get(status, 0)
    assert client.listed() == []
    with pytest.raises(modal.exception.NotFoundError):
        client.named("cloudft-x")


def test_it_is_found_by_id_by_name_and_by_tags_over_several_pages(
    played: tuple[ModalDouble, ManualClock, Client],
) -> None:
    _, _, client = played
    made = [client.create(name=f"cloudft-{i}", tags={"run": str(i % 2)}).object_id for i in range(5)]
    assert client.listed() == list(reversed(made))
    assert client.listed(run="1") == [made[3], made[1]]
    assert client.named("cloudft-2").object_id == made[2]
    assert client.named("cloudft-3").get_tags() == {"run": "1"}


def test_a_name_is_unique_while_it_runs(played: tuple[ModalDouble, ManualClock, Client]) -> None:
    _, _, client = played
    first = client.create()
    with pytest.raises(modal.exception.AlreadyExistsError):
        client.create()
    first.terminate()
    assert first.poll() == 137
    assert client.create().object_id != first.object_id


@pytest.mark.parametrize("timeout", [0, 86401])
def test_a_timeout_beyond_a_day_is_refused(played: tuple[ModalDouble, ManualClock, Client], timeout: int) -> None:
    _, _, client = played
    with pytest.raises(modal.exception.InvalidError):
        client.create(timeout=timeout)


def test_the_bill_is_what_was_asked_for_and_the_whole_host_without_limits(
    played: tuple[ModalDouble, ManualClock, Client],
) -> None:
    server, clock, client = played
    limited = client.create(name="cloudft-1", gpu="A10G:2", cpu=(4.0, 4.0), memory=(16384, 16384))
    rate = 2 * RATES["gpu_hour_cost_a10g"] + 4 * RATES["cpu_hour_cost_sandbox"]
    rate += 16 * RATES["mem_gib_hour_cost_sandbox"]
    clock.advance(1800)
    assert server.ledger.total("cloudft-1") == pytest.approx(rate / 2)
    limited.terminate()
    clock.advance(3600)
    assert server.ledger.total("cloudft-1") == pytest.approx(rate / 2)
    unlimited = client.create(name="cloudft-2", cpu=2.0, memory=1024)
    assert server.ledger.rate_of(unlimited.object_id) > 10
    there = client.create(name="cloudft-3", gpu="A10G:2", cpu=(4.0, 4.0), memory=(16384, 16384), region="us-west")
    assert server.ledger.rate_of(there.object_id) == pytest.approx(rate * 1.75)


def test_the_rates_are_the_workspaces(played: tuple[ModalDouble, ManualClock, Client]) -> None:
    _, _, client = played
    rates = modal.Workspace.from_context(client=client.client).billing.rates()
    assert {name: float(value) for name, value in rates.items()} == RATES


def test_no_machine_is_silence_and_the_package_waits(played: tuple[ModalDouble, ManualClock, Client]) -> None:
    server, clock, client = played
    server.faults.no_capacity(times=1)
    future = modal.Sandbox.create.aio  # the blocking form would wait for 21 minutes
    import asyncio

    async def wait() -> None:
        image = modal.Image.from_registry("registry.test/x@sha256:00")
        await asyncio.wait_for(
            future(app=client.app, image=image, client=client.client, gpu="L4", name="cloudft-w"), timeout=3
        )

    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(wait())
    # Cancelled, it takes the sandbox back; waiting for a machine has cost nothing.
    assert server.box("cloudft-w").result.status == Result.GENERIC_STATUS_TERMINATED
    clock.advance(600)
    assert server.ledger.total() == 0
    server.faults.over_limit()
    with pytest.raises(modal.exception.ResourceExhaustedError):
        client.create()


def test_a_lost_reply_leaves_a_sandbox_that_the_repeated_create_stumbles_over(
    played: tuple[ModalDouble, ManualClock, Client],
) -> None:
    server, _, client = played
    server.faults.drop_reply("SandboxCreate", times=1)
    with pytest.raises(modal.exception.AlreadyExistsError):
        client.create()
    assert client.named("cloudft-x").object_id == server.box("cloudft-x").id


def test_a_server_that_knows_the_key_answers_the_repeated_create(connect: Callable[[ModalDouble], Client]) -> None:
    with ModalDouble(idempotent=True) as server:
        client = connect(server)
        server.faults.drop_reply("SandboxCreate", times=1)
        assert client.create().object_id == server.box("cloudft-x").id
        assert len(server.live()) == 1


def test_a_lost_request_leaves_nothing(played: tuple[ModalDouble, ManualClock, Client]) -> None:
    server, _, client = played
    lost = server.faults.drop_request("SandboxCreate")
    with pytest.raises(Exception, match=r".*"):
        client.create()
    assert lost.hits == 4
    assert server.live() == []


def test_secrets_become_the_environment_and_open_a_private_registry(
    played: tuple[ModalDouble, ManualClock, Client],
) -> None:
    server, _, client = played
    server.secrets["hub"] = {"HF_TOKEN": "hf_1"}
    server.secrets["registry"] = {"REGISTRY_USERNAME": "me", "REGISTRY_PASSWORD": "pass"}
    server.images.registry_login = ("me", "pass")
    runner = server.runner
    assert isinstance(runner, SimRunner)
    with pytest.raises(modal.exception.RemoteError):
        client.create()
    login = modal.Secret.from_name("registry", client=client.client)
    with pytest.raises(modal.exception.NotFoundError):
        client.create(registry=login, secrets=[modal.Secret.from_name("nothing", client=client.client)])
    client.create(
        registry=login,
        secrets=[modal.Secret.from_name("hub", required_keys=["HF_TOKEN"], client=client.client)],
    )
    assert runner.containers[0].launch.env["HF_TOKEN"] == "hf_1"
    with pytest.raises(modal.exception.InvalidError):
        client.create(
            name="cloudft-y",
            registry=login,
            secrets=[modal.Secret.from_name("hub", required_keys=["OTHER"], client=client.client)],
        )


KILLED = """
import modal, sys
app = modal.App.lookup("cloudft", create_if_missing=True)
image = modal.Image.from_registry("registry.test/x@sha256:00")
print("ready", flush=True)
modal.Sandbox.create(app=app, image=image, gpu="L4", name="cloudft-k", cpu=(1, 1), memory=(512, 512))
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_client_that_is_killed_during_its_create(how: signal.Signals) -> None:
    """Ctrl-C takes the sandbox back; after a SIGKILL it stays, and gets its machine when there is one."""
    with ModalDouble() as server:
        server.faults.no_capacity()
        env = {**os.environ, **server.env()}
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=REPO
        )
        give_up = time.monotonic() + 60
        while "SandboxGetTaskId" not in server.calls:
            assert time.monotonic() < give_up
            time.sleep(0.05)
        process.send_signal(how)
        process.communicate(timeout=60)
        box = server.box("cloudft-k")
        if how == signal.SIGINT:
            assert box.result.status == Result.GENERIC_STATUS_TERMINATED
        else:
            assert box.live
            server.service.give_capacity()
            assert server.ledger.rate_of(box.id) > 0
