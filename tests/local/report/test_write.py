"""What a report is made from may be missing or damaged, and what it is written to may be in any state."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cloudft.cli import run as cloudft
from cloudft.errors import IntegrityError
from local.files import write_json
from local.report import render as rendering
from local.report.write import write_report
from tests.local.report import made_up


def test_a_run_that_was_not_evaluated_gets_a_report_that_says_so(tmp_path: Path) -> None:
    project, run = made_up.make_run(tmp_path, made_up.Scenario(evaluated=False))
    written = write_report(project, run)
    assert written.headline == "Not measured: the model was trained, and nobody has asked it anything yet."
    assert "results_before_after.md" not in written.files
    for name in ("report.html", "report.md"):
        assert "Nothing was measured" in (written.folder / name).read_text(encoding="utf-8")
    assert f"cloudft eval {run.run_id}" in written.report.unmeasured[0]
    assert "Nothing was measured" in (written.folder / "README.md").read_text(encoding="utf-8")
    assert "model-index" not in (written.folder / "README.md").read_text(encoding="utf-8")


def test_a_run_that_has_barely_begun_gets_a_report_too(tmp_path: Path) -> None:
    project, run = made_up.make_run(tmp_path, made_up.Scenario(evaluated=False))
    record = json.loads(run.record.read_text())
    write_json(run.record, {**record, "status": "running", "attempts": []})
    for path in (run.metrics, run.result, run.run_lock, run.train_data):
        path.unlink()
    for version in (project.models / f"{run.run_id}-q4_k_m-00000000").iterdir():
        version.unlink()
    written = write_report(project, run)
    assert written.headline == "Not measured yet: the run is running."
    page = written.html.read_text(encoding="utf-8")
    assert "No loss curve is here" in page
    assert "None" not in page


def test_a_failed_run_says_why(tmp_path: Path) -> None:
    project, run = made_up.make_run(tmp_path, made_up.Scenario(evaluated=False))
    record = json.loads(run.record.read_text())
    write_json(run.record, {**record, "status": "failed", "reason": "the loss became nan at step 3"})
    run.result.unlink()
    written = write_report(project, run)
    assert written.headline == (
        "Nothing to measure: the run ended without a model (failed: the loss became nan at step 3)."
    )


def test_a_log_with_odd_lines_is_drawn_as_far_as_it_goes(tmp_path: Path) -> None:
    project, run = made_up.make_run(tmp_path, made_up.Scenario(evaluated=False))
    whole = write_report(project, run).report.training.curve
    odd = ['{"stage": "2-dpo", "step": 121, "loss": NaN}', '{"step": 122, "eval_loss": Infinity}', '{"step": 12']
    run.metrics.write_text(run.metrics.read_text() + "\n".join(odd))
    assert write_report(project, run).report.training.curve == whole


def test_what_is_not_rented_costs_nothing_and_says_so(tmp_path: Path) -> None:
    written = write_report(*made_up.make_run(tmp_path, made_up.Scenario(rented=False)))
    assert "Nothing was rented: the run cost no money." in (written.folder / "report.md").read_text(encoding="utf-8")


def test_answers_that_were_changed_are_refused_and_the_older_report_stays(tmp_path: Path) -> None:
    project, run = made_up.make_run(tmp_path)
    before = {path.name: path.read_bytes() for path in write_report(project, run).folder.iterdir()}
    answers = run.root / "outputs-after.jsonl"
    answers.write_bytes(answers.read_bytes().replace(b"billing", b"feature", 1))
    with pytest.raises(IntegrityError, match=r"outputs-after.jsonl is not what the evaluation wrote"):
        write_report(project, run)
    assert {path.name: path.read_bytes() for path in run.report.iterdir()} == before


def test_a_report_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project, run = made_up.make_run(tmp_path)
    written = write_report(project, run)
    before = {path.name: path.read_bytes() for path in written.folder.iterdir()}
    (run.root / ".report.new").mkdir()  # a process that was killed while it wrote
    real = rendering.render(written.report)
    # The disk is full at the last file.
    monkeypatch.setattr("local.report.write.render", lambda _: {**real, "no/such\0name": ""})
    with pytest.raises(ValueError, match="null"):
        write_report(project, run)
    assert {path.name: path.read_bytes() for path in run.report.iterdir()} == before
    assert [path.name for path in run.root.iterdir() if "report" in path.name] == ["report", ".report.lock"] or [
        path.name for path in run.root.iterdir() if "report" in path.name
    ] == [".report.lock", "report"]


def test_a_process_that_was_killed_between_the_two_renames_loses_nothing(tmp_path: Path) -> None:
    project, run = made_up.make_run(tmp_path)
    folder = write_report(project, run).folder
    folder.rename(folder.with_name(".report.old"))
    written = write_report(project, run)
    assert sorted(path.name for path in written.folder.iterdir()) == list(written.files)
    assert not folder.with_name(".report.old").exists()


def test_the_command_prints_where_and_the_headline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, run = made_up.make_run(tmp_path)
    assert cloudft(["report", "-C", str(tmp_path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("Better")
    assert said[1] == f"report: {run.report / 'report.html'}"
    assert cloudft(["report", run.run_id[:8], "-C", str(tmp_path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert (data["verdict"], data["html"]) == ("better", str(run.report / "report.html"))
    assert sorted(data["files"]) == sorted(path.name for path in run.report.iterdir())
    assert cloudft(["report", "nosuch", "-C", str(tmp_path)]) == 5
    run.evaluation.write_text("{")
    assert cloudft(["report", "-C", str(tmp_path)]) == 11
    (tmp_path / "cloudft.yaml").write_text("project: tickets\nbase: x\ndata: {path: d, card: {licence: mit}}\n")
    run.evaluation.unlink()
    capsys.readouterr()
    assert cloudft(["report", "-C", str(tmp_path)]) == 3
    assert "data.card.licence: unknown key; did you mean 'license'?" in capsys.readouterr().err
