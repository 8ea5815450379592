"""Provider modal against the double: the real package, the real wire."""

from __future__ import annotations

import builtins
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from modal_proto import api_pb2

from cloudft.errors import EnvironmentProblem, ProviderError
from infra.modal_order import COMMAND
from infra.provider import CreateUnknown, NoCapacity
from infra.provider_modal import END_WITHIN, MACHINE_WITHIN, ModalProvider
from tests.doubles.modal import TOKEN_ID, TOKEN_SECRET, ModalDouble
from tests.infra.modal_fixtures import DIGEST, RUN, TICKET, Modal, modal

__all__ = ["modal"]

REPO = Path(__file__).resolve().parents[2]
Result = api_pb2.GenericResult


def test_what_is_asked_for(modal: Modal) -> None:
    """Limits beside requests, a timeout that is the deadline, tags that say all, the supervisor as the command."""
    modal.create(offer=modal.offer("A10G:2"), data_centers=("us-west",))
    definition, tags = modal.box.definition, modal.box.tags
    resources = definition.resources
    assert (resources.milli_cpu, resources.milli_cpu_max) == (4000, 4000)
    assert (resources.memory_mb, resources.memory_mb_max) == (48 * 1024, 48 * 1024)
    assert (resources.gpu_config.gpu_type, resources.gpu_config.count) == ("A10G", 2)
    assert definition.timeout_secs == 3600
    assert list(definition.scheduler_placement.regions) == ["us-west"]
    assert definition.name == modal.name
    assert (tags["run"], tags["attempt"], tags["deadline"]) == (RUN, "1", str(int(modal.clock.now() + 3600)))
    assert modal.box.image == DIGEST
    launch = modal.runner.containers[0].launch
    assert launch.command() == list(COMMAND)
    assert launch.env["CLOUDFT_TICKET_URL"] == TICKET
    assert float(launch.env["CLOUDFT_DEADLINE"]) == modal.clock.now() + 3600
    assert TOKEN_SECRET not in json.dumps(dict(launch.env))
    assert "5ec4e7" not in str(tags) + str(definition)


def test_the_command_is_the_images_own_entrypoint() -> None:
    entrypoint = re.findall(r"^ENTRYPOINT (.*)$", (REPO / "Dockerfile.train").read_text(), re.MULTILINE)
    assert json.loads(entrypoint[-1]) == list(COMMAND)


def test_the_rate_is_the_one_that_is_billed(modal: Modal) -> None:
    for gpu, where in [("L4", ()), ("A10G:2", ("us",)), ("A100-80", ("us-west", "us")), ("H100", ())]:
        offer = modal.offer(gpu, data_centers=where)
        machine = modal.create(offer=offer, data_centers=where)
        assert modal.server.ledger.rate_of(machine.id.partition("/")[2]) == pytest.approx(offer.rate_usd)
        assert machine.rate_usd == pytest.approx(offer.rate_usd)
        assert modal.another().find(modal.name).rate_usd == pytest.approx(offer.rate_usd)  # type: ignore[union-attr]
        modal.provider.terminate(modal.name)


def test_a_rate_that_rose_since_the_quote_is_seen(modal: Modal) -> None:
    offer = modal.offer()
    modal.server.faults.dearer(1.5)
    machine = modal.create(offer=offer)
    assert machine.rate_usd == pytest.approx(offer.rate_usd * 1.5)
    assert machine.rate_usd == pytest.approx(modal.server.ledger.rate_of(machine.id.partition("/")[2]))


@pytest.mark.parametrize("broken", ["gpu_hour_cost_l4", "cpu_hour_cost_sandbox", "mem_gib_hour_cost_sandbox"])
@pytest.mark.parametrize("value", [None, "0", "-1", "NaN", "Infinity"])
def test_an_unknown_price_is_refused_unless_a_highest_one_is_given(
    modal: Modal, broken: str, value: str | None
) -> None:
    rates = modal.server.service.rates
    if value is None:
        del rates[broken]
    else:
        rates[broken] = value
    with pytest.raises(ProviderError, match="what a Sandbox with L4 costs") as info:
        modal.offer()
    assert "--max-rate" in info.value.hint
    assert "nothing was rented" in info.value.effect
    offer = modal.offer(max_rate_usd=2.5)
    assert offer.rate_usd == 2.5
    assert "does not tell" in offer.billing_note


def test_a_highest_rate_does_not_stand_in_for_a_known_price(modal: Modal) -> None:
    assert modal.offer(max_rate_usd=9.0).rate_usd == modal.offer().rate_usd


def test_the_wait_for_a_machine_is_bounded_shown_and_taken_back(modal: Modal) -> None:
    modal.server.faults.no_capacity()
    began = time.monotonic()
    with pytest.raises(NoCapacity, match="taken back") as info:
        modal.create()
    assert time.monotonic() - began < 30
    assert "nothing was rented" in info.value.effect
    assert any("looks for a machine" in text and "Ctrl-C" in text for text in modal.told)
    # What one may have cost that came in the last moment counts.
    assert info.value.billed_seconds >= 2
    assert modal.server.live() == []
    modal.server.service.give_capacity()
    modal.clock.advance(3600)
    assert modal.server.ledger.total() == 0


def test_a_machine_that_comes_at_the_last_moment_is_in_the_ledger(modal: Modal) -> None:
    """It is there when the wait is over, before the package hears of it, and its end takes its time: that is billed."""
    modal.server.faults.delay("SandboxGetTaskId", seconds=30, times=None)
    modal.server.faults.slow_end(40)
    order = modal.order()
    with pytest.raises(NoCapacity) as info:
        modal.provider.create(order)
    assert modal.server.live() == []
    assert order.offer is not None
    billed = modal.server.ledger.total("cloudft-")
    assert 0 < billed <= info.value.billed_seconds * order.offer.rate_usd / 3600


def test_a_create_that_hangs_is_a_doubt_and_not_a_lack_of_machines(modal: Modal) -> None:
    """What is on its way may still arrive: nothing else may be rented in its place."""
    order = modal.order()
    modal.server.faults.drop_request("SandboxCreate", times=None)
    modal.provider = modal.another(machine_within=0.2)
    with pytest.raises(CreateUnknown):
        modal.provider.create(order)


def test_a_limit_of_the_workspace_is_no_capacity(modal: Modal) -> None:
    modal.server.faults.over_limit()
    with pytest.raises(NoCapacity):
        modal.create()
    assert modal.server.live() == []


def test_a_machine_that_comes_late_still_ends_before_the_money_is_gone() -> None:
    """The timeout counts from the machine's start: the longest wait is within what the budget keeps."""
    from infra.budget import TEARDOWN_SECONDS

    assert MACHINE_WITHIN + END_WITHIN < TEARDOWN_SECONDS


def test_a_lost_reply_finds_the_machine_that_it_made(modal: Modal) -> None:
    """The package sends the create again, which is refused since the name is taken: by this very order."""
    modal.server.faults.drop_reply("SandboxCreate", times=1)
    machine = modal.create()
    assert machine.id == f"double/{modal.box.id}"
    assert len(modal.server.live()) == 1


@pytest.mark.parametrize("fault", ["drop_reply", "internal"])
def test_replies_that_stay_lost_are_a_doubt_and_the_name_ends_it(modal: Modal, fault: str) -> None:
    getattr(modal.server.faults, fault)("SandboxCreate")
    if fault == "internal":
        modal.server.idempotent = True
    with pytest.raises(CreateUnknown) as info:
        modal.create()
    assert "may exist" in info.value.effect
    assert "5ec4e7" not in str(info.value)
    found = modal.another().find(modal.name)
    assert found is not None
    assert found.id == f"double/{modal.box.id}"
    modal.another().terminate(modal.name)
    assert modal.server.live() == []


def test_a_lost_request_is_a_doubt_too(modal: Modal) -> None:
    modal.server.faults.drop_request("SandboxCreate")
    with pytest.raises(CreateUnknown):
        modal.create()
    assert modal.another().find(modal.name) is None


@pytest.mark.parametrize("call", ["AppGetOrCreate", "ImageGetOrCreate", "WorkspaceBillingRates"])
def test_what_breaks_before_the_create_leaves_no_doubt(modal: Modal, call: str) -> None:
    order = modal.order()
    modal.server.faults.unavailable(call)
    with pytest.raises(ProviderError) as info:
        modal.provider.create(order)
    assert not isinstance(info.value, CreateUnknown)
    assert "nothing was rented" in info.value.effect
    assert "SandboxCreate" not in modal.server.calls


@pytest.mark.parametrize("status", [s for s in Result.GenericStatus.values() if s])
def test_an_end_is_an_end_whatever_the_return_code_says(modal: Modal, status: int) -> None:
    modal.create()
    modal.server.service.end(modal.box.id, status)
    for one in (modal.provider, modal.another()):
        assert one.find(modal.name) is None
        assert one.find(modal.name, f"double/{modal.box.id}") is None
        assert one.machines() == []
    modal.provider.terminate(modal.name)


def test_an_end_is_confirmed_by_reading_again(modal: Modal) -> None:
    modal.create()
    modal.server.faults.slow_end(30)
    began = modal.clock.now()
    modal.provider.terminate(modal.name)
    assert modal.clock.now() - began >= 30
    assert modal.server.live() == []


def test_one_that_does_not_end_is_an_error_that_says_so(modal: Modal) -> None:
    modal.create()
    modal.server.faults.slow_end(1e9)
    with pytest.raises(ProviderError, match="still there") as info:
        modal.provider.terminate(modal.name)
    assert "billed until it is gone" in info.value.effect
    assert modal.name in info.value.effect


def test_the_timeout_ends_it_when_nobody_does(modal: Modal) -> None:
    modal.create()
    modal.clock.advance(3599)
    assert modal.server.live()
    modal.clock.advance(2)
    assert modal.server.live() == []


def test_a_deadline_beyond_a_day_is_cut_to_what_modal_keeps(modal: Modal) -> None:
    modal.create(deadline=modal.clock.now() + 3 * 86400)
    assert modal.box.definition.timeout_secs == 86400
    assert modal.offer().longest_seconds == 86400


def test_more_machines_than_a_page_are_listed(modal: Modal) -> None:
    from infra.provider import machine_name

    names = [machine_name(RUN, n, modal.clock.now() + 3600) for n in range(1, 6)]
    for name in names:
        modal.create(name=name)
    assert [m.name for m in modal.another().machines()] == names


def test_secrets_and_a_private_registry(modal: Modal) -> None:
    modal.server.secrets["hub"] = {"HF_TOKEN": "hf_1"}
    modal.server.secrets["login"] = {"REGISTRY_USERNAME": "me", "REGISTRY_PASSWORD": "pass"}
    modal.server.images.registry_login = ("me", "pass")
    with pytest.raises(ProviderError, match="authentication required") as info:
        modal.create()
    assert "machine.registry" in info.value.hint
    with pytest.raises(ProviderError, match="nothing"):
        modal.create(registry="nothing")
    with pytest.raises(ProviderError, match="missing OTHER"):
        modal.create(registry="login", secrets={"OTHER": "hub"})
    modal.create(registry="login", secrets={"HF_TOKEN": "hub"})
    assert modal.runner.containers[0].launch.env["HF_TOKEN"] == "hf_1"


@pytest.mark.parametrize(
    "wrong",
    [
        {"image": "registry.test/train:latest"},
        {"image": None},
        {"offer": None},
        {"secrets": {"MODAL_TOKEN_ID": "x"}},
        {"secrets": {"HF_TOKEN": "hf_ value with blanks"}},
        {"name": "cloudft-x"},
        {"deadline": 1.0},
    ],
)
def test_a_bad_order_is_refused_before_anything_is_sent(modal: Modal, wrong: dict[str, Any]) -> None:
    order = modal.order(**wrong)
    with pytest.raises(ProviderError) as info:
        modal.provider.create(order)
    assert not isinstance(info.value, CreateUnknown | NoCapacity)
    assert "hf_ value" not in str(info.value)
    assert "SandboxCreate" not in modal.server.calls


def test_a_build_that_fails_or_takes_too_long(modal: Modal) -> None:
    modal.server.faults.build_fails()
    with pytest.raises(ProviderError, match="does not answer"):
        modal.create()
    modal.server.faults.slow_build(30)
    modal.provider = modal.another(image_within=0.5)
    with pytest.raises(ProviderError, match="did not fetch the image") as info:
        modal.create()
    assert "nothing was rented" in info.value.effect
    assert "SandboxCreate" not in modal.server.calls


def test_a_server_that_cannot_be_reached_is_an_error_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens; and somebody listens who never says a word."""
    monkeypatch.setenv("MODAL_TOKEN_ID", TOKEN_ID)
    monkeypatch.setenv("MODAL_TOKEN_SECRET", TOKEN_SECRET)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port in (9, silent.getsockname()[1]):
            monkeypatch.setenv("MODAL_SERVER_URL", f"http://127.0.0.1:{port}")
            began = time.monotonic()
            with pytest.raises(ProviderError, match="cannot be reached") as info:
                ModalProvider(hello=1.0).check()
            # The package alone takes a minute.
            assert time.monotonic() - began < 15
            assert TOKEN_SECRET not in str(info.value)


def test_tokens_are_asked_for_checked_and_never_shown(modal: Modal, monkeypatch: pytest.MonkeyPatch) -> None:
    modal.provider.check()
    monkeypatch.setenv("MODAL_TOKEN_SECRET", "as-wrong-0123456789")
    with pytest.raises(ProviderError, match="malformed or unknown") as info:
        modal.provider.check()
    assert "MODAL_TOKEN_SECRET" in info.value.hint
    assert "as-wrong" not in f"{info.value} {info.value.hint} {info.value.effect}"
    monkeypatch.setenv("MODAL_TOKEN_SECRET", "as wrong")
    with pytest.raises(ProviderError, match="blanks") as info:
        modal.provider.check()
    assert "as wrong" not in str(info.value)
    monkeypatch.delenv("MODAL_TOKEN_SECRET")
    with pytest.raises(ProviderError, match="MODAL_TOKEN_SECRET is not set"):
        modal.provider.check()


def test_without_the_package_the_command_to_install_it(modal: Modal, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "modal":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(EnvironmentProblem) as info:
        modal.provider.check()
    assert "pip install 'cloudft[modal]'" in info.value.hint


def test_a_machine_in_another_environment_is_found_and_ended(modal: Modal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which environment is the default is a setting of one computer: the reaper's may be another one."""
    modal.server.service.environments.append("experiments")
    monkeypatch.setenv("MODAL_ENVIRONMENT", "experiments")
    machine = modal.create()
    monkeypatch.delenv("MODAL_ENVIRONMENT")
    elsewhere = modal.another()
    assert [m.id for m in elsewhere.machines()] == [machine.id]
    found = elsewhere.find(modal.name)
    assert found is not None
    assert found.id == machine.id
    elsewhere.terminate(modal.name)
    assert modal.server.live() == []


def test_a_token_of_another_workspace_takes_nothing_for_ended(modal: Modal, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sees no machine of the first one's: taken for its end, another would be rented beside it."""
    machine = modal.create()
    with ModalDouble(clock=modal.clock, workspace="another") as other:
        for name, value in other.env().items():
            monkeypatch.setenv(name, value)
        stranger = modal.another()
        for ask in (stranger.find, stranger.terminate):
            with pytest.raises(ProviderError, match=r"workspace another, and machine sb-\w+ was rented in double"):
                ask(modal.name, machine.id)
        assert stranger.machines() == []
    assert len(modal.server.live()) == 1


def test_the_token_that_modals_own_command_wrote_down_will_do(
    modal: Modal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`modal token new` writes it into a file; the package reads that when it is imported."""
    env = dict(os.environ) | {"PYTHONPATH": str(REPO), "MODAL_CONFIG_PATH": str(tmp_path / "modal.toml")}
    del env["MODAL_TOKEN_ID"], env["MODAL_TOKEN_SECRET"]
    (tmp_path / "modal.toml").write_text(
        f'[me]\ntoken_id = "{TOKEN_ID}"\ntoken_secret = "{TOKEN_SECRET}"\nactive = true\n'
    )
    script = (
        "from infra.accounts import accounts\n"
        "from infra.provider_modal import ModalProvider\n"
        "ModalProvider().check()\n"
        "print(accounts())"
    )
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, cwd=REPO)
    assert (done.returncode, done.stdout) == (0, "['modal']\n"), done.stderr


INTERRUPTED = """
import sys
from infra.gpus import parse_wish
from infra.provider import Order, TakenBack
from infra.provider_modal import ModalProvider
provider = ModalProvider()
offer = next(o for o in provider.offers([parse_wish("L4")]) if o.id == "L4")
order = Order("cloudft-r1-a1-4000000000", "http://127.0.0.1:9/t", 4e9, "r/x@sha256:00", offer)
try:
    provider.create(order)
except TakenBack as exc:
    print(exc.effect)
    sys.exit(exc.exit_code)
"""


@pytest.mark.parametrize("call", ["SandboxCreate", "SandboxGetFromName"])
def test_ctrl_c_during_the_wait_takes_the_order_back_and_says_so(call: str) -> None:
    """Also when it comes before the order was looked for, or before the answer to that look."""
    with ModalDouble() as server:
        server.faults.no_capacity()
        process = _start(server, INTERRUPTED)
        _wait_for(server, call)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "nothing is billed" in said
        assert server.live() == []


def test_ctrl_c_after_an_order_that_modal_does_not_show_promises_nothing() -> None:
    with ModalDouble() as server:
        server.faults.drop_request("SandboxCreate", times=None)
        process = _start(server, INTERRUPTED)
        _wait_for(server, "SandboxCreate")
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGINT
        assert "nothing is billed" not in said


def test_ctrl_c_before_the_order_says_that_nothing_was_ordered() -> None:
    with ModalDouble() as server:
        server.faults.slow_build(60)
        process = _start(server, INTERRUPTED)
        _wait_for(server, "ImageJoinStreaming")
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "nothing is billed" in said
        assert "SandboxCreate" not in server.calls


def test_a_client_that_is_killed_leaves_a_machine_that_is_found_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with ModalDouble() as server:
        server.faults.no_capacity()
        process = _start(server, INTERRUPTED)
        _wait_for(server)
        process.kill()
        process.communicate(timeout=60)
        server.service.give_capacity()
        for name, value in server.env().items():
            monkeypatch.setenv(name, value)
        (machine,) = ModalProvider().machines()
        assert machine.name == "cloudft-r1-a1-4000000000"
        ModalProvider().terminate(machine.name)
        assert server.live() == []


def _start(server: ModalDouble, script: str) -> subprocess.Popen[str]:
    env = {**os.environ, **server.env(), "PYTHONPATH": str(REPO)}
    return subprocess.Popen([sys.executable, "-c", script], env=env, stdout=subprocess.PIPE, text=True, cwd=REPO)


def _wait_for(server: ModalDouble, call: str = "SandboxGetFromName") -> None:
    """The order is placed, and was looked for; or as far as that call."""
    give_up = time.monotonic() + 60
    while call not in server.calls:
        assert time.monotonic() < give_up
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("call", "reads"),
    [
        ("SandboxGetFromName", "find terminate"),
        ("SandboxTagsGet", "find machines"),
        ("SandboxListV2", "machines terminate"),
        ("SandboxWait", "find_by_id terminate"),
    ],
)
def test_a_read_that_fails_is_an_error_of_ours_and_never_an_absence(modal: Modal, call: str, reads: str) -> None:
    machine = modal.create()
    modal.server.faults.unavailable(call, times=None)
    asked = {
        "find": lambda: modal.another().find(modal.name),
        "find_by_id": lambda: modal.another().find(modal.name, machine.id),
        "machines": lambda: modal.another().machines(),
        "terminate": lambda: modal.another().terminate(modal.name),
    }
    for read in reads.split():
        with pytest.raises(ProviderError):
            asked[read]()
