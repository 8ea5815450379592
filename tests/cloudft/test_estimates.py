"""What is said of memory, time and labels before money moves, and of loss and GPU while it does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloudft.cli import run
from cloudft.commands.common import gpu_note, live_note
from cloudft.commands.offers_command import _submit
from cloudft.commands.status_command import describe
from local.config import Wanted
from local.project import Project
from local.runs.watch import View
from tests.cloudft.test_rented_commands import call, configure, project, server
from tests.doubles.runpod import RunpodDouble

__all__ = ["project", "server"]  # fixtures

# A model of 70 billion parameters, of which an adapter of rank 256 alone takes 53 GB with its states.
LARGE = {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


def claim_to_be_large(project: Project) -> None:
    path = project.root / "base" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | LARGE))
    config = yaml.safe_load(project.config_file.read_text())
    configure(project, train=config["train"] | {"lora_r": 256})


def test_a_training_that_fits_no_card_is_refused_with_what_would_fit(
    project: Project, server: RunpodDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    claim_to_be_large(project)
    said = call(project, capsys, "submit", "--gpu", "L4", "--budget", "5", code=3)
    assert said["effect"] == "nothing was rented"
    assert "L4 has 24 GB; what would fit:" in said["what"]
    assert "--gpu " in said["what"]
    assert not project.runs.exists()
    assert server.calls_of("POST /v2/pods") == []


def test_cards_that_are_too_small_are_passed_over(
    project: Project, server: RunpodDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    claim_to_be_large(project)
    rows = call(project, capsys, "offers", "--gpu", "24GB", "--budget", "20")["offers"]
    small = {row["name"] for row in rows if "the training needs" in row["refusal"]}
    assert {row["memory_gb"] for row in rows if row["name"] in small} == {24, 48}
    assert all(row["memory_bytes"]["least"] > 50e9 for row in rows)
    assert run(["offers", "-C", str(project.root), "--gpu", "24GB", "--budget", "20"]) == 0
    table = capsys.readouterr().out
    assert "too small" in table
    assert "memory on each card: " in table
    assert "trained weights and their states" in table


def test_submit_tells_labels_and_memory_to_programs_too(
    project: Project, server: RunpodDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    told = call(project, capsys, "submit", "--gpu", "L4", "--budget", "2", "--detach")
    (stage,) = told["audit"]["stages"]
    assert stage["ended"] == stage["examples"] > 0
    assert 0 < stage["trained_share"] < 1
    assert told["memory_bytes"]["least"] < told["memory_bytes"]["most"]
    kept = json.loads((project.runs / told["run_id"] / "audit.json").read_text())
    assert (kept["where"], kept["stages"]) == ("home", [{**stage}])
    call(project, capsys, "cancel", "--now")


def view(**changes: Any) -> View:
    plain: dict[str, Any] = {
        "run_id": "20261120-101010-ab12",
        "status": "running",
        "reason": "",
        "provider": "runpod",
        "phase": "train",
        "progress": {"step": 40, "max_steps": 100, "loss": 0.5, "tokens": 40_000, "elapsed_s": 20.0, "eta_s": 30.0},
        "losses": (2.0, 1.0, 0.5),
        "gpu": {"name": "NVIDIA L4", "cards": 1, "utilisation": 96.4, "memory_bytes": 9e9, "memory_total_bytes": 24e9},
        "evaluation": {},
        "heartbeat_age": 1.0,
        "deadline": 2e9,
        "budget_usd": 2.0,
        "spent_usd": 0.12,
        "worst_case_usd": 2.0,
        "billed_now": True,
        "attempts": (),
        "refusals": (),
        "survives": "a stop saves the adapter",
        "checkpoint_step": 0,
        "checkpoint_age": None,
        "pulled": False,
        "quantized": False,
        "evaluated": False,
        "build": None,
    }
    return View(**{**plain, **changes})


def test_status_shows_speed_loss_and_gpu() -> None:
    text = describe(view())
    assert "step 40/100, loss 0.5000, 2,000 tokens/s, 30 s left" in text
    assert "loss        █▃▁  2 → 0.5" in text
    assert "GPU         NVIDIA L4, 96 % busy, 9.0 of 24.0 GB" in text
    assert "spent at most $0.12" in text


def test_watching_shows_loss_money_and_gpu_in_one_line() -> None:
    told = ["step 40/100", "loss 0.5000", "█▃▁", "2,000 tokens/s", "30 s left", "$0.12 of $2.00", "GPU 96 %"]
    assert live_note(view()).split("  ") == told
    # What matters least goes first where a line is short.
    assert live_note(view(), 75).split("  ") == [*told[:3], *told[4:]]
    assert live_note(view(), 52).split("  ") == [*told[:2], *told[4:6]]
    assert live_note(view(), 5).split("  ") == told[:2]
    here = live_note(view(budget_usd=None, gpu={}))
    assert "$" not in here
    assert "GPU" not in here


def test_what_a_machine_does_not_tell_is_not_shown() -> None:
    bare = describe(view(losses=(), gpu={}))
    assert "GPU" not in bare
    assert "  loss  " not in bare
    several = replace(view(), gpu={**view().gpu, "cards": 2, "memory_total_bytes": None})
    assert gpu_note(several) == "2 x NVIDIA L4, 96 % busy"
    assert gpu_note(view(status="completed")) == ""


def test_a_terminal_without_unicode_gets_no_bars(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "out").open("w", encoding="ascii") as ascii_only:
        monkeypatch.setattr("sys.stdout", ascii_only)
        text = describe(view())
        ascii_only.write(text)
    assert "█" not in text


def test_the_proposed_submit_has_the_very_budget_that_was_asked_about() -> None:
    words = _submit(Wanted(max_rate=1.2345678, provider="runpod"), 1234567.25)
    assert " ".join(words) == "cloudft submit --budget 1234567.25 --provider runpod --max-rate 1.2345678"
