"""The trainer, run for real on the demo's base: it learns, it stops when told to, and it says what is wrong."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from jobs import hardware, model, stage_data, train
from jobs.outcome import TrainError
from jobs.spec import Stage
from local.demo.demo_tickets import SCHEMA, Ticket, tickets
from tests.jobs.train_fixtures import (
    HUB_COMMIT,
    SETTINGS,
    Trained,
    demo_base,
    make_work,
    metrics,
    outcome,
    ref,
    run_trainer,
    trained,
    trainer,
)
from tests.local.hub_fixture import COMMIT, REPOSITORY, FakeHub

__all__ = ["demo_base", "trained"]  # fixtures

FEW = [ticket.messages() for ticket in tickets(32, 1)]
SHORT: dict[str, Any] = {"max_steps": 2, "batch_size": 4}


def answers(base: Path, adapter: Path | None, asked: list[Ticket]) -> list[str]:
    """What the model says, decoded greedily."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    prompts = [
        tokenizer.apply_chat_template(t.messages()[:-1], tokenize=False, add_generation_prompt=True) for t in asked
    ]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.no_grad():
        said = model.generate(**batch, max_new_tokens=48, do_sample=False)
    decoded: list[str] = tokenizer.batch_decode(said[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return decoded


def is_valid(answer: str) -> bool:
    from jsonschema import Draft202012Validator

    try:
        return bool(Draft202012Validator(SCHEMA).is_valid(json.loads(answer)))
    except ValueError:
        return False


@pytest.mark.train
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_demo_is_learned(trained: Trained, demo_base: Path) -> None:
    asked = trained.held_out
    before = [is_valid(answer) for answer in answers(demo_base, None, asked)]
    after = answers(demo_base, trained.work / "out" / "adapter", asked)
    exact = [answer == ticket.answer() for answer, ticket in zip(after, asked, strict=True)]
    assert sum(before) <= 0.05 * len(asked)
    assert sum(map(is_valid, after)) >= 0.95 * len(asked)
    assert sum(exact) >= 0.95 * len(asked)


@pytest.mark.train
def test_a_completed_run_says_so_and_leaves_a_whole_adapter(trained: Trained, demo_base: Path) -> None:
    assert trained.code == 0, trained.errors
    out = trained.work / "out"
    said = outcome(trained.work)
    assert said["status"] == "completed"
    assert said["steps_done"] == said["steps_planned"] == 100
    assert 0 < said["train_loss"] < 1
    assert set(said["phases"]) == {"import", "load", "measure", "train", "save"}
    assert said["adapter_sha256"] == ref(out / "adapter" / "adapter_model.safetensors", "x").sha256
    assert sorted(p.name for p in out.iterdir()) == ["adapter", "audit.json", "metrics.jsonl", "trainer.json"]
    assert sorted(p.name for p in (out / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / "adapter" / name).read_bytes() == (demo_base / name).read_bytes()
    template = json.loads((demo_base / "tokenizer_config.json").read_text())["chat_template"]
    assert (out / "adapter" / "chat_template.jinja").read_text() == template
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "./base"
    assert (config["r"], config["lora_alpha"]) == (16, 32)
    assert str(trained.work) not in (out / "adapter" / "adapter_config.json").read_text()


@pytest.mark.train
def test_the_metrics_have_a_line_per_step(trained: Trained) -> None:
    lines = metrics(trained.work)
    assert [line["step"] for line in lines] == list(range(1, 101))
    names = {"stage", "step", "max_steps", "loss", "learning_rate", "tokens", "elapsed_s", "eta_s", "epoch"}
    assert all(set(line) == names for line in lines)
    assert lines[-1]["loss"] < 0.1 * lines[0]["loss"]
    assert lines[-1]["eta_s"] == 0
    assert lines[-1]["tokens"] == outcome(trained.work)["trained_tokens"]
    for name in ("tokens", "elapsed_s", "epoch"):
        values = [line[name] for line in lines]
        assert values == sorted(values)
    warmed_up = max(lines, key=lambda line: line["learning_rate"])
    assert warmed_up["step"] == 6  # five steps of warm-up lead to the sixth
    assert warmed_up["learning_rate"] == pytest.approx(0.005)


@pytest.mark.train
def test_the_log_says_where_each_hyperparameter_came_from(trained: Trained) -> None:
    for name, value in SETTINGS.items():
        if name != "origins":
            assert any(line.split()[:2] == [name, str(value)] for line in trained.log.splitlines()), name
    assert any(line.split()[0] == "learning_rate" and line.endswith("cloudft.yaml") for line in trained.log.split("\n"))
    assert "the first twentieth" in trained.log
    assert "step 100/100" in trained.log
    assert trained.errors == ""  # no progress bars, no advice of the libraries


@pytest.mark.train
def test_sigterm_saves_the_adapter_of_the_steps_done(demo_base: Path, tmp_path: Path) -> None:
    work = make_work(tmp_path / "work", demo_base, FEW, max_steps=100_000, batch_size=4)
    with trainer(work) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith("step "):
                child.send_signal(signal.SIGTERM)
                break
        _, errors = child.communicate()
    assert child.returncode == 0, errors
    said = outcome(work)
    assert said["status"] == "stopped"
    assert "SIGTERM" in said["reason"]
    assert 1 <= said["steps_done"] < 100_000
    assert len(metrics(work)) == said["steps_done"]
    weights = work / "out" / "adapter" / "adapter_model.safetensors"
    assert ref(weights, "x").sha256 == said["adapter_sha256"]
    from safetensors.numpy import load_file

    # A fresh adapter's B matrices are zero: what is saved was trained.
    assert any(value.any() for name, value in load_file(weights).items() if "lora_B" in name)


@pytest.mark.train
def test_sigterm_before_the_first_step_is_a_clear_end_without_an_adapter(demo_base: Path, tmp_path: Path) -> None:
    work = make_work(tmp_path / "work", demo_base, FEW, **SHORT)
    with trainer(work) as child:
        assert child.stdout is not None
        child.stdout.readline()  # the first line of the log comes before the libraries are imported
        child.send_signal(signal.SIGTERM)
        _, errors = child.communicate()
    assert child.returncode == 0, errors
    said = outcome(work)
    assert (said["status"], said["steps_done"], said["adapter_sha256"]) == ("stopped", 0, None)
    assert "before the first step" in said["reason"]
    assert not (work / "out" / "adapter").exists()


@pytest.mark.train
def test_a_base_from_the_hub_is_taken_at_its_commit(demo_base: Path, tmp_path: Path) -> None:
    assert HUB_COMMIT == COMMIT
    hub = FakeHub(demo_base)
    try:
        work = make_work(tmp_path / "work", REPOSITORY, FEW, **SHORT)
        done = run_trainer(work, HF_ENDPOINT=hub.url, HF_HUB_CACHE=str(tmp_path / "hub"), HF_HUB_DISABLE_XET="1")
    finally:
        hub.stop()
    assert done.returncode == 0, done.stderr
    assert "model.safetensors" in hub.served
    adapter = work / "out" / "adapter"
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (REPOSITORY, COMMIT)
    assert (adapter / "tokenizer.json").read_bytes() == (demo_base / "tokenizer.json").read_bytes()


@pytest.mark.train
def test_the_same_spec_gives_the_same_adapter_in_bfloat16_too(demo_base: Path, tmp_path: Path) -> None:
    hashes = []
    for name in ("one", "two"):
        work = make_work(tmp_path / name, demo_base, FEW, **SHORT, dtype="bfloat16", lora_dropout=0.1)
        assert run_trainer(work).returncode == 0
        hashes.append(outcome(work)["adapter_sha256"])
    assert hashes[0] == hashes[1]


@pytest.mark.train
def test_a_loss_that_is_no_number_ends_the_run(demo_base: Path, tmp_path: Path) -> None:
    work = make_work(tmp_path / "work", demo_base, FEW, max_steps=20, batch_size=4, learning_rate=1e30, warmup=0)
    done = run_trainer(work)
    assert done.returncode == 1
    said = outcome(work)
    assert said["status"] == "failed"
    assert "the loss became nan" in said["reason"]
    assert "learning_rate" in done.stderr
    assert not (work / "out" / "adapter").exists()
    assert all(line["loss"] < float("inf") for line in metrics(work))


@pytest.mark.train
def test_a_base_that_is_not_there_is_named(tmp_path: Path, demo_base: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text((demo_base / "config.json").read_text())
    work = make_work(tmp_path / "work", empty, FEW, **SHORT)
    done = run_trainer(work)
    assert done.returncode == 1
    assert "error: the base ./base at abababababab cannot be loaded" in done.stderr
    assert outcome(work)["status"] == "failed"


def test_an_old_result_does_not_pass_for_a_new_one(tmp_path: Path) -> None:
    work = make_work(tmp_path / "work", "owner/none", FEW, **SHORT)
    adapter = work / "out" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_model.safetensors").write_bytes(b"old")
    (work / "out" / "trainer.json").write_text('{"status": "completed"}')
    (work / "spec.json").write_text("{}")
    done = run_trainer(work)
    assert done.returncode == 1
    assert "spec.json is no run spec" in done.stderr
    assert outcome(work)["status"] == "failed"
    assert not adapter.exists()


def test_other_data_than_the_specs_is_refused(tmp_path: Path) -> None:
    work = make_work(tmp_path / "work", "owner/none", FEW, **SHORT)
    spec = train.load_spec(work / "spec.json")
    data = work / "inputs" / "train.jsonl"
    assert stage_data.load_rows(data.parent, spec.data.train) == FEW
    data.write_text(data.read_text() + "\n")
    with pytest.raises(TrainError, match=r"train\.jsonl is not the file that the run was submitted with"):
        stage_data.load_rows(data.parent, spec.data.train)
    data.unlink()
    with pytest.raises(TrainError, match=r"train\.jsonl cannot be read"):
        stage_data.load_rows(data.parent, spec.data.train)


def stage(**settings: Any) -> Stage:
    return Stage(**{**SETTINGS, **settings})


def base_lock() -> Any:
    from jobs.spec import Base

    return Base(source="folder", id="./base", revision="ab" * 32)


def test_missing_weights_are_refused(demo_base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "base"
    broken.mkdir()
    for path in demo_base.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainError, match=r"incomplete: 1 weights are missing, model\.layers\.1\.mlp\.up_proj"):
        model.load_base(base_lock(), broken, "float32")


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(demo_base: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    grown = tmp_path / "base"
    tokenizer = AutoTokenizer.from_pretrained(demo_base)
    tokenizer.add_tokens([f"<new {i}>" for i in range(50)])
    tokenizer.save_pretrained(grown)
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (grown / name).write_bytes((demo_base / name).read_bytes())
    with pytest.raises(TrainError, match=r"has 930 tokens, but the model only knows 896"):
        model.load_base(base_lock(), grown, "float32")


def test_long_rows_are_cut_and_counted_or_refused(demo_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer, base = model.load_base(base_lock(), demo_base, "float32")
    stops = model.stop_tokens(tokenizer, base)
    tuned = model.Tuned(base, tokenizer, tokenizer.chat_template, stops, (), base_lock(), "lora", "float32")
    encoded = stage_data.encode(FEW, tuned, stage(max_length=256))
    assert encoded.truncated == encoded.masked == 0
    assert "warning" not in capsys.readouterr().out
    cut = stage_data.encode(FEW, tuned, stage(max_length=encoded.longest - 1))
    assert cut.truncated >= 1
    said = capsys.readouterr().out
    assert f"warning: {cut.truncated} of 32 rows are cut" in said
    assert f"raise train.max_length (now {encoded.longest - 1}) to {encoded.longest}" in said
    with pytest.raises(TrainError, match=r"32 of 32 answers lie wholly behind the first 10 tokens"):
        stage_data.encode(FEW, tuned, stage(max_length=10))


def test_bfloat16_is_chosen_only_where_the_gpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert hardware.choose_dtype("float32") == "float32"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert hardware.choose_dtype("auto") == "float32"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert hardware.choose_dtype("auto") == "float32"
    with pytest.raises(TrainError, match=r"Tesla T4 cannot compute in it"):
        hardware.choose_dtype("bfloat16")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert hardware.choose_dtype("auto") == "bfloat16"


def test_importing_the_trainer_imports_no_heavy_library() -> None:
    import subprocess
    import sys

    from tests.jobs.train_fixtures import REPO

    code = "import sys, jobs.train; print([m for m in ('torch', 'transformers', 'trl', 'peft') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
