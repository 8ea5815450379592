"""The section ``task``: one set of keys per kind, checked before anything costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cloudft.errors import CloudftError, ConfigError, DataError, IntegrityError
from local.config import Config, json_schema, load_config
from local.evaluation.task import (
    ClassificationTask,
    CodeTask,
    JsonTask,
    TextTask,
    ToolsTask,
    check_rows,
    load_task,
    read_task,
)
from local.planning.data import Message, Row

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}, "required": ["a"]}
TOOLS = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}]
WHOLE: dict[str, Any] = {"project": "p", "base": "org/model", "data": {"path": "d.jsonl"}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "mine.py").write_text("def score(answer, expected, row): return 1")
    return tmp_path


def config(root: Path, **task: Any) -> Config:
    path = root / "cloudft.yaml"
    path.write_text(yaml.safe_dump(WHOLE | {"task": task}))
    return load_config(path)


def rows(*answers: str, prompt: str = "q") -> list[Row]:
    return [Row((Message("user", prompt), Message("assistant", a)), n) for n, a in enumerate(answers, start=1)]


@pytest.mark.parametrize(
    ("task", "loaded"),
    [
        ({"schema": "schema.json"}, JsonTask(json_schema=SCHEMA, keys=("a", "b"), max_tokens=256)),
        (
            {"kind": "json", "schema": "schema.json", "keys": ["b"], "max_tokens": 7, "primary": "schema_valid"},
            JsonTask(json_schema=SCHEMA, keys=("b",), max_tokens=7, primary="schema_valid"),
        ),
        ({"kind": "classification"}, ClassificationTask(labels=("x", "y"), max_tokens=256)),
        (
            {"kind": "classification", "labels": ["y", "x"], "label_key": "class"},
            ClassificationTask(labels=("y", "x"), label_key="class", max_tokens=256),
        ),
        ({"kind": "tools"}, ToolsTask(max_tokens=256)),
        (
            {"kind": "tools", "tools": "tools.json", "send": True},
            ToolsTask(tools=tuple(TOOLS), send=True, max_tokens=256),
        ),
        ({"kind": "text", "metrics": ["chrf"]}, TextTask(metrics=("chrf",), max_tokens=256)),
        ({"kind": "text", "metric": "mine.py:score", "primary": "score"}, TextTask(max_tokens=256, primary="score")),
        ({"kind": "code", "language": "python"}, CodeTask(language="python", max_tokens=256)),
        ({"kind": "code", "fim": ["<P>", "<S>", "<M>"]}, CodeTask(fim=("<P>", "<S>", "<M>"), max_tokens=256)),
    ],
)
def test_every_kind_is_read_and_frozen(root: Path, task: dict[str, Any], loaded: Any) -> None:
    assert jsonschema.Draft202012Validator(json_schema()).is_valid(WHOLE | {"task": task})
    found = load_task(config(root, **task).task, root, rows("x", "y", "x"))
    assert found == loaded
    assert found.scorer().metrics
    (root / "task.json").write_text(found.model_dump_json())
    assert read_task(root / "task.json") == found


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ({"kind": "classification", "lables": ["a", "b"]}, "task.lables: unknown key; did you mean 'labels'?"),
        ({"kind": "tools", "schema": "s.json"}, "task.schema: unknown key; known keys: "),
        ({"kind": "text", "metrics": ["rouge"]}, "task.metrics.0: "),
        ({"shema": "s.json"}, "task.shema: unknown key; did you mean 'schema'?"),
        ({"kind": "clasification"}, "task.kind: did you mean 'classification'?"),
        ({"kind": ["json"]}, "task.kind: "),
        ({"kind": "poetry"}, "task.kind: known kinds: json, classification, tools, text, code"),
        ({"kind": "code", "fim": ["a", "b"]}, "task.fim"),
        ({"kind": "classification", "labels": ["one"]}, "task.labels"),
        ({}, "task.schema: field required"),
    ],
)
def test_a_wrong_key_gets_the_right_one_of_its_kind(root: Path, task: dict[str, Any], says: str) -> None:
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(WHOLE | {"task": task})
    with pytest.raises(ConfigError) as caught:
        config(root, **task)
    assert says in caught.value.what


def test_a_task_that_is_no_mapping_is_refused(root: Path) -> None:
    (root / "cloudft.yaml").write_text(yaml.safe_dump(WHOLE | {"task": "json"}))
    with pytest.raises(ConfigError, match="task"):
        load_config(root / "cloudft.yaml")


@pytest.mark.parametrize(
    ("task", "error", "says"),
    [
        ({"schema": "gone.json"}, ConfigError, "gone.json is not there"),
        ({"schema": "broken.json"}, ConfigError, "no JSON"),
        ({"schema": "list.json"}, ConfigError, "no JSON schema"),
        ({"schema": "schema.json", "keys": ["c"]}, ConfigError, "c not in"),
        ({"schema": "schema.json", "primary": "accuracy"}, ConfigError, "no metric 'accuracy'; there are schema_valid"),
        ({"schema": "schema.json", "metric": "gone.py:score"}, ConfigError, "gone.py is not there"),
        ({"kind": "classification", "labels": ["a", "a"]}, ConfigError, "stands there twice"),
        ({"kind": "classification", "label_key": "class"}, DataError, "no label"),
        ({"kind": "tools", "tools": "list.json"}, ConfigError, "must be a list of"),
        ({"kind": "tools", "tools": "gone.json"}, ConfigError, "gone.json is not there"),
        ({"kind": "tools", "send": True}, ConfigError, "nothing to send"),
    ],
)
def test_what_the_files_say_is_checked(root: Path, task: dict[str, Any], error: type[CloudftError], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        load_task(config(root, **task).task, root, rows('{"label": "x"}'))
    assert "nothing was started" in caught.value.effect


def test_one_label_is_no_classification(root: Path) -> None:
    with pytest.raises(DataError, match="fewer than two"):
        load_task(config(root, kind="classification").task, root, rows("x", "x"))


def test_held_out_rows_that_cannot_be_measured_are_named_before_it_costs(root: Path) -> None:
    task = load_task(config(root, schema="schema.json").task, root)
    check_rows(task, rows('{"a": 1}'))
    with pytest.raises(DataError) as caught:
        check_rows(task, rows('{"a": 1}', *["Sure!"] * 7, '{"a": "1"}'))
    assert "8 held-out rows cannot be measured as a json task:\n  line 2: " in caught.value.what
    assert "… and 3 more" in caught.value.what
    code = load_task(config(root, kind="code").task, root)
    check_rows(code, rows("x", prompt="a<FILL>b"))
    with pytest.raises(DataError, match="line 1: the hole"):
        check_rows(code, rows("x"))


CALL = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'


@pytest.mark.parametrize(
    ("primary", "fit", "unfit"),
    [("parallel", [CALL * 2, "Hi."], [CALL, "Hi."]), ("no_call", ["Hi."], [CALL]), ("call_f1", [CALL], ["Hi.", "No."])],
)
def test_a_metric_that_is_about_no_row_cannot_decide(
    root: Path, primary: str, fit: list[str], unfit: list[str]
) -> None:
    """The task is frozen at submit: later it could not be changed any more, and nothing be measured."""
    task = load_task(config(root, kind="tools", tools="tools.json", primary=primary).task, root)
    check_rows(task, rows(*fit))
    with pytest.raises(ConfigError, match=f"task.primary: {primary} is about none of the {len(unfit)} held-out rows"):
        check_rows(task, rows(*unfit))


@pytest.mark.parametrize("text", ["", "{}", '{"kind": "poetry"}', "[1]"])
def test_a_damaged_task_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "task.json").write_text(text)
    with pytest.raises(IntegrityError, match=r"task\.json"):
        read_task(tmp_path / "task.json")
