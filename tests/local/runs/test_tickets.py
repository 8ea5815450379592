"""What a ticket lets a machine read and write."""

from __future__ import annotations

import json
from pathlib import Path

from infra.store_folder import FolderStore
from jobs.spec import RunSpec
from jobs.ticket import ADAPTER, ATTEMPT_OUTPUTS, RUN_OUTPUTS, SLOTS, Ticket
from local.runs.records import Attempt, PlannedOffer
from local.runs.tickets import make_ticket
from tests.rented import SPEC


def ticket(root: Path, number: int, rate: float, spec: RunSpec | None = None) -> Ticket:
    spec = spec or RunSpec.model_validate_json(SPEC)
    attempt = Attempt(
        number=number,
        name=f"cloudft-r-a{number}-9",
        offer=PlannedOffer(provider="p", id="NVIDIA L4", name="L4", rate_usd=rate),
        state="intended",
        created_at=0,
        deadline=9,
        exhausted_at=10,
    )
    return make_ticket(FolderStore(root), spec, attempt, 1.0)


def test_checkpoints_belong_to_the_run_and_reports_to_the_attempt(tmp_path: Path) -> None:
    first, second = ticket(tmp_path, 1, 0.5), ticket(tmp_path, 2, 0.5)
    for name in RUN_OUTPUTS:
        assert first.outputs[name] == second.outputs[name]
        assert first.outputs[name].put.endswith(f"/runs/{first.run_id}/{name}")
    for name in ATTEMPT_OUTPUTS:
        assert second.outputs[name].put.endswith(f"/runs/{first.run_id}/attempts/2/{name}")
    assert set(first.outputs) == {*RUN_OUTPUTS, *ATTEMPT_OUTPUTS}
    assert Ticket.from_json(second.to_json()) == second


def test_a_full_fine_tune_may_need_several_objects_for_its_result_and_its_checkpoints(tmp_path: Path) -> None:
    data = json.loads(SPEC)
    (stage,) = data["stages"]
    data["stages"] = [stage | {"method": "full", "lora_r": None, "lora_alpha": None, "lora_dropout": None}]
    data["base"]["parameters"] = 3_000_000_000
    names = set(ticket(tmp_path, 1, 0.5, RunSpec.model_validate(data)).outputs)
    assert names - {*RUN_OUTPUTS, *ATTEMPT_OUTPUTS} == {
        # 12 GB in 32 bits, as a checkpoint may have it, and what lies beside the weights.
        *(f"{ADAPTER}.{i}" for i in range(1, 4)),
        *(f"{slot}.{i}" for slot in SLOTS for i in range(1, 18)),
    }


def test_only_the_data_that_is_trained_on_or_measured_travels(tmp_path: Path) -> None:
    data = json.loads(SPEC)
    file = {"path": "x.jsonl", "sha256": "b" * 64, "bytes": 3}
    data["data"] |= {"validation": file | {"path": "validation.jsonl"}, "validation_rows": 1}
    (stage,) = data["stages"]
    sft = ticket(tmp_path, 1, 0.5, RunSpec.model_validate(data))
    assert [item.path for item in sft.inputs] == ["train.jsonl", "validation.jsonl"]
    data["stages"] = [stage | {"kind": "dpo", "beta": 0.1, "rows": 1, "data": file}]
    dpo = ticket(tmp_path, 1, 0.5, RunSpec.model_validate(data))
    assert [item.path for item in dpo.inputs] == ["validation.jsonl", "x.jsonl"]


def test_only_a_machine_that_costs_money_can_be_taken_away(tmp_path: Path) -> None:
    assert ticket(tmp_path, 1, 0.5).rented
    assert not ticket(tmp_path, 1, 0.0).rented
