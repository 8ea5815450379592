"""What the gate found, in words: for the terminal and for the report."""

from __future__ import annotations

from typing import Any

from local.runs.stage_report import kept_out, stage_cells, stage_lines, stages_of


def stage(name: str, before: Any = None, after: Any = None, **changes: Any) -> dict[str, Any]:
    plain = {"name": name, "method": "lora", "steps_done": 8, "steps_planned": 8, "kept": True, "note": ""}
    return {**plain, "train_loss": 0.5, "before": before, "after": after, **changes}


def numbers(exact: float | None, loss: float) -> dict[str, Any]:
    return {"rows": 16, "exact_match": exact, "schema_valid": exact, "loss": loss, "general_loss": None}


STAGES = [
    stage("1-sft", numbers(0.0, 5.0), numbers(1.0, 0.01)),
    stage("2-dpo", numbers(1.0, 0.01), numbers(0.5, 0.2), kept=False, note="exact matches fell from 16 to 8 of 16"),
    stage("3-dpo", numbers(1.0, 0.01), None, steps_done=3, note="stopped before its end"),
]


def test_a_line_for_each_stage() -> None:
    assert stage_lines(STAGES) == [
        "1-sft: 8 of 8 steps; exact match 0.0% → 100.0%; schema valid 0.0% → 100.0%; loss 5.000 → 0.010",
        "2-dpo: 8 of 8 steps, kept out; exact match 100.0% → 50.0%; schema valid 100.0% → 50.0%; loss 0.010 → 0.200 "
        "(exact matches fell from 16 to 8 of 16)",
        "3-dpo: 3 of 8 steps; exact match 100.0%; schema valid 100.0%; loss 0.010 (stopped before its end)",
    ]
    assert kept_out(STAGES) == ["2-dpo: exact matches fell from 16 to 8 of 16"]


def test_the_table_shows_what_was_measured() -> None:
    columns, rows = stage_cells(STAGES)
    assert columns[:4] == ("stage", "method", "steps", "mean loss")
    assert columns[4:] == ("exact match", "schema valid", "loss", "gate", "note")
    assert rows[0] == (
        "1-sft",
        "lora",
        "8 of 8",
        "0.5000",
        "0.0% → 100.0%",
        "0.0% → 100.0%",
        "5.000 → 0.010",
        "kept",
        "",
    )
    assert rows[1][-2:] == ("kept out", "exact matches fell from 16 to 8 of 16")
    columns, rows = stage_cells([stage("1-sft", numbers(None, 2.0), numbers(None, 1.0)), stage("2-dpo")])
    assert columns == ("stage", "method", "steps", "mean loss", "loss", "gate", "note")
    assert rows[1][4] == "–"
    assert "loss" not in stage_cells([stage("1-sft")])[0]


def test_results_of_older_machines_have_no_stages() -> None:
    assert list(stages_of({"trainer": {"stages": STAGES}})) == STAGES
    assert stages_of({"trainer": {}}) == stages_of({}) == stages_of(None) == ()
