"""Every number of the report, counted again from the raw answers by code that shares nothing with ours."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from local.project import Project, RunFolder
from local.report.write import Written, write_report
from tests.local.report import made_up, recount


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, RunFolder, Written]:
    scenario = made_up.Scenario(
        rows=57,
        before={n: made_up.expected(n) for n in (3, 9, 17, 18)} | {n: made_up.wrong(n) for n in range(20, 31)},
        after={9: made_up.wrong(9), 21: '{"category": "bug"', 33: made_up.wrong(33), 50: None, 51: made_up.PROSE},
    )
    project, run = made_up.make_run(tmp_path_factory.mktemp("numbers"), scenario)
    return project, run, write_report(project, run)


@pytest.mark.parametrize("name", ["report.md", "results_before_after.md", "README.md"])
def test_every_number_of_the_table_is_the_recounted_one(made: tuple[Project, RunFolder, Written], name: str) -> None:
    _, run, written = made
    recount.hold_against(run.root, (written.folder / name).read_text(encoding="utf-8"), made_up.SCHEMA)


def test_a_number_that_is_wrong_is_found(made: tuple[Project, RunFolder, Written]) -> None:
    """The recount itself can fail: a digit that is not the counted one is no longer taken."""
    _, run, written = made
    text = (written.folder / "report.md").read_text(encoding="utf-8")
    cell = recount.table(text)["exact_match"][1]
    wrong = cell.replace(str(recount.numbers(cell)[0]), "12.3", 1)
    with pytest.raises(AssertionError, match="exact_match"):
        recount.hold_against(run.root, text.replace(cell, wrong, 1), made_up.SCHEMA)


def test_the_page_shows_the_same_numbers_as_the_text(made: tuple[Project, RunFolder, Written]) -> None:
    _, _, written = made
    page = html.unescape(re.sub(r"<[^>]*>", " ", written.html.read_text(encoding="utf-8")))
    for name, cells in recount.table((written.folder / "report.md").read_text(encoding="utf-8")).items():
        shown = page[page.index("A change counts as one") :]
        shown = shown[shown.index(name) :].replace("<", "\\<")
        for cell in cells[:3]:
            assert all(str(number) in shown[:900] for number in map(abs, recount.numbers(cell))), (name, cell)


def test_parts_are_the_recounted_ones(made: tuple[Project, RunFolder, Written]) -> None:
    _, run, written = made
    held = recount.load(run.holdout)
    cells = recount.table((written.folder / "report.md").read_text(encoding="utf-8"), "| key |")
    for position, label in enumerate(("before", "after")):
        lines = recount.load(run.root / f"outputs-{label}.jsonl")
        for key in made_up.SCHEMA["properties"]:
            f1 = recount.field_f1(lines, held, [key])
            assert recount.numbers(cells[key][3])[position] == pytest.approx(100 * f1, abs=0.0501)
            assert cells[key][0] == "57"


def test_rows_that_changed_are_the_recounted_ones(made: tuple[Project, RunFolder, Written]) -> None:
    _, run, written = made
    held = recount.load(run.holdout)
    before, after = (
        recount.count(recount.load(run.root / f"outputs-{label}.jsonl"), held, made_up.SCHEMA)["exact_match"]
        for label in ("before", "after")
    )
    counted = recount.changes(before, after)
    text = (written.folder / "report.md").read_text(encoding="utf-8")
    said = re.search(r"(\d+) gained, (\d+) lost, (\d+) right both times, (\d+) wrong both times", text)
    assert said is not None
    assert [int(number) for number in said.groups()] == list(counted.values())
    assert sum(counted.values()) == 57
    evaluated = written.report.evaluated
    assert evaluated is not None
    assert (evaluated.improved.count, evaluated.regressed.count) == (counted["gained"], counted["lost"])
    assert evaluated.failing.count == counted["wrong_both_times"]
    lost = [n for n, (b, a) in enumerate(zip(before.hits, after.hits, strict=True), start=1) if b and not a]
    assert [example.row for example in evaluated.regressed.shown] == lost


def test_confusions_are_the_recounted_ones(made: tuple[Project, RunFolder, Written]) -> None:
    _, run, written = made
    held, lines = recount.load(run.holdout), recount.load(run.root / "outputs-after.jsonl")
    counted = recount.confusion(lines, held, "category", list(made_up.CATEGORIES))
    text = (written.folder / "report.md").read_text(encoding="utf-8")
    table = text[text.index("category, after") :].split("\n\n")[1].split("\n")
    columns = ["other" if "none" in name else name.strip("()") for name in table[0].strip("| ").split(" | ")[1:]]
    for line in table[2:]:
        expected, *cells = line.strip("| ").split(" | ")
        for column, cell in zip(columns, cells, strict=True):
            assert int(cell) == counted.get((expected, column), 0), (expected, column)


def test_money_tokens_and_times_are_those_of_the_files(made: tuple[Project, RunFolder, Written]) -> None:
    _, _, written = made
    text = (written.folder / "report.md").read_text(encoding="utf-8")
    assert "The run has cost $0.10 at most of a budget of $5.00." in text  # 1005 s at $0.36/h
    assert "120 of 120 steps: completed" in text
    assert "252,000 tokens" in text
    assert "| train | 14 min | $0.0840 |" in text
    assert "| boot and pull | 1 min 35 s | $0.0095 |" in text
    assert "2026-11-20 10:20:00 UTC: submitted" in text
    assert "| 2-dpo | lora | 120 of 120 | 0.3100 | kept out | exact_match fell |" in text
    assert "| 1-sft | 160 | 8,000 | 25.0% | 160 of 160 | 3 | 0 |" in text


def test_lineage_is_what_lies_in_the_folder(made: tuple[Project, RunFolder, Written]) -> None:
    project, run, written = made
    from local.files import sha256_file

    said = {link.name: link.value for link in written.report.lineage}
    assert said["Training data"] == sha256_file(run.train_data)
    assert said["Hold-out"] == sha256_file(run.holdout)
    assert said["Spec"] == sha256_file(run.spec)
    assert said["GGUF file"] == sha256_file(project.current_model / "model.gguf")
    assert said["Answers after"] == sha256_file(run.root / "outputs-after.jsonl")
    assert said["Base"] == "b" * 64
    page = written.html.read_text(encoding="utf-8")
    assert all(value in page for value in said.values())


def test_the_data_is_recounted_from_the_runs_own_copies(
    made: tuple[Project, RunFolder, Written], tmp_path: Path
) -> None:
    data = made[2].report.data
    assert (data.train_rows, data.holdout_rows, data.shared_questions) == (160, 57, 0)
    assert {spread.key: {name: (a, b) for name, a, b in spread.rows} for spread in data.spreads} == {
        "category": {"bug": (54, 19), "billing": (53, 19), "feature": (53, 19)},
        "priority": {"high": (80, 28), "low": (80, 29)},
    }
    # A question of the hold-out that training saw is found, whatever was counted at submit.
    project, run = made_up.make_run(tmp_path, made_up.Scenario(question="Earlier ticket {row}."))
    assert write_report(project, run).report.data.shared_questions == 40


def test_what_stays_wrong_is_shown_the_farthest_from_right_first(tmp_path: Path) -> None:
    """No object at all, then one that breaks the schema, then one wrong key."""
    scenario = made_up.Scenario(
        rows=30,
        before=dict.fromkeys((4, 7, 11), made_up.PROSE),
        after={4: made_up.wrong(4), 7: made_up.PROSE, 11: {**made_up.expected(11), "priority": "urgent"}},
    )
    evaluated = write_report(*made_up.make_run(tmp_path, scenario)).report.evaluated
    assert evaluated is not None
    assert [example.row for example in evaluated.failing.shown] == [7, 11, 4]
    assert "'urgent' is not one of" in evaluated.failing.shown[1].note
