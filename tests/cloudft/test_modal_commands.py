"""`offers`, `submit`, `reap` and `status` with Modal, and with all providers at once: the real wire for both."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from modal_proto import api_pb2

from cloudft.cli import run
from cloudft.commands.common import PROVIDERS, RENTERS
from infra.accounts import ACCOUNTS
from infra.gpus import parse_wish
from infra.provider import PROVIDERS as REGISTRY
from infra.provider import Order, machine_name, open_provider
from local.config import RENTED, ProviderName
from local.project import Project
from tests.cloudft.test_rented_commands import DIGEST, call, configure, project, server
from tests.doubles.modal import ModalDouble
from tests.doubles.runpod import RunpodDouble

__all__ = ["project", "server"]

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def modal(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModalDouble]:
    with ModalDouble() as double:
        for name, value in double.env().items():
            monkeypatch.setenv(name, value)
        yield double
        assert double.misuses == []


def test_the_words_of_the_command_line_are_the_registrys() -> None:
    assert set(PROVIDERS) == set(REGISTRY) == set(ProviderName.__args__)  # type: ignore[attr-defined]
    assert {*RENTERS, "auto"} == RENTED
    assert set(RENTERS) == set(ACCOUNTS)


def test_modals_offers_are_priced_whole(
    project: Project, modal: ModalDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    data = call(project, capsys, "offers", "--provider", "modal", "--gpu", "A10G", "--budget", "5")
    (offer,) = data["offers"]
    assert offer["name"] == "A10G"
    assert offer["rate_usd"] == pytest.approx(1.10 + 2 * 0.1419 + 16 * 0.024)
    assert 0 < offer["worst_case_usd"] <= 5
    # Modal itself ends a Sandbox after a day, however long the run may take and whatever is left of the budget.
    configure(project, max_hours=72)
    rich = call(project, capsys, "offers", "--provider", "modal", "--gpu", "T4", "--budget", "500")["offers"][0]
    assert rich["latest_end"] <= time.time() + 86400 + 60


def test_an_unknown_price_needs_a_highest_rate(
    project: Project, modal: ModalDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    del modal.service.rates["gpu_hour_cost_a10g"]
    wanted = ("--provider", "modal", "--gpu", "A10G", "--budget", "5")
    for command in ("offers", "submit"):
        said = call(project, capsys, command, *wanted, code=8)
        assert "--max-rate" in said["hint"]
        assert "nothing was rented" in said["effect"]
    (offer,) = call(project, capsys, "offers", *wanted, "--max-rate", "2.5")["offers"]
    assert offer["rate_usd"] == 2.5
    configure(project, machine={"max_rate": 2.25})
    assert call(project, capsys, "offers", *wanted)["offers"][0]["rate_usd"] == 2.25
    assert modal.live() == []


def test_a_highest_rate_leaves_out_what_is_dearer(
    project: Project, modal: ModalDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    data = call(project, capsys, "offers", "--provider", "modal", "--gpu", "24GB", "--max-rate", "1.5")
    assert [offer["name"] for offer in data["offers"]] == ["L4"]


def test_auto_shows_all_providers_in_one_table_by_price(
    project: Project, modal: ModalDouble, server: RunpodDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(project, provider="auto")
    data = call(project, capsys, "offers", "--gpu", "L4", "--budget", "5")
    assert {offer["provider"] for offer in data["offers"]} == {"runpod", "modal"}
    rates = [offer["rate_usd"] for offer in data["offers"]]
    assert rates == sorted(rates)
    assert run(["offers", "--gpu", "L4", "--budget", "5", "-C", str(project.root)]) == 0
    lines = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert lines[:3] == ["provider", "runpod", "modal"]
    # The card that one provider has is taken there, and not its nearest at the other.
    data = call(project, capsys, "offers", "--gpu", "A10G", "--budget", "5")
    assert [(o["provider"], o["name"]) for o in data["offers"]] == [("modal", "A10G")]


def test_auto_goes_on_without_a_provider_that_does_not_answer_and_says_so(
    project: Project,
    modal: ModalDouble,
    server: RunpodDouble,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configure(project, provider="auto")
    monkeypatch.setenv("MODAL_TOKEN_SECRET", "as-wrong")
    data = call(project, capsys, "offers", "--gpu", "L4")
    assert {offer["provider"] for offer in data["offers"]} == {"runpod"}
    assert data["unasked"][0]["provider"] == "modal"
    assert "as-wrong" not in json.dumps(data)
    monkeypatch.setenv("RUNPOD_API_KEY", "wrong")
    call(project, capsys, "offers", "--gpu", "L4", code=8)
    for name in ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET", "RUNPOD_API_KEY"):
        monkeypatch.delenv(name)
    said = call(project, capsys, "offers", "--gpu", "L4", code=8)
    assert "none is set up" in said["what"]


def test_auto_rents_the_cheapest_and_the_next_one_when_it_has_none(
    project: Project, modal: ModalDouble, server: RunpodDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(project, provider="auto", gpu="L4", budget=5)
    server.faults.no_capacity()
    call(project, capsys, "submit", "--detach")
    (box,) = modal.live("cloudft-")
    assert server.live_pods("cloudft-") == []
    status = call(project, capsys, "status")
    assert status["billed_now"] is True
    assert [a["offer"]["provider"] for a in status["attempts"]] == ["runpod", "modal"]
    ended = call(project, capsys, "cancel", "--now")
    assert ended["billed_now"] is False
    assert modal.live() == []
    assert ended["attempts"][-1]["receipt"]["machine_id"] == f"double/{box.id}"


def test_auto_refuses_what_only_one_provider_can_know(
    project: Project, modal: ModalDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(project, provider="auto", budget=5, machine={"registry": "my-login"})
    assert "machine.registry" in call(project, capsys, "submit", code=3)["what"]


def test_reap_ends_the_overdue_at_both_in_one_table(
    project: Project, modal: ModalDouble, server: RunpodDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    now = time.time()
    for attempt, name in enumerate(RENTERS, 1):
        provider = open_provider(name, project.state)
        offer = next(o for o in provider.offers([parse_wish("L4")]) if o.name == "L4")
        for deadline in (now + 3600, now - 60):
            name = machine_name("20261120-101010-ab12", attempt, deadline)
            provider.create(Order(name, "https://store.test/t", now + 3600, DIGEST, offer))
    assert run(["reap", "--dry-run", "-C", str(project.root)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in table if line.startswith("would")] == [["would", "end"]] * 2
    assert {"runpod", "modal"} <= {word for line in table for word in line.split()}
    data = call(project, capsys, "reap")
    assert data["clean"] is True
    done = {(m["provider"], m["overdue"], m["action"]) for m in data["machines"]}
    assert done == {(p, True, "ended") for p in RENTERS} | {(p, False, "left") for p in RENTERS}
    assert len(modal.live()) == len(server.live_pods()) == 1
    call(project, capsys, "reap", "--all")
    assert modal.live() == []
    assert server.live_pods() == []


def test_half_an_account_is_not_taken_for_one_without_machines(
    project: Project,
    modal: ModalDouble,
    server: RunpodDouble,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MODAL_TOKEN_SECRET")
    said = call(project, capsys, "reap", code=8)
    assert "MODAL_TOKEN_SECRET is not set" in said["what"]
    configure(project, provider="auto")
    data = call(project, capsys, "offers", "--gpu", "L4")
    assert [u["provider"] for u in data["unasked"]] == ["modal"]
    monkeypatch.delenv("MODAL_TOKEN_ID")
    assert call(project, capsys, "reap")["machines"] == []
    monkeypatch.delenv("RUNPOD_API_KEY")
    said = call(project, capsys, "reap", code=3)
    assert "RUNPOD_API_KEY, or MODAL_TOKEN_ID and MODAL_TOKEN_SECRET" in said["hint"]


def test_reap_says_whom_it_could_not_ask_and_ends_what_the_other_has(
    project: Project,
    modal: ModalDouble,
    server: RunpodDouble,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    past = time.time() - 60
    for attempt, name in enumerate(RENTERS, 1):
        provider = open_provider(name, project.state)
        offer = next(o for o in provider.offers([parse_wish("L4")]) if o.name == "L4")
        overdue = machine_name("20261120-101010-ab12", attempt, past)
        provider.create(Order(overdue, "https://store.test/t", past + 3600, DIGEST, offer))
    with monkeypatch.context() as wrong:
        wrong.setenv("MODAL_SERVER_URL", "http://127.0.0.1:9")
        assert run(["reap", "-C", str(project.root)]) == 8
        said = capsys.readouterr()
        assert said.out.split()[:2] == ["ended", "runpod"]
        assert "Modal cannot be reached (check the network and MODAL_SERVER_URL" in said.err
        assert "may go on, and be billed" in said.err
    assert server.live_pods() == []
    assert len(modal.live()) == 1
    monkeypatch.setenv("RUNPOD_API_KEY", "rpa_wrong")
    said = call(project, capsys, "reap", code=8)
    assert "HTTP 401" in said["what"]
    assert modal.live() == []


def test_the_price_says_what_it_is_made_of_and_when_it_is_not_told(
    project: Project, modal: ModalDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ["offers", "--provider", "modal", "--gpu", "A10G", "--budget", "5", "-C", str(project.root)]
    assert run([*wanted]) == 0
    text = capsys.readouterr().out
    assert "price: modal A10G: $1.10 GPU, $0.28 for 2 cores, $0.38 for 16 GiB of memory" in text
    configure(project, machine={"data_centers": ["us-west"]})
    assert run([*wanted]) == 0
    assert "all times 1.75 for the region" in capsys.readouterr().out
    del modal.service.rates["gpu_hour_cost_a10g"]
    assert run([*wanted, "--max-rate", "2.5"]) == 0
    told = capsys.readouterr()
    assert "the cap holds only if the real price is no more" in told.out
    assert "--max-rate 2.5" in told.err


@pytest.mark.parametrize("status", ["SUCCESS", "INIT_FAILURE", "INTERNAL_FAILURE", "IDLE_TIMEOUT"])
def test_a_return_code_of_zero_without_the_result_is_no_success(
    project: Project, modal: ModalDouble, capsys: pytest.CaptureFixture[str], status: str
) -> None:
    """To the package all of these look like a command that ended well."""
    configure(project, provider="modal", gpu="L4", budget=5)
    call(project, capsys, "submit", "--detach")
    (box,) = modal.live()
    modal.service.end(box.id, api_pb2.GenericResult.GenericStatus.Value(f"GENERIC_STATUS_{status}"))
    assert box.result.exitcode == 0
    view = call(project, capsys, "status")
    assert (view["status"], view["billed_now"]) == ("running", False)
    assert "the machine is gone; the next one is rented by:  cloudft watch" in view["reason"]
    assert call(project, capsys, "cancel", "--now")["status"] == "stopped"
    assert "cloudft pull" not in str(call(project, capsys, "status")["survives"])
    assert modal.live() == []


def test_ctrl_c_while_no_machine_is_free_takes_the_order_back_and_ends_the_run(
    project: Project, modal: ModalDouble
) -> None:
    """Shown while it waits; afterwards nothing is billed, and a later look rents nothing in its place."""
    configure(project, provider="modal", gpu="L4", budget=5)
    modal.faults.no_capacity()
    env = os.environ | {"PYTHONPATH": str(REPO)}
    options = {"cwd": project.root, "env": env, "text": True}
    process = subprocess.Popen([sys.executable, "-m", "cloudft", "submit"], stderr=subprocess.PIPE, **options)  # type: ignore[call-overload]
    give_up = time.monotonic() + 90
    while "SandboxGetFromName" not in modal.calls:
        assert time.monotonic() < give_up
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "nothing is billed" in said
    assert "Modal looks for a machine: 0 s of 300 s at most" in said
    assert modal.live() == []
    modal.faults.clear()
    argv = [sys.executable, "-m", "cloudft", "status", "--json"]
    status = json.loads(subprocess.run(argv, capture_output=True, **options).stdout)["data"]  # type: ignore[call-overload]
    assert (status["status"], status["billed_now"]) == ("failed", False)
    # A machine that came in the last moment may have been there for seconds.
    assert modal.ledger.total("cloudft-") <= status["spent_usd"] < 0.02
    assert modal.live() == []
