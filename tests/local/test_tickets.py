"""What a ticket lets a machine read and write."""

from __future__ import annotations

from pathlib import Path

from infra.store_folder import FolderStore
from jobs.spec import RunSpec
from jobs.ticket import ATTEMPT_OUTPUTS, RUN_OUTPUTS, Ticket
from local.records import Attempt, PlannedOffer
from local.tickets import make_ticket
from tests.rented import SPEC


def ticket(root: Path, number: int, rate: float) -> Ticket:
    spec = RunSpec.model_validate_json(SPEC)
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


def test_only_a_machine_that_costs_money_can_be_taken_away(tmp_path: Path) -> None:
    assert ticket(tmp_path, 1, 0.5).rented
    assert not ticket(tmp_path, 1, 0.0).rented
