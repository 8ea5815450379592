"""The whole path, for real: the user's own commands on the demo's project, and the same run in containers.

A tiny base is made, trained, merged, quantised, served and measured. Thresholds are asserted, never hashes.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from local.demo.demo_project import write_demo_project
from local.files import sha256_file
from local.progress import silent
from local.project import Project
from local.scaffold import write_serving_files
from tests.local.evaluation.recompute import assert_recomputed
from tests.local.report import recount
from tests.services.compose import Compose
from tests.services.host import free_port
from tests.services.s3 import S3Server

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = write_demo_project(tmp_path / "demo", silent)
    write_serving_files(project.root)
    return project


def cloudft(project: Project, *args: str, code: int = 0) -> dict[str, Any]:
    """Run a command as the user would, in the project's folder, and return what ``--json`` printed."""
    done = subprocess.run(
        [sys.executable, "-m", "cloudft", *args, "--json"],
        cwd=project.root,
        env=os.environ | {"PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == code, f"cloudft {args}: {done.stdout}\n{done.stderr}"
    said: dict[str, Any] = json.loads((done.stdout if code == 0 else done.stderr).splitlines()[-1])
    return said["data"] if code == 0 else said


def wait(what: str, condition: Callable[[], bool], seconds: float = 120) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, f"{what} never came"
        time.sleep(0.2)


def assert_better(project: Project, found: dict[str, Any]) -> None:
    """The demo's promise, and that the written record is what was printed."""
    assert found["n"] >= 100
    assert found["before"]["schema_valid"] <= 0.05
    assert found["before"]["exact_match"] <= 0.05
    assert found["after"]["schema_valid"] >= 0.9
    assert found["after"]["exact_match"] >= 0.9
    run = project.pick_run(None)
    written = json.loads(run.evaluation.read_text())
    assert (written["n"], written["before"], written["after"]) == (found["n"], found["before"], found["after"])
    schema = json.loads(run.task.read_text())["json_schema"]
    assert_recomputed(run)
    assert found["verdict"]["sentence"].startswith("better, ")
    # Every number of the report that came with it, counted again from the raw answers.
    recount.hold_against(run.root, (run.report / "report.md").read_text(), schema)
    assert "<h1>Better, " in (run.report / "report.html").read_text()


def assert_climbed(project: Project, ladder: dict[str, Any]) -> None:
    """The fine-tune is what made the difference, and merging and quantising lost none of it. (Its numbers are recounted
    with all others.) What nobody serves is not said to have been measured."""
    values = {rung["name"]: rung["measurement"]["metrics"]["exact_match"]["value"] for rung in ladder["rungs"]}
    assert list(values) == ["base", "few-shot", "adapter", "merge", "quantised"]
    assert max(values["base"], values["few-shot"]) <= 0.05
    assert min(values["adapter"], values["merge"], values["quantised"]) >= 0.9
    outcomes = {step["cause"]: step["comparison"]["outcome"] for step in ladder["steps"]}
    assert outcomes["training"] == outcomes["training against examples"] == "better"
    assert {"merging", "quantisation"} <= outcomes.keys()
    assert "serving" not in outcomes
    assert ladder["missing"]["served"].startswith("nothing is served now")
    assert ladder["worth_it"] == "yes"
    assert not (project.models / "ladder").exists()
    page = (project.pick_run(None).report / "report.html").read_text()
    assert "From the base to the served model, step by step" in page


def assert_repeatable(project: Project) -> None:
    """The run again, from its lock: through to the same bytes and the same numbers."""
    old = project.pick_run(None)
    # The user's own data file has moved on since; the run's own copy is what counts.
    data = project.root / "data" / "tickets.jsonl"
    data.write_text("".join(data.read_text().splitlines(keepends=True)[:200]))
    said = cloudft(project, "reproduce", old.run_id)
    assert (said["of"], said["differences"]) == (old.run_id, [])
    new = project.run(said["run_id"])
    assert new.run_id > old.run_id
    assert "both adapters have the same bytes" in said["diff"]["notes"]
    # The served file holds its run's name; all else is the same, every number of the evaluation included.
    assert [said["diff"][section] for section in ("data", "config", "code")] == [{}, {}, {}]
    assert set(said["diff"]["numbers"]) <= {"Q4_K_M file sha256"}, said["diff"]
    for name in ("train.jsonl", "holdout.jsonl", "task.json", "adapter/adapter_model.safetensors"):
        assert sha256_file(new.root / name) == sha256_file(old.root / name), name
    lock = json.loads(new.run_lock.read_text())
    assert lock["spec"]["run_id"] == lock["run_id"] == new.run_id
    assert lock["trained"]["files"]["adapter_model.safetensors"] == sha256_file(
        new.adapter / "adapter_model.safetensors"
    )
    assert {"Python", "torch", "transformers", "trl", "peft"} <= set(lock["trained"]["versions"])
    [made] = lock["made"]
    assert made["gguf_sha256"] == sha256_file(project.models / made["version"] / "model.gguf")
    # A repetition is to compare with; what is served is still the old run's.
    assert (project.models / "current").resolve().name.startswith(old.run_id)
    assert "all 6 metrics are the same, before and after" in said["diff"]["notes"]


@pytest.mark.train
@pytest.mark.timeout(1200)  # two runs, from the training to the report, and a ladder
def test_a_closed_terminal_loses_nothing(project: Project) -> None:
    """Submit, kill the terminal during training, look, pull, quantise, evaluate."""
    terminal = subprocess.Popen(
        [sys.executable, "-m", "cloudft", "submit"],
        cwd=project.root,
        env=os.environ | {"PYTHONPATH": str(REPO)},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait("the run", lambda: bool(project.run_ids()))
    wait("the first step", lambda: bool(cloudft(project, "status")["progress"].get("step")))
    os.killpg(terminal.pid, signal.SIGKILL)
    terminal.wait()

    status = cloudft(project, "status")
    assert status["status"] == "running"
    assert status["billed_now"] is False
    # The steps done so far, or the best of them, once they were measured.
    assert re.match(r"a stop saves .*so far", status["survives"]), status["survives"]
    second = cloudft(project, "submit", code=6)
    assert "is still running" in second["what"]
    assert "goes on" in second["effect"]
    assert "still running" in cloudft(project, "pull", "--no-wait", code=6)["what"]

    pulled = cloudft(project, "pull")
    assert pulled["complete"]
    assert "adapter_model.safetensors" in pulled["files"]
    ended = cloudft(project, "status")
    assert (ended["status"], ended["progress"]["step"]) == ("completed", ended["progress"]["max_steps"])
    quantized = cloudft(project, "quantize")
    assert (project.models / "current").resolve().name == quantized["version"]
    found = cloudft(project, "eval", "--ladder")
    assert_better(project, found)
    assert_climbed(project, found["ladder"])
    assert_repeatable(project)


@pytest.mark.train
def test_cancel_saves_what_is_trained(project: Project) -> None:
    config = yaml.safe_load(project.config_file.read_text())
    config["train"]["max_steps"] = 5000
    project.config_file.write_text(yaml.safe_dump(config))
    cloudft(project, "submit", "--detach")
    wait("the first step", lambda: bool(cloudft(project, "status")["progress"].get("step")))
    ended = cloudft(project, "cancel")
    assert (ended["status"], ended["reason"]) == ("stopped", "cancelled by the user")
    assert cloudft(project, "cancel")["status"] == "stopped"
    pulled = cloudft(project, "pull")
    assert pulled["complete"] is False
    assert "adapter_model.safetensors" in pulled["files"]


@pytest.mark.train
def test_in_containers_with_a_bucket(
    project: Project,
    train_image: str,
    pip_args: dict[str, str],
    s3_server: S3Server,
    compose: Compose,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The training image as the machine, a real S3 server between, and `docker compose up -d --wait serve`."""
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    config = yaml.safe_load(project.config_file.read_text())
    config |= {
        "provider": "docker",
        "image": train_image,
        "store": {"url": f"s3://{s3_server.create_bucket()}/cloudft", "endpoint_url": s3_server.endpoint},
    }
    project.config_file.write_text(yaml.safe_dump(config))
    ended = cloudft(project, "submit")
    assert ended["status"] == "completed"
    receipt = ended["attempts"][0]["receipt"]
    assert sum(receipt["phases"].values()) == pytest.approx(receipt["seconds"])
    # Download, imports and first measurement lie before the first step, upload and teardown behind the last.
    assert receipt["to_first_step"] >= receipt["phases"]["download"]
    assert receipt["after_last_step"] >= receipt["phases"]["upload"]
    assert receipt["to_first_step"] + receipt["after_last_step"] < receipt["seconds"]
    cloudft(project, "pull")
    cloudft(project, "quantize")
    assert_better(project, cloudft(project, "eval"))
    port = free_port()
    env = {f"CLOUDFT_{name}": value for name, value in pip_args.items()} | {"CLOUDFT_PORT": str(port)}
    with compose.project(project.root, env=env):
        compose.run(project.root, "up", "-d", "--wait", "serve", env=env)
        key = (project.root / ".env").read_text().strip().removeprefix("CLOUDFT_API_KEY=")
        row = json.loads(project.pick_run(None).holdout.read_text().splitlines()[0])["messages"]
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        body = {"messages": row[:-1], "temperature": 0, "max_tokens": 100}
        refused = httpx.post(url, json=body, headers={"Authorization": "Bearer wrong"}, timeout=30)
        assert refused.status_code == 401
        answer = httpx.post(url, json=body, headers={"Authorization": f"Bearer {key}"}, timeout=60)
        assert json.loads(answer.json()["choices"][0]["message"]["content"]) == json.loads(row[-1]["content"])
