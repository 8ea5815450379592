"""Every method and every sequence of stages, by the user's own commands on the demo's tiny base.

Three runs share the work: each method that `test_whole_path` does not have, and each sequence, once. Submitted,
trained, pulled, quantised, and measured before and after through the served file.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from local.demo.demo_project import write_demo_project
from local.demo.demo_tickets import generic_chats, tickets
from local.progress import silent
from local.project import Project
from tests.test_whole_path import cloudft

EVALUATED = 24
# The demo's own settings, for fewer steps. The learning rates are those of a model of a thousandth of the usual size.
SFT: dict[str, Any] = {"kind": "sft", "max_steps": 40, "batch_size": 16, "gradient_accumulation": 1, "max_length": 256}
CPT: dict[str, Any] = {"kind": "cpt", "data": "data/texts.jsonl", "max_steps": 8, "max_length": 256, "batch_size": 2}
DPO: dict[str, Any] = {"kind": "dpo", "data": "data/pairs.jsonl", "max_steps": 5, "batch_size": 8, "max_length": 256}


def texts() -> list[dict[str, str]]:
    return [{"text": " ".join(m["content"] for m in chat[1:])} for chat in generic_chats(120, 5)]


def pairs() -> list[dict[str, Any]]:
    """The right answer, and one with another priority."""
    rng, rows = random.Random(3), []
    for ticket in tickets(48, 103):
        other = rng.choice([name for name in ("high", "normal", "low") if name != ticket.priority])
        wrong = json.loads(ticket.answer()) | {"priority": other}
        rows.append({"prompt": ticket.messages()[:-1], "chosen": ticket.answer(), "rejected": json.dumps(wrong)})
    return rows


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """One for all runs: they share the quantised base."""
    project = write_demo_project(tmp_path_factory.mktemp("methods") / "demo", silent)
    for name, rows in (("texts", texts()), ("pairs", pairs())):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (project.root / "data" / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return project


def configure(project: Project, **train: Any) -> None:
    config = yaml.safe_load(project.config_file.read_text())
    config["train"] = {"dtype": "float32", **train}
    project.config_file.write_text(yaml.safe_dump(config))


def run(project: Project, **train: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `pull` and `eval` say of a run with this `train` section."""
    configure(project, **train)
    assert cloudft(project, "submit")["status"] == "completed"
    pulled = cloudft(project, "pull")
    cloudft(project, "quantize")
    return pulled, cloudft(project, "eval", "--limit", str(EVALUATED))


def assert_learned(project: Project, pulled: dict[str, Any], found: dict[str, Any], stages: list[str]) -> None:
    """What was trained is in the file that is served, and every stage was measured."""
    assert found["before"]["exact_match"] <= 0.05
    assert found["after"]["exact_match"] >= 0.8
    assert [stage["name"] for stage in pulled["stages"]] == stages
    for stage in pulled["stages"]:
        assert min(stage["before"]["rows"], stage["after"]["rows"]) >= 16
    sft = next(stage for stage in pulled["stages"] if stage["kind"] == "sft")
    assert (sft["before"]["exact_match"], sft["kept"]) == (0.0, True)
    assert sft["after"]["exact_match"] >= 0.8
    report = (project.pick_run(None).report / "results_before_after.md").read_text()
    for stage in pulled["stages"]:
        row = next(line for line in report.splitlines() if line.startswith(f"| {stage['name']} | {sft['method']} |"))
        assert "→" in row


def manifest(project: Project) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((project.models / "current" / "manifest.json").read_text())
    return value


@pytest.mark.train
def test_qlora_sft_then_dpo(project: Project) -> None:
    stages = [SFT | {"learning_rate": 5e-3}, DPO | {"learning_rate": 1e-5}]
    pulled, found = run(project, method="qlora", lora_r=16, stages=stages)
    assert_learned(project, pulled, found, ["1-sft", "2-dpo"])
    assert manifest(project)["merge"] == "tensor by tensor"


@pytest.mark.train
def test_dora_cpt_then_sft(project: Project) -> None:
    stages = [CPT | {"learning_rate": 1e-3}, SFT | {"learning_rate": 5e-3}]
    pulled, found = run(project, method="dora", lora_r=16, stages=stages)
    assert_learned(project, pulled, found, ["1-cpt", "2-sft"])
    assert "DoRA" in manifest(project)["merge"]


@pytest.mark.train
def test_full(project: Project) -> None:
    own = {name: value for name, value in SFT.items() if name != "kind"}
    pulled, found = run(project, method="full", learning_rate=2e-3, **own)
    assert_learned(project, pulled, found, ["1-sft"])
    assert "model.safetensors" in pulled["files"]
    assert Path(pulled["adapter"], "model.safetensors").stat().st_size < 3_000_000  # 1.4 million weights, 16 bits each
    assert manifest(project)["merge"] == ""
    refused = cloudft(project, "quantize", "--adapter-only", code=2)
    assert "has no adapter" in refused["what"]
