"""Each kind of task measured for real: files, servers, answers, numbers. And what can be asked for besides."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from cloudft.cli import run
from cloudft.errors import ConfigError, Interrupted, UsageError
from local.evaluation.document.eval_json import read_document
from local.evaluation.document.outputs import read_outputs
from local.evaluation.endpoint import Endpoint
from local.evaluation.evaluate import evaluate_run
from local.evaluation.measuring import Settings
from local.evaluation.results import Evaluation
from local.evaluation.task import ClassificationTask, CodeTask, ToolsTask
from local.progress import silent
from local.report.write import write_report
from tests.local.evaluation.endpoint_double import KEY, MODEL, EndpointDouble
from tests.local.serve_fixtures import Trained, make_trained

LABELS = [("Money back. a", "refund"), ("Broken. b", "bug"), ("Again. c", "bug"), ("Why? d", "other")]
WRONG = {"a": "refund", "b": "I think: bug", "c": "other", "d": "bug"}
RIGHT = {"a": "refund", "b": "bug", "c": "bug ", "d": "bug"}
TASK = ClassificationTask(labels=("refund", "bug", "other"), max_tokens=16)
OWN = """
def polite(answer, expected, row):
    return answer == expected

def length(answer, expected, row):
    return {"characters": len(answer), "row": row["number"]}
"""


def report_of(trained: Trained) -> str:
    """The report that comes with the evaluation, without the escapes of Markdown."""
    written = write_report(trained.project, trained.run)
    return (written.folder / "report.md").read_text(encoding="utf-8").replace("\\", "")


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Evaluation]:
    folder = tmp_path_factory.mktemp("labels")
    trained = make_trained(folder, LABELS, WRONG, RIGHT, task=TASK, metric=["mine.py:polite", "mine.py:length"])
    (folder / "mine.py").write_text(OWN)
    return trained, evaluate_run(trained.project, trained.run, progress=silent)


def test_labels_and_a_metric_of_the_users_own(labels: tuple[Trained, Evaluation]) -> None:
    trained, result = labels
    # Worked out by hand: before, refund is right, bug never, other never; after, bug is answered three times.
    assert result.before == {
        "accuracy": 1 / 4,
        "macro_f1": (1 + 0 + 0) / 3,
        "valid": 3 / 4,
        "polite": 1 / 4,
        "length.characters": (6 + 12 + 5 + 3) / 4,
        "length.row": 2.5,
    }
    assert result.after["macro_f1"] == pytest.approx((1 + 4 / 5 + 0) / 3)
    assert (result.after["accuracy"], result.after["polite"]) == (3 / 4, 2 / 4)
    matrix = result.document.sides["before"].confusion["label"]
    assert matrix.counts == ((1, 0, 0, 0, 0), (0, 0, 1, 1, 0), (0, 1, 0, 0, 0))
    assert result.document.task.kind == "classification"
    assert list(result.document.task.code_sha256) == ["mine.py"]
    assert result.document.metrics["polite"].unit == "share"
    assert result.document.comparisons["length.characters"].test == "paired bootstrap"
    assert "small-holdout" in [warning.code for warning in result.document.warnings]
    lines = read_outputs(trained.run, result.document.sides["before"].outputs)
    assert lines[1].score["length.characters"] == 12
    assert (lines[1].expected, lines[1].answer) == ("bug", "I think: bug")
    assert "| length.characters |" in report_of(trained)


def test_a_metric_can_be_thought_of_later_and_asks_nothing_again(labels: tuple[Trained, Evaluation]) -> None:
    trained, first = labels
    mine = trained.project.root / "mine.py"
    mine.write_text(OWN.replace("answer == expected", "'u' in answer"))
    again = evaluate_run(trained.project, trained.run, progress=silent)
    assert [side.usage.cached for side in again.document.sides.values()] == [4, 4]
    assert again.before["polite"] == 3 / 4
    assert again.document.task.code_sha256 != first.document.task.code_sha256
    mine.write_text(OWN.replace("answer == expected", "1 / 0"))
    before = trained.run.evaluation.read_bytes()
    with pytest.raises(ConfigError, match="failed on hold-out row 1: ZeroDivisionError"):
        evaluate_run(trained.project, trained.run, progress=silent)
    assert trained.run.evaluation.read_bytes() == before
    mine.write_text(OWN.replace("polite", "accuracy"))
    config = trained.project.config_file
    config.write_text(config.read_text().replace("polite", "accuracy"))
    with pytest.raises(ConfigError, match="name of a metric that there is already"):
        evaluate_run(trained.project, trained.run, progress=silent)
    config.write_text(config.read_text().replace("accuracy", "polite"))
    mine.write_text(OWN)


class CommandLine:
    """``cloudft eval`` as it is typed, in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, trained: Trained, *args: str) -> tuple[int, str, str]:
        code = run(["eval", "-C", str(trained.project.root), *args])
        return code, *self._capsys.readouterr()


@pytest.fixture
def cloudft(capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(capsys)


def test_the_command_prints_the_table_the_sentence_and_what_weakens_it(
    labels: tuple[Trained, Evaluation], cloudft: CommandLine
) -> None:
    trained, result = labels
    code, out, err = cloudft(trained, "--workers", "2")
    assert code == 0
    said = out.splitlines()
    assert said[0].split() == ["4", "held-out", "examples", "before", "after", "change"]
    assert said[1].split() == ["accuracy", "25.0%", "[4.6,", "69.9]", "75.0%", "[30.1,", "95.4]", "+50.0"]
    assert result.document.verdict.sentence in said
    small = "note: The hold-out is too small: 4 rows cannot show any change, not even one of all rows."
    assert any(line.startswith(small) for line in said)
    assert "eval.json" in err
    assert json.loads(cloudft(trained, "--json")[1])["data"] == read_document(trained.run).as_dict()
    code, _, err = cloudft(trained, "--repeat", "2")
    assert code == UsageError.exit_code
    assert "at temperature 0 every repeat" in err
    assert cloudft(trained, "--endpoint", "nowhere")[0] == UsageError.exit_code


def test_repeats_with_chance_have_a_mean_and_a_spread(labels: tuple[Trained, Evaluation]) -> None:
    trained, _ = labels
    settings = Settings(repeats=3, temperature=0.9, seed=5)
    result = evaluate_run(trained.project, trained.run, progress=silent, settings=settings)
    document = result.document
    assert (document.decoding.temperature, document.decoding.seeds) == (0.9, (5, 6, 7))
    accuracy = document.sides["after"].metrics["accuracy"]
    assert len(accuracy.per_repeat) == 3
    assert accuracy.value == pytest.approx(sum(accuracy.per_repeat) / 3)
    assert accuracy.spread is not None
    assert accuracy.method in ("bootstrap", "wilson")
    lines = read_outputs(trained.run, document.sides["after"].outputs)
    assert [(line.repeat, line.row) for line in lines] == [(repeat, row) for repeat in range(3) for row in (1, 2, 3, 4)]
    assert len({line.seed for line in lines}) == 12
    before = read_outputs(trained.run, document.sides["before"].outputs)
    assert [line.seed for line in before] == [line.seed for line in lines]
    for repeat in range(3):
        hits = [line.score["accuracy"] for line in lines if line.repeat == repeat]
        assert accuracy.per_repeat[repeat] == sum(hits) / 4
    said = report_of(trained)
    assert "each row 3 times, with seeds 5, 6, 7" in said
    assert f"a standard deviation of {document.sides['before'].metrics['accuracy'].spread:.1%} before" in said


def test_ctrl_c_keeps_what_was_answered_and_the_next_goes_on_there(tmp_path: Path) -> None:
    trained = make_trained(tmp_path, LABELS, WRONG, RIGHT, task=TASK)
    notes: list[str] = []

    def progress(what: str, done: float = 0, total: float | None = None, unit: str = "", note: str = "") -> None:
        if what == "evaluate before":
            notes.append(note)
        if what == "evaluate before" and done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match=r"3 of 4 answers were there \(accuracy 33\.3% so far\)") as caught:
        evaluate_run(trained.project, trained.run, progress=progress)
    assert "will not be asked again" in caught.value.effect
    assert "same command" in caught.value.hint
    assert "1/4, accuracy 100.0% so far" in notes
    assert not trained.run.evaluation.exists()
    assert not [p for p in psutil.Process().children() if any("serve_child" in part for part in p.cmdline())]
    result = evaluate_run(trained.project, trained.run, progress=silent)
    assert [side.usage.cached for side in result.document.sides.values()] == [3, 0]


def test_another_model_by_its_endpoint_in_place_of_the_base(
    labels: tuple[Trained, Evaluation], cloudft: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, _ = labels
    before = trained.run.evaluation.read_bytes()
    with EndpointDouble({**RIGHT, "d": "other"}) as double:
        result = evaluate_run(trained.project, trained.run, progress=silent, against=double.endpoint)
        assert double.most_at_once <= 4
        other = Endpoint(double.url, KEY, "gpt", "double")
        with pytest.raises(UsageError, match=f"serves {MODEL}, not gpt"):
            evaluate_run(trained.project, trained.run, progress=silent, against=other)
        monkeypatch.setenv("SOME_KEY", KEY)
        named = ("--endpoint", double.url, "--model", MODEL, "--key-env", "SOME_KEY")
        code, out, err = cloudft(trained, *named)
    assert (result.before["accuracy"], result.after["accuracy"]) == (1, 3 / 4)
    side = result.document.sides["before"]
    assert (side.model.url, side.model.name, side.model.sha256) == (double.url, MODEL, None)
    assert "engines-differ" in [warning.code for warning in result.document.warnings]
    assert trained.run.evaluation.read_bytes() == before
    assert result.record.name == "eval-against-double.json"
    assert len(read_outputs(trained.run, side.outputs)) == 4
    assert code == 0
    assert f"Against {MODEL} at {double.url}" in report_of(trained)
    assert KEY not in out + err


TOOLS = ({"type": "function", "function": {"name": "now", "parameters": {"required": ["zone"]}}},)
CALL = {"name": "now", "arguments": {"zone": "CET"}}


def as_text(*calls: dict[str, Any]) -> str:
    return "".join(f"<tool_call>{json.dumps(call)}</tool_call>" for call in calls)


def test_calls_of_tools(tmp_path: Path) -> None:
    rows = [
        ("Now? a", as_text(CALL)),
        ("Hi. b", "Hello!"),
        ("Both? c", as_text(CALL, {**CALL, "arguments": {"zone": "UTC"}})),
    ]
    before = {"a": "It is noon.", "b": "Hello.", "c": as_text({"name": "later", "arguments": {}})}
    after = {"a": as_text(CALL), "b": as_text({"name": "now", "arguments": {}}), "c": "<tool_call>{"}
    task = ToolsTask(tools=TOOLS, send=True, max_tokens=32)
    trained = make_trained(tmp_path, rows, before, after, task=task)
    result = evaluate_run(trained.project, trained.run, progress=silent)
    assert result.before == {
        "exact_match": 1 / 3,
        "names": 1 / 3,
        "arguments": 0,
        "call_f1": 0,
        "parallel": 0,
        "no_call": 1,
        "schema_valid": 2 / 3,
    }
    assert result.after["exact_match"] == 1 / 3
    assert result.after["arguments"] == 1 / 2
    assert (result.after["no_call"], result.after["schema_valid"]) == (0, 1 / 3)
    assert result.after["call_f1"] == 2 * 1 / (3 + 2)
    lines = read_outputs(trained.run, result.document.sides["after"].outputs)
    assert lines[0].expected == [CALL]
    assert lines[1].problem == "now: 'zone' is a required property"


def test_a_metric_that_no_row_is_about_is_no_verdict(tmp_path: Path) -> None:
    """A task of an older submit, which looked at less."""
    task = ToolsTask(tools=TOOLS, max_tokens=32, primary="call_f1")
    trained = make_trained(tmp_path, [("Hi. b", "Hello!")], {"b": "Hello."}, {"b": "Hello!"}, task=task)
    with pytest.raises(ConfigError, match="call_f1 does not apply to any row") as caught:
        evaluate_run(trained.project, trained.run, progress=silent)
    assert "no_call" in caught.value.hint
    assert "call_f1" not in caught.value.hint


FIM = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")


def test_code_in_the_middle(tmp_path: Path) -> None:
    rows = [("def f(x):\n    <FILL>\n\nprint(f(1))", "return x"), ("def g(x):\n    <FILL>\n", "return g")]
    task = CodeTask(language="python", max_tokens=32)
    trained = make_trained(tmp_path, rows, {FIM[2]: "retur x"}, {FIM[2]: "return x"}, task=task, special=FIM)
    result = evaluate_run(trained.project, trained.run, progress=silent)
    assert result.before == {"exact_match": 0, "edit_similarity": pytest.approx((7 / 8 + 6 / 8) / 2), "syntax_valid": 0}
    assert result.after == {"exact_match": 1 / 2, "edit_similarity": pytest.approx((1 + 7 / 8) / 2), "syntax_valid": 1}
    without = make_trained(tmp_path / "b", rows, {"a": "one"}, {"a": "two"}, task=task)
    with pytest.raises(ConfigError, match="names no tokens for fill-in-the-middle") as caught:
        evaluate_run(without.project, without.run, progress=silent)
    assert "task.ask" in caught.value.hint
