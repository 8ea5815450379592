"""Stages for real, on the demo's base: measured, trained on what the one before made, kept or taken back, resumed.

They run in this process, which imports the libraries once; `test_train` and `test_resume` start the trainer as the
supervisor does.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from jobs import train
from jobs.checkpoints import FOLDER, sealed
from jobs.delivery import CANDIDATE, RESULT
from jobs.outcome import Outcome
from jobs.spec import Gate
from jobs.stages import Pace
from local.demo.demo_tickets import SCHEMA, Ticket, generic_chats, tickets
from tests.jobs.train_fixtures import FULL, Rows, StopAfter, demo_base, make_stages, metrics, train_here

__all__ = ["demo_base"]  # fixture

GATE = Gate(kind="json", json_schema=SCHEMA, keys=("category", "product", "priority"), max_tokens=40, rows=16, share=1)
DRAWN = tickets(216, 1)
TRAIN: Rows = [ticket.messages() for ticket in DRAWN[:200]]
VALIDATION: Rows = [ticket.messages() for ticket in DRAWN[200:]]
TEXTS = [{"text": " ".join(m["content"] for m in chat[1:])} for chat in generic_chats(60, 5)]


def pairs(drawn: list[Ticket]) -> list[dict[str, Any]]:
    """The right answer, and one with another priority."""
    rng = random.Random(3)
    rows = []
    for ticket in drawn:
        other = rng.choice([name for name in ("high", "normal", "low") if name != ticket.priority])
        wrong = json.loads(ticket.answer()) | {"priority": other}
        rows.append({"prompt": ticket.messages()[:-1], "chosen": ticket.answer(), "rejected": json.dumps(wrong)})
    return rows


SFT: dict[str, Any] = {"max_steps": 26, "batch_size": 16}
CPT: dict[str, Any] = {"kind": "cpt", "rows": TEXTS, "max_steps": 4, "batch_size": 2, "packing": True}
DPO: dict[str, Any] = {"kind": "dpo", "rows": pairs(tickets(24, 9)), "beta": 0.1, "max_steps": 4, "batch_size": 6}
OFTEN = Pace(0, 0)


def weights(work: Path) -> dict[str, bytes]:
    """The files of a result by their names."""
    folder = work / "out" / "adapter"
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def told(work: Path) -> list[dict[str, Any]]:
    """The metrics but for the time that they took."""
    return [{k: v for k, v in line.items() if k not in ("elapsed_s", "eta_s")} for line in metrics(work)]


@pytest.mark.train
@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_a_run_of_stages_broken_off_anywhere_ends_with_the_same_bytes(
    demo_base: Path, tmp_path: Path, method: str
) -> None:
    own = FULL if method == "full" else {"method": method, "lora_dropout": 0.1}
    rates = (1e-4, 1e-3, 1e-6) if method == "full" else (1e-3, 5e-3, 1e-5)
    plain = ({**CPT, "max_steps": 3}, {"max_steps": 6, "batch_size": 4}, {**DPO, "max_steps": 3})
    stages = [{**stage, **own, "learning_rate": rate} for stage, rate in zip(plain, rates, strict=True)]
    gate = GATE.model_copy(update={"rows": 4})
    works = [
        make_stages(tmp_path / name, demo_base, stages, gate=gate, train=TRAIN[:40], validation=VALIDATION)
        for name in ("unbroken", "broken")
    ]
    unbroken = train_here(works[0])
    assert unbroken.status == "completed"
    assert [stage.name for stage in unbroken.stages] == ["1-cpt", "2-sft", "3-dpo"]

    rng, rounds, begun = random.Random(method), 0, []
    while (outcome := train_here(works[1], rng.randint(6, 20), OFTEN)).status != "completed":
        assert outcome.status == "stopped"
        begun.append(outcome.resumed_from)
        rounds += 1
        assert rounds < 40, begun
    assert rounds >= 2
    assert outcome.resumed_from > 0
    assert weights(works[1]) == weights(works[0])
    assert told(works[1]) == told(works[0])

    def ended(stages: Any) -> list[dict[str, Any]]:
        one = [asdict(stage) for stage in stages]
        for stage in one:
            for part in (stage, stage["before"], stage["after"]):
                part.pop("seconds")
        return one

    assert ended(outcome.stages) == ended(unbroken.stages)


@pytest.mark.train
def test_a_stage_that_makes_things_worse_is_kept_out(demo_base: Path, tmp_path: Path) -> None:
    """Too high a rate for dpo ruins the model: what goes home is what sft alone would have given."""
    data = {"train": TRAIN, "validation": VALIDATION}
    ruin = {**DPO, "learning_rate": 2e-2}
    alone = make_stages(tmp_path / "alone", demo_base, [SFT], gate=GATE, **data)
    both = make_stages(tmp_path / "both", demo_base, [SFT, ruin], gate=GATE, **data)
    assert train_here(alone).status == "completed"
    outcome = train_here(both)
    assert outcome.status == "completed"
    sft, dpo = outcome.stages
    assert (sft.kept, dpo.kept) == (True, False)
    assert sft.before is not None
    assert sft.after is not None
    assert dpo.after is not None
    assert (sft.before["exact_match"], sft.before["rows"]) == (0.0, 16)
    assert sft.after["exact_match"] >= 0.8
    assert dpo.before == sft.after
    assert dpo.after["exact_match"] < sft.after["exact_match"]
    assert dpo.note.startswith("exact matches fell from ")
    assert f"stage 2-dpo is kept out: {dpo.note}" in outcome.reason
    found = weights(both)
    assert {name: found[name] for name in weights(alone)} == weights(alone)
    # What was trained is not lost.
    assert found["rejected/2-dpo/adapter_model.safetensors"] != found["adapter_model.safetensors"]
    assert "rejected/2-dpo/adapter_config.json" in found
    # Nothing of it is left for whoever would save what a trainer that is killed has made.
    assert not (both / "best").exists()
    assert not (both / "out" / CANDIDATE).exists()


class Watching(StopAfter):
    """Notes at each look of the gate which folders there are."""

    def __init__(self, out: Path) -> None:
        super().__init__(1_000_000)
        self.out, self.seen = out, list[tuple[bool, bool]]()

    def asked(self) -> bool:
        self.seen.append(((self.out / CANDIDATE).is_dir(), (self.out / RESULT).is_dir()))
        return super().asked()


@pytest.mark.train
def test_what_is_measured_last_is_saved_before(demo_base: Path, tmp_path: Path) -> None:
    short = {**SFT, "max_steps": 3}
    work = make_stages(tmp_path / "work", demo_base, [short], gate=GATE, train=TRAIN[:40], validation=VALIDATION)
    out, outcome = work / "out", Outcome()
    watching = Watching(out)
    train.fresh(out)
    train.train(work, watching, outcome, Pace(1e9, 1e9), None)
    assert outcome.stages[0].kept
    # First while the gate measures what there was before, and in the training; then while it measures what came of it.
    began = watching.seen.index((True, False))
    assert set(watching.seen[:began]) == {(False, False)}
    assert set(watching.seen[began:]) == {(True, False)}
    assert len(watching.seen) - began >= 2
    assert [path.name for path in out.iterdir() if path.is_dir()] == [RESULT]


@pytest.mark.train
def test_a_stage_whose_gate_is_off_is_kept_and_its_harm_said(demo_base: Path, tmp_path: Path) -> None:
    ruin = {**SFT, "max_steps": 3, "learning_rate": 1.0, "warmup": 0.0, "gate": False}
    work = make_stages(tmp_path / "work", demo_base, [ruin], gate=GATE, train=TRAIN[:40], validation=VALIDATION)
    (stage,) = train_here(work).stages
    assert stage.kept
    assert "the loss of the answers rose" in stage.note
    assert "its gate is off" in stage.note


@pytest.mark.train
def test_when_every_stage_is_kept_out_the_result_is_the_base_and_says_so(demo_base: Path, tmp_path: Path) -> None:
    ruin = {**SFT, "max_steps": 3, "learning_rate": 1.0, "warmup": 0.0}
    work = make_stages(tmp_path / "work", demo_base, [ruin], gate=GATE, train=TRAIN[:40], validation=VALIDATION)
    outcome = train_here(work)
    assert outcome.status == "completed"
    assert outcome.reason.endswith("no stage made the model better, so the result is the base")
    from safetensors.numpy import load_file

    adapter = load_file(work / "out" / "adapter" / "adapter_model.safetensors")
    assert not any(value.any() for name, value in adapter.items() if "lora_B" in name)


@pytest.mark.train
def test_replayed_general_rows_keep_what_the_model_could_before(demo_base: Path, tmp_path: Path) -> None:
    chats: Rows = generic_chats(90, 99)
    after = []
    for name, replay in (("without", {}), ("with", {"replay": chats[20:]})):
        data = {"train": TRAIN[:120], "validation": VALIDATION, "general": chats[:16], **replay}
        work = make_stages(tmp_path / name, demo_base, [SFT], gate=GATE, **data)
        (stage,) = train_here(work).stages
        assert stage.before is not None
        assert stage.after is not None
        assert stage.before["general_loss"] < 0.1
        after.append(stage.after["general_loss"])
    assert after[1] < 0.5 * after[0]


@pytest.mark.train
@pytest.mark.parametrize("method", ["dora", "rslora"])
def test_the_other_adapters_train_and_go_home(demo_base: Path, tmp_path: Path, method: str) -> None:
    work = make_stages(tmp_path / "work", demo_base, [{"method": method, "max_steps": 3, "batch_size": 4}], train=TRAIN)
    outcome = train_here(work)
    assert (outcome.status, outcome.stages[0].note) == ("completed", "not measured: the run asks for no measurement")
    config = json.loads(weights(work)["adapter_config.json"])
    assert (config["use_dora"], config["use_rslora"]) == (method == "dora", method == "rslora")


@pytest.mark.train
def test_a_full_fine_tune_goes_home_as_a_16_bit_model(demo_base: Path, tmp_path: Path) -> None:
    import torch
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    work = make_stages(tmp_path / "work", demo_base, [{**FULL, "max_steps": 3, "learning_rate": 1e-3}], train=TRAIN)
    train_here(work, pace=OFTEN)
    home, names = work / "out" / "adapter", weights(work)
    assert names["config.json"] == (demo_base / "config.json").read_bytes()
    assert {"model.safetensors", "tokenizer.json", "chat_template.jinja", "generation_config.json"} <= set(names)
    with safe_open(home / "model.safetensors", "pt") as now, safe_open(demo_base / "model.safetensors", "pt") as base:
        assert set(now.keys()) == set(base.keys())  # tied embeddings are there once
        assert {now.get_tensor(name).dtype for name in now.keys()} == {torch.bfloat16}  # noqa: SIM118
    model = AutoModelForCausalLM.from_pretrained(home)
    assert model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    # Training goes on from 32 bits.
    with safe_open(sealed(work / FOLDER)[0].path / "model.safetensors", "pt") as kept:
        assert {kept.get_tensor(name).dtype for name in kept.keys()} == {torch.float32}  # noqa: SIM118
