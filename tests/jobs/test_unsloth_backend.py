"""The seam to Unsloth: with a stand-in of its API everywhere, and with itself where it is installed.

The stand-in takes no argument that Unsloth does not know: where Unsloth is installed its signatures are compared. It
loads and adapts with the libraries themselves, so that what is around the seam is the real trainer.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs import unsloth_backend
from jobs.backends import UNSLOTH_METHODS
from jobs.gate import Meter
from jobs.outcome import TrainError
from jobs.spec import Gate, RunSpec
from local.demo.demo_tickets import SCHEMA, tickets
from tests.jobs.train_fixtures import REPO, demo_base, make_stages, metrics, outcome, run_trainer

__all__ = ["demo_base"]  # fixture

HERE = importlib.util.find_spec("unsloth") is not None
installed = pytest.mark.skipif(not HERE, reason="Unsloth is not installed: pip install 'cloudft[unsloth]'")
STAND_IN = REPO / "tests" / "doubles" / "unsloth"
DRAWN = [ticket.messages() for ticket in tickets(48, 3)]
GATE = Gate(kind="json", json_schema=SCHEMA, keys=("category", "product", "priority"), max_tokens=40, rows=8, share=1)
TEXTS = [{"text": " ".join(message["content"] for message in row)} for row in DRAWN[:12]]
CPT: dict[str, Any] = {"kind": "cpt", "rows": TEXTS, "max_steps": 2, "batch_size": 4}
SFT: dict[str, Any] = {"max_steps": 6, "batch_size": 4}


def make_work(work: Path, base: Path, **own: Any) -> Path:
    """A run of two stages for Unsloth."""
    stages = [{**stage, **own} for stage in (CPT, SFT)]
    make_stages(work, base, stages, gate=GATE, train=DRAWN[:40], validation=DRAWN[40:])
    spec = json.loads((work / "spec.json").read_text())
    (work / "spec.json").write_text(json.dumps(spec | {"backend": "unsloth"}))
    return work


def read_spec(work: Path) -> RunSpec:
    return RunSpec.model_validate_json((work / "spec.json").read_bytes())


def calls(work: Path) -> list[dict[str, Any]]:
    """What the stand-in was asked for."""
    return [json.loads(line) for line in (work / "calls.jsonl").read_text().splitlines()]


@pytest.fixture
def stand_in(tmp_path: Path) -> str:
    """Folders for PYTHONPATH with the stand-in, and with what packages of these names say of themselves."""
    for name in ("unsloth", "unsloth_zoo"):
        folder = tmp_path / "installed" / f"{name}-0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n")
    return f"{STAND_IN}:{tmp_path / 'installed'}:{REPO}"


def check_result(work: Path, base: Path) -> None:
    """What comes home is what comes home from trl."""
    found = {path.name for path in (work / "out" / "adapter").iterdir()}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    assert found == {"adapter_model.safetensors", "adapter_config.json", "chat_template.jinja"} | tokenizer
    config = json.loads((work / "out" / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["base_model_name_or_path"], config["revision"]) == ("LORA", "./base", None)
    assert len(config["target_modules"]) == len(set(config["target_modules"])) > 0
    assert all((work / "out" / "adapter" / name).read_bytes() == (base / name).read_bytes() for name in tokenizer)
    told = outcome(work)
    assert (told["status"], told["steps_done"], [stage["kind"] for stage in told["stages"]]) == (
        "completed",
        8,
        ["cpt", "sft"],
    )
    assert {"torch", "transformers", "trl", "peft", "unsloth", "unsloth_zoo"} < set(told["versions"])
    assert len([line for line in metrics(work) if "loss" in line]) == 8
    assert told["stages"][1]["after"]["loss"] < told["stages"][1]["before"]["loss"]


@pytest.mark.train
def test_a_run_through_the_seam_comes_home_as_any_other(demo_base: Path, tmp_path: Path, stand_in: str) -> None:
    work = make_work(tmp_path / "work", demo_base)
    done = run_trainer(work, PYTHONPATH=stand_in, UNSLOTH_CALLS=str(work / "calls.jsonl"))
    assert done.returncode == 0, done.stdout
    check_result(work, demo_base)
    begun, loaded, adapted, *modes = calls(work)
    # Nothing that Unsloth changes was there before it, and it was told what to leave alone.
    assert begun["before"] == []
    assert begun["environment"] == {
        **unsloth_backend.SETTINGS,
        "UNSLOTH_COMPILE_LOCATION": str(work / unsloth_backend.COMPILED),
    }
    assert loaded["call"] == "from_pretrained"
    assert loaded["model_name"] == str(work / "inputs" / "base")
    assert (loaded["load_in_4bit"], loaded["use_exact_model_name"], loaded["random_state"]) == (False, True, 42)
    assert (adapted["call"], adapted["r"], adapted["use_rslora"]) == ("get_peft_model", 16, False)
    assert adapted["use_gradient_checkpointing"] == "unsloth"
    # Before and after each of two stages, where after the first is before the second.
    assert [call["call"] for call in modes] == ["for_inference", "for_training"] * 3


@pytest.mark.train
def test_a_machine_without_unsloth_says_what_to_do(demo_base: Path, tmp_path: Path) -> None:
    if HERE:
        pytest.skip("Unsloth is installed here")
    work = make_work(tmp_path / "work", demo_base)
    done = run_trainer(work)
    assert done.returncode == 1
    told = outcome(work)
    assert "unsloth is not installed here" in told["reason"]
    assert "cloudft build" in told["reason"]
    assert "Traceback" not in done.stdout


def test_rows_that_are_longer_than_the_base_knows_are_refused_not_stretched(demo_base: Path, tmp_path: Path) -> None:
    spec = read_spec(make_work(tmp_path / "work", demo_base))
    assert spec.gate is not None
    longest = spec.stages[0].max_length
    with pytest.raises(TrainError, match=f"lower train.max_length to {longest - 1}"):
        unsloth_backend.limit(spec, longest - 1)
    assert unsloth_backend.limit(spec, longest) == longest
    # What is measured may be longer than what is trained on.
    assert unsloth_backend.limit(spec, 100_000) == 4096 + spec.gate.max_tokens
    assert unsloth_backend.limit(spec.model_copy(update={"gate": None}), 100_000) == longest


def test_a_row_that_would_be_cut_is_not_measured(demo_base: Path, tmp_path: Path) -> None:
    from jobs.model import load_tuned

    work = make_work(tmp_path / "work", demo_base)
    spec = read_spec(work)
    assert spec.gate is not None
    tuned = load_tuned(spec.model_copy(update={"backend": "trl"}), demo_base)
    lengths = [len(q.prompt) + len(q.answer) for q in Meter(spec, work / "inputs", tuned, lambda: False).questions]
    tuned.longest = max(lengths) + spec.gate.max_tokens - 1
    left = Meter(spec, work / "inputs", tuned, lambda: False).questions
    assert 0 < len(left) < len(lengths)


# What the stand-in promises, of Unsloth itself.

NAMES = ("from_pretrained", "get_peft_model", "for_inference", "for_training")
ASK = """
import inspect, json, sys
from unsloth import FastLanguageModel as F
print(json.dumps({n: [list(inspect.signature(getattr(F, n)).parameters), any(p.kind is p.VAR_KEYWORD for p in
    inspect.signature(getattr(F, n)).parameters.values())] for n in sys.argv[1:]}))
"""


def signatures(cwd: Path, path: str, **env: str) -> dict[str, tuple[list[str], bool]]:
    command = [sys.executable, "-P", "-c", ASK, *NAMES]
    # Elsewhere: as it is imported Unsloth writes code into the working folder.
    env = {"PYTHONPATH": path, "HOME": str(cwd), **env}
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, tuple[list[str], bool]] = json.loads(done.stdout.splitlines()[-1])
    return found


@installed
def test_the_stand_in_takes_nothing_that_unsloth_does_not(tmp_path: Path) -> None:
    ours = signatures(tmp_path, str(STAND_IN))
    # So it can be imported where there is no GPU; what it then knows of its models is the same.
    real = signatures(tmp_path, "", UNSLOTH_ALLOW_CPU="1")
    for name in NAMES:
        assert set(ours[name][0]) <= set(real[name][0]), name


def test_the_seam_says_nothing_that_the_stand_in_does_not_take(tmp_path: Path) -> None:
    """It has no catch-all, so that a run through it proves each argument."""
    assert not any(everything for _, everything in signatures(tmp_path, str(STAND_IN)).values())


def real_run(base: Path, work: Path, method: str) -> None:
    make_work(work, base, method=method, dtype="auto")
    done = run_trainer(work)
    assert done.returncode == 0, done.stdout + done.stderr
    check_result(work, base)


@installed
@pytest.mark.gpu
@pytest.mark.train
@pytest.mark.parametrize("method", UNSLOTH_METHODS)
def test_unsloth_itself_trains_on_a_gpu(demo_base: Path, tmp_path: Path, method: str) -> None:
    real_run(demo_base, tmp_path / "work", method)


@installed
@pytest.mark.train
@pytest.mark.parametrize("method", UNSLOTH_METHODS)
def test_unsloth_itself_trains_on_a_cpu_where_it_can(demo_base: Path, tmp_path: Path, method: str) -> None:
    """From 2026.10.9 on it can, without its kernels: with the libraries' own layers."""
    if not has_cpu_backend():
        pytest.skip("this Unsloth needs a GPU")
    real_run(demo_base, tmp_path / "work", method)


def has_cpu_backend() -> bool:
    found = importlib.util.find_spec("unsloth")
    return bool(found and found.origin and Path(found.origin).with_name("_cpu_init.py").is_file())
