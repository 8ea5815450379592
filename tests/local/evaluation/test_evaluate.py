"""Evaluation, from the hold-out to the report, through real servers of models whose answers are known."""

from __future__ import annotations

import hashlib
import json
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
    EnvironmentProblem,
    IntegrityError,
    NotFound,
    UsageError,
)
from local.evaluation.document.eval_json import read_document
from local.evaluation.document.measurement import Label
from local.evaluation.document.outputs import read_outputs
from local.evaluation.endpoint import Endpoint
from local.evaluation.evaluate import evaluate_run, version_of
from local.evaluation.holdout import read_holdout
from local.evaluation.measuring import Settings
from local.evaluation.results import Evaluation
from local.evaluation.task import JsonTask
from local.files import sha256_file
from local.progress import silent
from local.serving.serve_process import serve_in_process
from local.serving.versions import promote
from tests.local.evaluation.recompute import assert_recomputed
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


Told = list[tuple[str, float, float | None, str]]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Evaluation, Told]:
    """One evaluation, with what was told on the way, for the tests that only look at it."""
    trained = make_trained(tmp_path_factory.mktemp("done"), ROWS, BEFORE, AFTER)
    told: Told = []

    def progress(what: str, done: float = 0, total: float | None = None, unit: str = "", note: str = "") -> None:
        told.append((what, done, total, note))

    return trained, evaluate_run(trained.project, trained.run, progress=progress), told


@pytest.fixture(scope="module")
def done(told: tuple[Trained, Evaluation, Told]) -> tuple[Trained, Evaluation]:
    return told[:2]


def written(trained: Trained) -> dict[str, bytes]:
    """Every file of the run by name, but the lock."""
    return {p.name: p.read_bytes() for p in trained.run.root.iterdir() if p.is_file() and p.name != ".eval.lock"}


def outputs(trained: Trained, label: str) -> list[dict[str, Any]]:
    lines = (trained.run.root / f"outputs-{label}.jsonl").read_bytes().split(b"\n")
    return [json.loads(line) for line in lines if line]


def untimed(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name != "latency"} for line in lines]


def notes(result: Evaluation) -> str:
    """What a reader is told before the numbers."""
    return " ".join(warning.text for warning in result.document.warnings)


def test_before_and_after_are_measured_as_the_answers_deserve(done: tuple[Trained, Evaluation]) -> None:
    trained, result = done
    assert result.n == 6
    # Worked out by hand from the tables above.
    assert result.before == {
        "schema_valid": 1 / 6,
        "exact_match": 1 / 6,
        "field_f1": 2 * 2 / (12 + 2),
        "exact_match.category": 1 / 6,
        "exact_match.priority": 1 / 6,
    }
    assert result.after == {
        "schema_valid": 4 / 6,
        "exact_match": 3 / 6,
        "field_f1": 2 * 8 / (12 + 10),
        "exact_match.category": 5 / 6,
        "exact_match.priority": 3 / 6,
    }
    document = json.loads(trained.run.evaluation.read_bytes())
    assert list(document)[:3] == ["n", "before", "after"]
    assert read_document(trained.run) == result.document
    assert document["changes"] == {"gained": 3, "lost": 1, "right_both_times": 0, "wrong_both_times": 2}
    assert [side["usage"]["failed"] for side in document["sides"].values()] == [0, 0]
    assert document["held_out_rows"] == 6


def test_all_answers_are_kept_and_tell_the_same_numbers(done: tuple[Trained, Evaluation]) -> None:
    trained, result = done
    sides: list[tuple[Label, dict[str, str], dict[str, float]]] = [
        ("before", BEFORE, result.before),
        ("after", AFTER, result.after),
    ]
    for label, table, rates in sides:
        rows = outputs(trained, label)
        assert [r["answer"] for r in rows[:5]] == [table[q[-1]] for q, _ in ROWS[:5]]
        assert [r["row"] for r in rows] == [1, 2, 3, 4, 5, 6]
        assert [r["expected"] for r in rows] == [e for _, e in ROWS]
        for name in ("schema_valid", "exact_match", "exact_match.category"):
            assert sum(r["score"][name] for r in rows) / 6 == rates[name]
        assert rows[5]["finish"] == "length"
        assert rows[5]["completion_tokens"] == 16
        digest = hashlib.sha256((trained.run.root / f"outputs-{label}.jsonl").read_bytes()).hexdigest()
        ref = result.document.sides[label].outputs
        assert ref.sha256 == digest
        assert len(read_outputs(trained.run, ref)) == 6
    assert [r["prompt_sha256"] for r in outputs(trained, "before")] == [
        r["prompt_sha256"] for r in outputs(trained, "after")
    ]


def test_every_number_is_what_the_answers_say(done: tuple[Trained, Evaluation]) -> None:
    trained, result = done
    assert assert_recomputed(trained.run) == result.document


def test_the_models_are_named_by_what_they_hold(done: tuple[Trained, Evaluation]) -> None:
    trained, result = done
    for side, gguf in zip(result.document.sides.values(), (trained.base, trained.tuned), strict=True):
        model = side.model
        assert model.sha256 == sha256_file(gguf)
        assert model.file is not None
        assert trained.project.root / model.file == gguf
        assert model.template_source == "own"
        assert model.template_sha256 == hashlib.sha256(TEMPLATE.encode()).hexdigest()
        assert model.engine == "llama_cpp.server"
        assert model.lineage is not None
        assert model.lineage.version == gguf.parent.name
    after = result.document.sides["after"].model.lineage
    assert after is not None
    assert after.run_id == trained.run.run_id


def test_the_same_evaluation_gives_the_same_answers_again(done: tuple[Trained, Evaluation]) -> None:
    trained, first = done
    answers = {label: untimed(outputs(trained, label)) for label in ("before", "after")}
    second = evaluate_run(trained.project, trained.run, progress=silent, settings=Settings(use_cache=False))
    assert [side.usage.cached for side in second.document.sides.values()] == [0, 0]
    assert {label: untimed(outputs(trained, label)) for label in ("before", "after")} == answers
    assert (first.before, first.after) == (second.before, second.after)
    assert {w: side.model for w, side in first.document.sides.items()} == {
        w: side.model for w, side in second.document.sides.items()
    }


def test_what_was_answered_is_not_asked_again_and_no_server_is_started(done: tuple[Trained, Evaluation]) -> None:
    trained, first = done
    notes: list[str] = []

    def progress(what: str, done: float = 0, total: float | None = None, unit: str = "", note: str = "") -> None:
        notes.append(note)

    again = evaluate_run(trained.project, trained.run, progress=progress)
    assert "start the server" not in notes
    for label, side in again.document.sides.items():
        assert (side.usage.cached, side.usage.workers) == (6, 0)
        assert side.model == first.document.sides[label].model
        assert side.outputs == first.document.sides[label].outputs


def test_a_limit_uses_the_first_rows_and_says_so(done: tuple[Trained, Evaluation]) -> None:
    """With the answers of the whole evaluation at hand."""
    trained, _ = done
    result = evaluate_run(trained.project, trained.run, progress=silent, settings=Settings(limit=2))
    assert result.n == 2
    assert [side.usage.cached for side in result.document.sides.values()] == [2, 2]
    assert result.document.held_out_rows == 6
    assert "Only the first 2 of 6 held-out rows were used." in notes(result)
    with pytest.raises(UsageError):
        evaluate_run(trained.project, trained.run, progress=silent, settings=Settings(limit=0))


def test_progress_is_told_row_by_row(told: tuple[Trained, Evaluation, Told]) -> None:
    for label in ("before", "after"):
        mine = [(done, total, note) for what, done, total, note in told[2] if what == f"evaluate {label}"]
        assert [done for done, _, _ in mine] == [0, 0, 0, 1, 2, 3, 4, 5, 6]
        assert {total for _, total, _ in mine} == {6}
    assert mine[-1][2] == "6/6, exact_match 50.0% so far"


def test_a_base_without_a_template_is_asked_with_the_trained_one(tmp_path: Path) -> None:
    trained = make_trained(tmp_path, ROWS, BEFORE, AFTER, base_template=None)
    result = evaluate_run(trained.project, trained.run, progress=silent)
    assert result.before["schema_valid"] == 1 / 6
    assert result.document.sides["before"].model.template_source == "given"
    assert "template-given" in [warning.code for warning in result.document.warnings]
    assert "brings no chat template" in notes(result)


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
    assert [side.usage.failed for side in result.document.sides.values()] == [1, 0]
    failed = outputs(trained, "before")[5]
    assert failed["answer"] is None
    assert "no greetings" in failed["error"]
    assert failed["score"]["schema_valid"] == 0
    assert_recomputed(trained.run)
    assert "1 of 6 requests failed before tuning" in notes(result)


def test_a_server_that_runs_already_is_used_for_the_tuned_model(trained: Trained, tmp_path: Path) -> None:
    with serve_in_process(trained.tuned, api_key="k", context=256, log=tmp_path / "log") as endpoint:
        named = Endpoint(endpoint.url, "k", endpoint.model, "llama-server")
        result = evaluate_run(trained.project, trained.run, progress=silent, endpoint=named)
        assert result.after["exact_match"] == 3 / 6
        assert "different engines" in notes(result)
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


FILL = """
import resource, sys
from pathlib import Path
from local.evaluation.evaluate import evaluate_run
from local.progress import silent
from local.evaluation.results import Evaluation
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


def test_an_earlier_result_survives_a_full_disk_and_a_damaged_model(trained: Trained, repo: Path) -> None:
    evaluate_run(trained.project, trained.run, progress=silent)
    before = written(trained)
    command = [sys.executable, "-c", FILL, str(trained.project.root), trained.run.run_id]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "File too large" in done.stderr
    assert written(trained) == before
    trained.tuned.write_bytes(b"x" * trained.tuned.stat().st_size)
    with pytest.raises(IntegrityError, match="not the file that was made and verified"):
        evaluate_run(trained.project, trained.run, progress=silent)
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


SCORER = JsonTask(json_schema=SCHEMA, keys=("category",), max_tokens=8).scorer()


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
        read_holdout(path, sha256_file(path), SCORER)
    assert "no result was written" in caught.value.effect


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_hold_out_is_nothing_to_measure(tmp_path: Path, text: str) -> None:
    path = tmp_path / "holdout.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match="nothing to measure"):
        read_holdout(path, sha256_file(path), SCORER)


def test_a_missing_hold_out_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no hold-out"):
        read_holdout(tmp_path / "holdout.jsonl", "0" * 64, SCORER)


def test_a_hold_out_that_was_changed_after_submit_is_refused(trained: Trained) -> None:
    write_rows(trained.run.holdout, ROWS[:3])
    with pytest.raises(IntegrityError, match="was changed after submit"):
        evaluate_run(trained.project, trained.run, progress=silent)


def test_answers_that_no_utf8_can_hold_are_kept_escaped(tmp_path: Path) -> None:
    trained = make_trained(tmp_path, ROWS[:1], BEFORE, {**AFTER, "a": '{"category": "\\ud800", "x": 1}'})
    evaluate_run(trained.project, trained.run, progress=silent)
    row = outputs(trained, "after")[0]
    assert json.loads(row["answer"])["category"] == "\ud800"
    assert row["score"]["schema_valid"] == 0
    read_outputs(trained.run, read_document(trained.run).sides["after"].outputs)


def servers() -> list[psutil.Process]:
    found = psutil.Process().children()
    return [p for p in found if p.status() != psutil.STATUS_ZOMBIE and any("serve_child" in c for c in p.cmdline())]


def test_without_the_extra_it_says_what_to_install(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says it, rather than failing at an import; submitting needs none of it."""
    code = "import sys, local.evaluation.evaluate, local.runs.submit; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=True)
    monkeypatch.setattr("local.evaluation.evaluate.find_spec", lambda name: None)
    with pytest.raises(EnvironmentProblem, match="numpy") as caught:
        evaluate_run(trained.project, trained.run, progress=silent)
    assert "cloudft[local]" in caught.value.hint
