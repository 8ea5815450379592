"""Two runs side by side: what differs, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cloudft.commands.diff_command import describe
from local.files import sha256_file, write_json
from local.project import Project, RunFolder
from local.runs.compare import Diff, diff_runs
from tests.local.report import made_up

NOW = made_up.BEGAN + 9000


def two_runs(root: Path, first: made_up.Scenario, second: made_up.Scenario) -> tuple[Project, RunFolder, RunFolder]:
    """Both in one project: the second is made elsewhere and moved in under another name."""
    project, one = made_up.make_run(root / "project", first)
    _, made = made_up.make_run(root / "other", second)
    two = project.run("20261121-101010-cd34")
    made.root.rename(two.root)
    return project, one, two


def diff(root: Path, first: made_up.Scenario, second: made_up.Scenario) -> Diff:
    project, one, two = two_runs(root, first, second)
    return diff_runs(project, one, two, NOW)


def submitted_with(run: RunFolder, spec: dict[str, Any]) -> None:
    """As if the run had been submitted with this spec."""
    write_json(run.spec, spec)
    record = json.loads(run.record.read_text())
    write_json(run.record, record | {"spec_sha256": sha256_file(run.spec)})


def test_the_same_twice_differs_in_nothing(tmp_path: Path) -> None:
    found = diff(tmp_path, made_up.Scenario(), made_up.Scenario())
    assert found.same
    assert "do not differ" in describe(found)


def test_only_what_differs_is_shown_each_in_its_section(tmp_path: Path) -> None:
    project, one, two = two_runs(
        tmp_path, made_up.Scenario(), made_up.Scenario(after={3: made_up.wrong(3), 4: None}, before={})
    )
    spec = json.loads(two.spec.read_text())
    spec["stages"][0]["learning_rate"] = 1e-4
    submitted_with(two, spec | {"seed": 43})
    lock = json.loads(two.run_lock.read_text())
    lock["python"]["packages"]["torch"] = "2.14.0"
    del lock["python"]["packages"]["trl"]
    write_json(two.run_lock, lock)
    found = diff_runs(project, one, two, NOW)
    assert found.data == {}
    assert found.config == {"stages.1.learning_rate": (2e-4, 1e-4), "seed": (42, 43)}
    assert found.code["package torch"][1] == "2.14.0"
    assert found.code["package trl"][1] is None
    assert set(found.code) == {"package torch", "package trl"}
    assert found.numbers["exact_match after"] == (1.0, 38 / 40)
    assert not any("before" in name for name in found.numbers)
    text = describe(found)
    assert "data: the same" in text
    assert "stages.1.learning_rate" in text
    assert "lora_r" not in text


def test_other_rows_are_named_and_their_numbers_not_taken_for_comparable(tmp_path: Path) -> None:
    found = diff(tmp_path, made_up.Scenario(rows=40), made_up.Scenario(rows=30))
    assert found.data["holdout_rows"] == (40, 30)
    assert "the hold-outs differ: the numbers were not measured on the same rows" in found.notes


def test_equal_numbers_are_said_to_be_equal(tmp_path: Path) -> None:
    found = diff(tmp_path, made_up.Scenario(), made_up.Scenario())
    assert "all 5 metrics are the same, before and after" in found.notes
    other = diff(tmp_path / "other", made_up.Scenario(), made_up.Scenario(after={3: made_up.wrong(3)}))
    assert not any("metrics are the same" in note for note in other.notes)


@pytest.mark.parametrize("missing", ["eval.json", "run.lock.json"])
def test_what_is_missing_is_said(tmp_path: Path, missing: str) -> None:
    project, one, two = two_runs(tmp_path, made_up.Scenario(), made_up.Scenario())
    (two.root / missing).unlink()
    found = diff_runs(project, one, two, NOW)
    note = {"eval.json": "run 2 was not evaluated", "run.lock.json": "run 2 has no run.lock.json"}[missing]
    assert any(note in text for text in found.notes)


def test_a_whole_template_is_shown_by_its_hash(tmp_path: Path) -> None:
    project, one, two = two_runs(tmp_path, made_up.Scenario(), made_up.Scenario())
    submitted_with(two, json.loads(two.spec.read_text()) | {"template": "{% for m in messages %}…{% endfor %}"})
    pair = diff_runs(project, one, two, NOW).config["template"]
    assert pair[0] is None
    assert pair[1].startswith("sha256 ")
