"""Evaluation, from the hold-out to the report, through real servers of models whose answers are known."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock

from cloudft.errors import (
    Busy,
    CloudftError,
    ConfigError,
    DataError,
    IntegrityError,
    NotFound,
    UsageError,
)
from local.endpoint import Endpoint
from local.evaluate import evaluate_run, read_holdout, version_of
from local.files import sha256_file
from local.progress import silent
from local.results import Evaluation
from local.serve_process import serve_in_process
from local.task import Task
from local.versions import promote
from tests.local.serve_fixtures import LOOP, SCHEMA, TEMPLATE, Trained, make_trained, write_rows

BUG = {"category": "bug", "priority": "high"}
BILLING = {"category": "billing", "priority": "low"}
# The last character of a question chooses the answer.
ROWS: list[tuple[str, Any]] = [
    ("It crashes. a", BUG),
    ("It crashes, too. b", BUG),
    ("I want my money back. c", BILLING),
    ("Refund\u2028me. d", BILLING),
    ("Where is my invoice? e", BILLING),
    ("Hello? z", BUG),
]
BEFORE = {
    "a": "Sure, that is a bug!",
    "b": f"```json\n{json.dumps(BUG)}\n```",
    "c": json.dumps({"class": "billing"}),
    "d": json.dumps(BILLING) + " ",
    "e": json.dumps(BILLING) + "\n I hope this helps.",
    "z": LOOP,
}
AFTER = {
    "a": json.dumps(BUG),
    "b": json.dumps({**BUG, "priority": "low"}),
    "c": json.dumps(BILLING, indent=1),
    "d": json.dumps({**BILLING, "priority": "urgent"}),
    "e": json.dumps(BILLING) + "  ",
    "z": LOOP,
}


@pytest.fixture
def trained(tmp_path: Path) -> Trained:
    return make_trained(tmp_path, ROWS, BEFORE, AFTER)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Evaluation]:
    """One evaluation, for the tests that only look at it."""
    trained = make_trained(tmp_path_factory.mktemp("done"), ROWS, BEFORE, AFTER)
    return trained, evaluate_run(trained.project, trained.run, progress=silent)


def written(trained: Trained) -> dict[str, bytes]:
    """Every file of the run by name, but the lock."""
    return {p.name: p.read_bytes() for p in trained.run.root.iterdir() if p.is_file() and p.name != ".eval.lock"}


def outputs(trained: Trained, label: str) -> list[dict[str, Any]]:
    lines = (trained.run.root / f"outputs-{label}.jsonl").read_bytes().split(b"\n")
    return [json.loads(line) for line in lines if line]


def test_before_and_after_are_measured_as_the_answers_deserve(done: tuple[Trained, Evaluation]) -> None:
    trained, result = done
    assert result.n == 6
    # Worked out by hand from the tables above.
    assert result.before == {
        "schema_valid": 1 / 6,
        "exact_match": 1 / 6,
        "exact_match.category": 1 / 6,
        "exact_match.priority": 1 / 6,
    }
    assert result.after == {
        "schema_valid": 4 / 6,
        "exact_match": 3 / 6,
        "exact_match.category": 5 / 6,
        "exact_match.priority": 3 / 6,
    }
    document = json.loads(trained.run.evaluation.read_bytes())
    assert document == result.document
    assert list(document)[:3] == ["n", "before", "after"]
    assert document["rows"] == {"gained": 3, "lost": 1, "right_both_times": 0, "wrong_both_times": 2}
    assert document["failed_requests"] == {"before": 0, "after": 0}
    assert document["held_out_rows"] == 6


def test_all_answers_are_kept_and_tell_the_same_numbers(done: tuple[Trained, Evaluation]) -> None:
    trained, result = done
    for label, table, rates in (("before", BEFORE, result.before), ("after", AFTER, result.after)):
        rows = outputs(trained, label)
        assert [r["answer"] for r in rows[:5]] == [table[q[-1]] for q, _ in ROWS[:5]]
        assert [r["row"] for r in rows] == [1, 2, 3, 4, 5, 6]
        assert [r["expected"] for r in rows] == [e for _, e in ROWS]
        assert sum(r["schema_valid"] for r in rows) / 6 == rates["schema_valid"]
        assert sum(r["exact_match"] for r in rows) / 6 == rates["exact_match"]
        assert sum(r["keys"]["category"] for r in rows) / 6 == rates["exact_match.category"]
        assert rows[5]["finish"] == "length"
        assert rows[5]["completion_tokens"] == 16
        digest = hashlib.sha256((trained.run.root / f"outputs-{label}.jsonl").read_bytes()).hexdigest()
        assert result.document["outputs_sha256"][label] == digest
    assert [r["prompt_sha256"] for r in outputs(trained, "before")] == [
        r["prompt_sha256"] for r in outputs(trained, "after")
    ]


def test_the_models_are_named_by_what_they_hold(done: tuple[Trained, Evaluation]) -> None:
    trained, result = done
    models = result.document["models"]
    for label, gguf in (("before", trained.base), ("after", trained.tuned)):
        assert models[label]["sha256"] == sha256_file(gguf)
        assert trained.project.root / models[label]["file"] == gguf
        assert models[label]["template_source"] == "own"
        assert models[label]["template_sha256"] == hashlib.sha256(TEMPLATE.encode()).hexdigest()
        assert models[label]["engine"] == "llama_cpp.server"


def test_the_report_shows_gains_losses_and_how_it_was_measured(done: tuple[Trained, Evaluation]) -> None:
    trained, result = done
    report = result.report.read_text()
    assert result.report == trained.run.root / "results_before_after.md"
    assert "| schema_valid | 16.7 % [3.0, 56.4] | 66.7 % [30.0, 90.3] | +50.0 points |" in report
    assert "| exact_match.category | 16.7 %" in report
    assert "n = 6 rows that training never saw (the whole hold-out)" in report
    assert "3 gained, 1 lost, 0 right both times, 2 wrong both times" in report
    assert sha256_file(trained.base) in report
    assert sha256_file(trained.tuned) in report
    lost, worst = report.index("## Lost: right before, wrong after"), report.index("## Worst failures")
    assert "Row 4: priority: 'urgent' is not one of" in report[lost:worst]
    # The farthest from right comes first: no object at all, then a broken schema, then a wrong key.
    order = [report.index(f"Row {n}:", worst) for n in (6, 4, 2)]
    assert order == sorted(order)
    assert "failed before tuning" not in report
    assert "different engines" not in report


def test_the_same_evaluation_gives_the_same_answers_again(trained: Trained) -> None:
    first = evaluate_run(trained.project, trained.run, progress=silent)
    answers = {label: outputs(trained, label) for label in ("before", "after")}
    second = evaluate_run(trained.project, trained.run, progress=silent)
    assert {label: outputs(trained, label) for label in ("before", "after")} == answers
    assert (first.before, first.after) == (second.before, second.after)
    assert first.document["outputs_sha256"] == second.document["outputs_sha256"]


def test_a_limit_uses_the_first_rows_and_says_so(trained: Trained) -> None:
    result = evaluate_run(trained.project, trained.run, progress=silent, limit=2)
    assert result.n == 2
    assert result.document["held_out_rows"] == 6
    assert "**only the first 2 of 6**" in result.report.read_text()
    with pytest.raises(UsageError):
        evaluate_run(trained.project, trained.run, progress=silent, limit=0)


def test_progress_is_told_row_by_row(trained: Trained) -> None:
    told: list[tuple[str, float, float | None]] = []

    def progress(what: str, done: float = 0, total: float | None = None, unit: str = "", note: str = "") -> None:
        told.append((what, done, total))

    evaluate_run(trained.project, trained.run, progress=progress)
    for label in ("before", "after"):
        assert [done for what, done, _ in told if what == f"evaluate {label}"] == [0, 0, 0, 1, 2, 3, 4, 5, 6]
        assert (f"evaluate {label}", 6, 6) in told


def test_a_base_without_a_template_is_asked_with_the_trained_one(tmp_path: Path) -> None:
    trained = make_trained(tmp_path, ROWS, BEFORE, AFTER, base_template=None)
    result = evaluate_run(trained.project, trained.run, progress=silent)
    assert result.before["schema_valid"] == 1 / 6
    assert result.document["models"]["before"]["template_source"] == "given"
    assert "brings no chat template" in result.report.read_text()


def test_a_row_that_does_not_fit_the_context_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    trained = make_trained(tmp_path, [*ROWS, ("x" * 300 + "a", BUG)], BEFORE, AFTER, context=128)
    before = written(trained)
    with pytest.raises(DataError, match=r"row 7.*do not fit into the context") as caught:
        evaluate_run(trained.project, trained.run, progress=silent)
    assert "serve.context" in caught.value.hint
    assert "no result was written" in caught.value.effect
    assert written(trained) == before


def test_a_request_that_fails_counts_as_wrong_and_is_shown(tmp_path: Path) -> None:
    # The base's template refuses one of the rows, as some refuse a system message: its server answers 500.
    refuses = "{% if 'Hello' in messages[0].content %}{{ raise_exception('no greetings') }}{% endif %}" + TEMPLATE
    trained = make_trained(tmp_path, ROWS, {**BEFORE, "z": json.dumps(BUG)}, AFTER, base_template=refuses)
    result = evaluate_run(trained.project, trained.run, progress=silent)
    assert result.before["exact_match"] == 1 / 6
    assert result.document["failed_requests"] == {"before": 1, "after": 0}
    failed = outputs(trained, "before")[5]
    assert failed["answer"] is None
    assert "no greetings" in failed["error"]
    assert not failed["schema_valid"]
    assert "**1 of 6 requests failed before tuning**" in result.report.read_text()


def test_a_server_that_runs_already_is_used_for_the_tuned_model(trained: Trained, tmp_path: Path) -> None:
    with serve_in_process(trained.tuned, api_key="k", context=256, log=tmp_path / "log") as endpoint:
        named = Endpoint(endpoint.url, "k", endpoint.model, "llama-server")
        result = evaluate_run(trained.project, trained.run, progress=silent, endpoint=named)
        assert result.after["exact_match"] == 3 / 6
        assert "different engines" in result.report.read_text()
        assert "POST /v1/chat/completions" in (tmp_path / "log").read_text()
        wrong = Endpoint(endpoint.url, "not k", endpoint.model, "llama-server")
        with pytest.raises(ConfigError, match="refuses the API key"):
            evaluate_run(trained.project, trained.run, progress=silent, endpoint=wrong)


def test_a_server_of_another_model_is_refused(trained: Trained, tmp_path: Path) -> None:
    before = written(trained)
    with (
        serve_in_process(trained.base, api_key="k", context=256, log=tmp_path / "log") as endpoint,
        pytest.raises(UsageError, match=f"not {trained.tuned.parent.name}"),
    ):
        evaluate_run(trained.project, trained.run, progress=silent, endpoint=endpoint)
    assert written(trained) == before


def test_a_server_that_dies_ends_the_evaluation_rather_than_failing_all_rows(trained: Trained) -> None:
    before = written(trained)

    def progress(what: str, done: float = 0, total: float | None = None, unit: str = "", note: str = "") -> None:
        if what == "evaluate after" and done == 2:
            servers()[0].kill()

    with pytest.raises(CloudftError, match=r"row 3: .*cannot be reached"):
        evaluate_run(trained.project, trained.run, progress=progress)
    assert written(trained) == before
    assert not servers()


def test_ctrl_c_leaves_no_server_and_no_file(trained: Trained) -> None:
    before = written(trained)

    def progress(what: str, done: float = 0, total: float | None = None, unit: str = "", note: str = "") -> None:
        if what == "evaluate after" and done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        evaluate_run(trained.project, trained.run, progress=progress)
    assert written(trained) == before
    assert not servers()


def test_an_earlier_result_survives_one_that_fails(trained: Trained) -> None:
    evaluate_run(trained.project, trained.run, progress=silent)
    before = written(trained)
    trained.tuned.write_bytes(trained.tuned.read_bytes()[:-32] + bytes(32))
    trained.base.write_bytes(b"x" * trained.base.stat().st_size)
    with pytest.raises(IntegrityError, match="not the file that was made and verified"):
        evaluate_run(trained.project, trained.run, progress=silent)
    assert written(trained) == before


FILL = """
import resource, sys
from pathlib import Path
from local.evaluate import evaluate_run
from local.progress import silent
from local.results import Evaluation
from local.project import Project
project = Project(Path(sys.argv[1]))
def progress(what, done=0, total=None, unit="", note=""):
    if what == "evaluate after" and done == 6:
        # From here on no file can grow beyond 100 bytes, as on a full disk.
        import signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
evaluate_run(project, project.run(sys.argv[2]), progress=progress)
"""


def test_a_disk_that_fills_up_leaves_the_earlier_result(trained: Trained, repo: Path) -> None:
    evaluate_run(trained.project, trained.run, progress=silent)
    before = written(trained)
    command = [sys.executable, "-c", FILL, str(trained.project.root), trained.run.run_id]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "File too large" in done.stderr
    assert written(trained) == before


def test_two_evaluations_of_one_run_do_not_mix(trained: Trained) -> None:
    with FileLock(trained.run.root / ".eval.lock"), pytest.raises(Busy, match="being evaluated already"):
        evaluate_run(trained.project, trained.run, progress=silent)


def test_a_run_without_a_version_is_told_what_to_do(trained: Trained) -> None:
    other = trained.project.run("r20260102-000000-other")
    with pytest.raises(NotFound, match="no served file yet") as caught:
        version_of(trained.project, other)
    assert "cloudft quantize" in caught.value.hint


def test_an_older_runs_version_is_measured_even_if_another_is_served(trained: Trained) -> None:
    newer = make_trained(trained.project.root, ROWS, BEFORE, AFTER, run_id="r20260102-000000-newer")
    assert version_of(trained.project, trained.run).gguf == trained.tuned
    assert version_of(trained.project, newer.run).gguf.samefile(newer.tuned)
    promote(trained.project, trained.tuned.parent.name)
    assert version_of(trained.project, newer.run).gguf == newer.tuned


TASK = Task(kind="json", json_schema=SCHEMA, keys=("category",), max_tokens=8)


def line(content: Any = None, **more: Any) -> str:
    expected = json.dumps(BUG) if content is None else content
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": expected}]
    return json.dumps({"messages": messages, **more})


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("{broken", "line 2: this is no conversation"),
        ("[]", "line 2: this is no conversation"),
        ('{"prompt": "x"}', "line 2: this is no conversation"),
        ('{"messages": []}', "line 2: this is no conversation"),
        ('{"messages": [{"role": "assistant", "content": "{}"}]}', "line 2: the last message must be the expected"),
        (json.dumps({"messages": [{"role": "user", "content": "q"}] * 2}), "line 2: the last message must be"),
        (line("Sure!"), "line 2: the expected answer does not keep to the task's schema: not JSON"),
        (line('{"category": "bug"}'), "line 2: .*'priority' is a required property"),
        ("\udcff", "line 2: this is no conversation"),
    ],
)
def test_a_broken_hold_out_is_named_by_line(tmp_path: Path, second: str, message: str) -> None:
    path = tmp_path / "holdout.jsonl"
    path.write_text(f"{line()}\n{second}\n", errors="surrogateescape")
    with pytest.raises(DataError, match=message) as caught:
        read_holdout(path, sha256_file(path), TASK)
    assert "no result was written" in caught.value.effect


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_hold_out_is_nothing_to_measure(tmp_path: Path, text: str) -> None:
    path = tmp_path / "holdout.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match="nothing to measure"):
        read_holdout(path, sha256_file(path), TASK)


def test_a_missing_hold_out_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no hold-out"):
        read_holdout(tmp_path / "holdout.jsonl", "0" * 64, TASK)


def test_a_hold_out_that_was_changed_after_submit_is_refused(trained: Trained) -> None:
    write_rows(trained.run.holdout, ROWS[:3])
    with pytest.raises(IntegrityError, match="was changed after submit"):
        evaluate_run(trained.project, trained.run, progress=silent)


def test_answers_that_no_utf8_can_hold_are_kept_escaped(tmp_path: Path) -> None:
    trained = make_trained(tmp_path, ROWS[:1], BEFORE, {**AFTER, "a": '{"category": "\\ud800", "x": 1}'})
    evaluate_run(trained.project, trained.run, progress=silent)
    row = outputs(trained, "after")[0]
    assert row["parsed"]["category"] == "\ud800"
    assert not row["schema_valid"]


def servers() -> list[psutil.Process]:
    found = psutil.Process().children()
    return [p for p in found if p.status() != psutil.STATUS_ZOMBIE and any("serve_child" in c for c in p.cmdline())]
