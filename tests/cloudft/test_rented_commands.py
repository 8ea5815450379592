"""`offers`, `submit`, `reap` and `status` against RunPod's double: money before, during and after."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloudft.cli import run
from infra.offers import Offer
from infra.provider import Order, machine_name
from infra.provider_runpod import RunpodProvider
from local.demo.demo_project import write_demo_project
from local.progress import silent
from local.project import Project
from local.runs.session import open_session
from tests.doubles.runpod import BootTimes, RunpodDouble
from tests.services.s3 import S3Server

REPO = Path(__file__).resolve().parents[2]
DIGEST = "registry.test/train@sha256:" + "0" * 64


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RunpodDouble]:
    with RunpodDouble(boot=BootTimes(0.1, 0.1, 0.1)) as double:
        for gpu in double.catalog.gpus.values():
            gpu.cuda_versions = ("12.8", "13.0")
        monkeypatch.setenv("RUNPOD_API_BASE_URL", double.url)
        monkeypatch.setenv("RUNPOD_API_KEY", double.api_key)
        yield double
        assert double.defects == []


@pytest.fixture
def project(tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Project:
    project = write_demo_project(tmp_path / "demo", silent)
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    configure(
        project,
        provider="runpod",
        image=DIGEST,
        max_hours=24,
        store={"url": f"s3://{s3_server.create_bucket()}/x", "endpoint_url": s3_server.endpoint},
    )
    return project


def configure(project: Project, **changes: Any) -> None:
    config = yaml.safe_load(project.config_file.read_text()) | changes
    project.config_file.write_text(yaml.safe_dump(config))


def call(project: Project, capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    returned = run([*args, "-C", str(project.root), "--json"])
    said = capsys.readouterr()
    assert returned == code, said.out + said.err
    parsed: dict[str, Any] = json.loads((said.out if code == 0 else said.err).splitlines()[-1])
    return parsed["data"] if code == 0 else parsed


def order(name: str, provider: RunpodProvider) -> Order:
    from infra.gpus import parse_wish

    offer: Offer = next(o for o in provider.offers([parse_wish("L4")]) if o.name == "L4")
    return Order(name=name, ticket_url="https://store.test/t", deadline=time.time(), image=DIGEST, offer=offer)


def test_the_table_is_openly_about_what_is_not_there(
    project: Project, server: RunpodDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["offers", "-C", str(project.root), "--gpu", "A10G", "--budget", "5"]) == 0
    text = capsys.readouterr().out
    assert "in place of A10G, which is not offered" in text
    assert "rule: " in text
    assert "0.0014B parameters" in text
    rows = call(project, capsys, "offers", "--gpu", "H100", "--gpu", "24GB", "--budget", "0.5")["offers"]
    assert [rows[0]["name"], rows[0]["refusal"][:5]] == ["H100", "H100:"]
    assert "would do" in rows[0]["refusal"]
    cards = [r for r in rows if "24GB" in r["why"]]
    assert [r["rate_usd"] for r in cards] == sorted(r["rate_usd"] for r in cards)
    assert server.live_pods() == []


def test_an_unknown_gpu_is_refused_with_the_known_ones(
    project: Project, server: RunpodDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    said = call(project, capsys, "submit", "--gpu", "RTX-9999", "--budget", "5", code=2)
    assert "RTX-4090" in said["hint"]
    assert not project.runs.exists()


def test_a_budget_that_is_too_small_says_what_would_do(
    project: Project, server: RunpodDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    said = call(project, capsys, "submit", "--gpu", "H100", "--budget", "0.5", code=9)
    assert "less than a useful run" in said["what"]
    assert "would do" in said["what"]
    assert said["effect"] == "nothing was rented"
    assert not project.runs.exists()
    assert server.calls_of("POST /v2/pods") == []


def test_no_capacity_anywhere_shows_each_refusal_and_rents_nothing(
    project: Project, server: RunpodDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    server.faults.no_capacity()
    said = call(project, capsys, "submit", "--gpu", "L4", "--gpu", "RTX-4090", "--budget", "5", code=8)
    assert "no further machine could be had" in said["what"]
    view = call(project, capsys, "status")
    assert [r.partition(":")[0] for r in view["refusals"]] == ["L4", "RTX-4090"]
    assert (view["status"], view["billed_now"], view["spent_usd"]) == ("failed", False, 0)
    assert server.ledger.total("") == 0


def test_the_months_ceiling_holds_over_all_runs(
    project: Project, server: RunpodDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(project, monthly_budget=7.0)
    call(project, capsys, "submit", "--gpu", "L4", "--budget", "5", "--detach")
    assert call(project, capsys, "submit", "--gpu", "L4", "--budget", "1", code=6)["error"] == "Busy"
    call(project, capsys, "cancel", "--now")
    # What the cancelled run really cost counts, not its whole budget.
    call(project, capsys, "submit", "--gpu", "L4", "--budget", "7", code=9)
    call(project, capsys, "submit", "--gpu", "L4", "--budget", "6.9", "--detach")
    call(project, capsys, "cancel", "--now")
    assert server.live_pods() == []


def test_status_says_what_is_billed_and_a_receipt_says_what_it_was(
    project: Project, server: RunpodDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    call(project, capsys, "submit", "--gpu", "L4", "--budget", "2", "--detach")
    assert run(["status", "-C", str(project.root)]) == 0
    text = capsys.readouterr().out
    assert "worst case $2.00 of the budget of $2.00; you are being billed now" in text
    assert "nothing is trained yet" in text
    ended = call(project, capsys, "cancel", "--now")
    assert (ended["status"], ended["billed_now"]) == ("stopped", False)
    assert server.live_pods() == []
    billed = server.ledger.total("cloudft-")
    assert billed <= ended["attempts"][0]["receipt"]["usd"] + 1e-9
    assert run(["status", "-C", str(project.root)]) == 0
    text = capsys.readouterr().out
    assert "receipt     attempt 1, L4, machine " in text
    assert "you are not being billed" in text


@pytest.mark.parametrize(("key", "says"), [(None, "RUNPOD_API_KEY is not set"), ("rpa_wrong", "(HTTP 401)")])
def test_a_key_that_is_missing_or_wrong_at_a_first_submit_speaks_of_no_machine(
    project: Project,
    server: RunpodDouble,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    key: str | None,
    says: str,
) -> None:
    monkeypatch.delenv("RUNPOD_API_KEY") if key is None else monkeypatch.setenv("RUNPOD_API_KEY", key)
    said = call(project, capsys, "submit", "--gpu", "L4", "--budget", "2", code=8)
    assert says in said["what"]
    assert said["effect"] == "nothing was rented, and no run was made"
    said = call(project, capsys, "offers", "--gpu", "L4", code=8)
    assert said["effect"].startswith("nothing was rented")
    assert not project.run_ids()


def test_the_hint_for_a_budget_that_is_too_small_is_a_command_that_works(
    project: Project, server: RunpodDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    said = call(project, capsys, "submit", "--gpu", "H100", "--gpu", "L4", "--budget", "0.05", code=9)
    words = said["hint"].partition("cloudft ")[2].split()
    # The cheapest of what was asked for, whatever the order.
    assert words[words.index("--gpu") + 1] == "L4"
    call(project, capsys, *words, "--detach")
    assert len(server.live_pods()) == 1
    call(project, capsys, "cancel", "--now")


def test_a_detached_run_is_to_be_watched(
    project: Project, server: RunpodDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["submit", "--gpu", "L4", "--budget", "2", "--detach", "-C", str(project.root)]) == 0
    said = capsys.readouterr().err
    assert "cloudft watch" in said.partition("next:")[2]
    assert "cloudft pull" not in said
    call(project, capsys, "cancel", "--now")


def test_a_record_that_cannot_be_read_does_not_block_a_submit(
    project: Project, server: RunpodDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    call(project, capsys, "submit", "--gpu", "L4", "--budget", "2", "--detach")
    broken = project.pick_run(None)
    broken.record.write_text("{")
    assert run(["submit", "--gpu", "L4", "--budget", "2", "--detach", "-C", str(project.root)]) == 0
    said = capsys.readouterr().err
    assert f"{broken.record} cannot be read" in said
    assert "cloudft reap --dry-run" in said
    # It is found and ended without its record.
    assert len(server.live_pods()) == 2
    call(project, capsys, "reap", "--all")
    assert server.live_pods() == []
    # What it cost is not known, so a ceiling over the month cannot be kept.
    configure(project, monthly_budget=50)
    call(project, capsys, "cancel", "--now")
    said = call(project, capsys, "submit", "--gpu", "L4", "--budget", "2", code=11)
    assert "monthly_budget counts it" in said["effect"]
    assert server.live_pods() == []


def test_a_cancel_while_the_machine_says_nothing_mentions_how_not_to_wait(
    project: Project, server: RunpodDouble, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call(project, capsys, "submit", "--gpu", "L4", "--budget", "2", "--detach")
    monkeypatch.setattr("local.runs.watch.SAVE_TIME", 1.0)
    monkeypatch.setattr("local.runs.watch.POLL_RENTED", 0.2)
    assert run(["cancel", "-C", str(project.root)]) == 0
    said = capsys.readouterr().err
    assert "it has told nothing yet" in said
    assert "cloudft cancel --now" in said
    assert server.live_pods() == []


def test_ctrl_c_of_a_cancel_says_what_goes_on(project: Project, server: RunpodDouble) -> None:
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    options: Any = {"cwd": project.root, "env": environment, "text": True}
    argv = [sys.executable, "-m", "cloudft"]
    wanted = ["submit", "--gpu", "L4", "--budget", "2", "--detach"]
    subprocess.run([*argv, *wanted], check=True, capture_output=True, **options)
    process = subprocess.Popen([*argv, "cancel"], stderr=subprocess.PIPE, **options)
    assert process.stderr is not None
    first = process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "stop and save" in first
    assert "no longer waiting for the end of run" in said
    assert "a rented machine is billed until then" in said
    assert "cloudft cancel --now" in said
    ended = subprocess.run([*argv, "cancel", "--now", "--json"], check=True, capture_output=True, **options)
    assert json.loads(ended.stdout)["data"]["status"] == "stopped"
    assert server.live_pods() == []


def test_reap_needs_nothing_but_the_key(
    tmp_path: Path, server: RunpodDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    provider = RunpodProvider()
    overdue = machine_name("20261120-101010-aaaa", 1, time.time() - 60)
    in_time = machine_name("20261120-101010-bbbb", 2, time.time() + 3600)
    for name in (overdue, in_time):
        provider.create(order(name, provider))
    server.service.create(_stranger())
    project = Project(tmp_path)
    looked = call(project, capsys, "reap", "--dry-run")["machines"]
    assert {(m["name"], m["action"]) for m in looked} == {(overdue, "would end"), (in_time, "left")}
    assert len(server.live_pods()) == 3
    call(project, capsys, "reap")
    assert {p.name for p in server.live_pods()} == {in_time, "somebody-elses"}
    assert run(["reap", "--all", "-C", str(tmp_path)]) == 0
    assert "20261120-101010-bbbb attempt 2" in capsys.readouterr().out
    assert {p.name for p in server.live_pods()} == {"somebody-elses"}
    assert list(tmp_path.iterdir()) == []


def test_reap_says_what_it_could_not_end(
    tmp_path: Path, server: RunpodDouble, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project(tmp_path)
    monkeypatch.setenv("RUNPOD_API_KEY", "rpa_wrong_and_secret")
    said = call(project, capsys, "reap", code=8)
    assert "may go on, and be billed" in said["effect"]
    assert "rpa_wrong_and_secret" not in json.dumps(said)
    monkeypatch.delenv("RUNPOD_API_KEY")
    assert "RUNPOD_API_KEY" in call(project, capsys, "reap", code=3)["hint"]


def _stranger() -> Any:
    from tests.doubles.runpod import PodRequest

    return PodRequest(name="somebody-elses", image="i", gpu_id="NVIDIA L4")


def test_ctrl_c_while_watching_says_what_goes_on_and_what_it_costs(
    project: Project, server: RunpodDouble, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("local.runs.watch.time.sleep", interrupted)
    said = call(project, capsys, "submit", "--gpu", "L4", "--budget", "2", code=130)
    assert "you are being billed: $2.00 at most; the machine ends itself by 20" in said["effect"]
    assert "cloudft cancel" in said["hint"]
    monkeypatch.undo()
    for name, value in (("RUNPOD_API_BASE_URL", server.url), ("RUNPOD_API_KEY", server.api_key)):
        monkeypatch.setenv(name, value)
    assert len(server.live_pods()) == 1


def test_ctrl_c_while_renting_leaves_no_machine_and_rents_no_other(
    project: Project, server: RunpodDouble, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = RunpodProvider.create

    def interrupted(self: RunpodProvider, order: Order) -> Any:
        real(self, order)
        raise KeyboardInterrupt

    monkeypatch.setattr(RunpodProvider, "create", interrupted)
    said = call(project, capsys, "submit", "--gpu", "L4", "--budget", "2", code=130)
    assert "no other is rented" in said["effect"]
    assert server.live_pods() == []
    monkeypatch.setattr(RunpodProvider, "create", real)
    # A list may lag behind, so for two minutes it is not taken for certain; then the run has ended.
    call(project, capsys, "status")
    session = open_session(project, project.pick_run(None))
    assert session.record().stop_asked
    later = replace(session, clock=lambda: time.time() + 130)
    assert later.observe().status == "stopped"
    assert len(server.calls_of("createPod")) == 1
    assert server.live_pods() == []


def test_looking_rents_nothing_and_watch_does(
    project: Project, server: RunpodDouble, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call(project, capsys, "submit", "--gpu", "L4", "--budget", "2", "--detach")
    call(project, capsys, "reap", "--all")
    for _ in range(2):
        view = call(project, capsys, "status")
        assert (view["status"], view["billed_now"]) == ("running", False)
        assert "cloudft watch" in view["reason"]
    assert server.live_pods() == []

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("local.runs.watch.time.sleep", interrupted)
    call(project, capsys, "watch", code=130)
    assert len(server.live_pods()) == 1
    monkeypatch.undo()
    for name, value in (("RUNPOD_API_BASE_URL", server.url), ("RUNPOD_API_KEY", server.api_key)):
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("budget", ["inf", "nan", "0", "-1", "five"])
def test_a_budget_is_a_number_of_dollars(
    project: Project, server: RunpodDouble, capsys: pytest.CaptureFixture[str], budget: str
) -> None:
    call(project, capsys, "submit", "--gpu", "L4", "--budget", budget, code=2)
    assert server.calls_of("createPod") == []
