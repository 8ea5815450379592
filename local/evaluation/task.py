"""The task: what an answer must look like and how it is measured, frozen beside the run at submit."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, TypeAdapter

from cloudft.errors import CloudftError, ConfigError, DataError, IntegrityError
from jobs.spec import Frozen
from local.evaluation.own_metric import own_file
from local.evaluation.task_config import (
    ClassificationTaskConfig,
    CodeTaskConfig,
    JsonTaskConfig,
    TaskConfig,
    TextMetric,
    TextTaskConfig,
    ToolsTaskConfig,
)
from local.evaluation.tasks.base import Row, Scorer
from local.evaluation.tasks.classification import ClassificationScorer, labels_in
from local.evaluation.tasks.code import CodeScorer
from local.evaluation.tasks.json_object import JsonScorer
from local.evaluation.tasks.text import TextScorer
from local.evaluation.tasks.tools import ToolsScorer
from local.planning.data import Row as DataRow

NOTHING = "nothing was started and nothing was changed"
SHOWN = 5  # how many bad rows an error lists


class JsonTask(Frozen):
    """An answer is one JSON object that obeys ``json_schema``; ``keys`` are compared with the hold-out's answer."""

    kind: Literal["json"] = "json"
    json_schema: dict[str, Any]
    keys: tuple[str, ...]
    max_tokens: int
    primary: str | None = None

    def scorer(self) -> Scorer:
        return JsonScorer(self.json_schema, self.keys, self.max_tokens)


class ClassificationTask(Frozen):
    """An answer is one of ``labels``, or a JSON object with one at ``label_key``."""

    kind: Literal["classification"] = "classification"
    labels: tuple[str, ...]
    label_key: str = "label"
    rationale_key: str = "rationale"
    max_tokens: int
    primary: str | None = None

    def scorer(self) -> Scorer:
        return ClassificationScorer(self.labels, self.label_key, self.rationale_key, self.max_tokens)


class ToolsTask(Frozen):
    """An answer calls ``tools``; with ``send`` they go with every request."""

    kind: Literal["tools"] = "tools"
    tools: tuple[dict[str, Any], ...] = ()
    send: bool = False
    max_tokens: int
    primary: str | None = None

    def scorer(self) -> Scorer:
        return ToolsScorer(self.tools, self.send, self.max_tokens)


class TextTask(Frozen):
    """An answer is free text. ``metrics``: those of libraries, beside the built-in ones."""

    kind: Literal["text"] = "text"
    metrics: tuple[TextMetric, ...] = ()
    max_tokens: int
    primary: str | None = None

    def scorer(self) -> Scorer:
        return TextScorer(self.metrics, self.max_tokens)


class CodeTask(Frozen):
    """An answer fills the ``hole`` in the last message. ``fim``: tokens before prefix, suffix and middle."""

    kind: Literal["code"] = "code"
    hole: str = "<FILL>"
    ask: Literal["fim", "chat"] = "fim"
    fim: tuple[str, str, str] | None = None
    language: Literal["python"] | None = None
    max_tokens: int
    primary: str | None = None

    def scorer(self) -> Scorer:
        return CodeScorer(self.hole, self.ask, self.language, self.max_tokens)


Task = Annotated[JsonTask | ClassificationTask | ToolsTask | TextTask | CodeTask, Discriminator("kind")]
_ADAPTER: TypeAdapter[Task] = TypeAdapter(Task)


def load_task(config: TaskConfig, root: Path, rows: Iterable[DataRow] = ()) -> Task:
    """The task that ``cloudft.yaml`` describes, with what its files say.

    Args:
        rows: the data, for labels that the config does not list.

    Raises:
        ConfigError: a file is missing or not what it should be, or a setting contradicts another.
        DataError: labels are to be taken from the data, and it has none or only one.
        EnvironmentProblem: a metric's library is not installed.
    """
    try:
        for spec in config.own_metrics:
            own_file(root, spec)
        task: Task = _LOAD[type(config)](config, root, rows)
        known = task.scorer().metrics
    except CloudftError as exc:
        exc.effect = NOTHING  # it is not measuring yet
        raise
    own = [name.rpartition(":")[2] for name in config.own_metrics]
    if config.primary and config.primary not in known and not _is_own(config.primary, own):
        raise _wrong(f"task.primary: there is no metric {config.primary!r}; there are {', '.join([*known, *own])}")
    return task


def check_rows(task: Task, rows: Iterable[DataRow]) -> None:
    """Refuse, before it costs anything, a hold-out that cannot be measured as the task says.

    Raises:
        DataError: expected answers do not keep to the task; names the first few by line.
        ConfigError: the metric that is to decide is about none of the rows.
    """
    scorer = task.scorer()
    problems, held = [], []
    for row in rows:
        try:
            messages = [{"role": m.role, "content": m.content} for m in row.messages]
            held.append(expected_row(scorer, row.line, messages))
        except ValueError as exc:
            problems.append(f"  line {row.line}: {exc}")
    if problems:
        more = f"\n  … and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise DataError(
            f"{len(problems)} held-out rows cannot be measured as a {task.kind} task:\n"
            + "\n".join(problems[:SHOWN])
            + more,
            effect=NOTHING,
            hint="mend these rows of data.path, or change the section task of cloudft.yaml",
        )
    primary = task.primary
    if primary and primary in scorer.metrics and not any(_is_about(scorer, primary, row) for row in held):
        raise ConfigError(
            f"task.primary: {primary} is about none of the {len(held)} held-out rows",
            effect=NOTHING,
            hint="name another metric, or hold out rows that it is about",
        )


def _is_about(scorer: Scorer, metric: str, row: Row) -> bool:
    """Whether a row has a part in a metric whatever is answered, as an answer that never came shows."""
    missing = scorer.score(None, row)
    return metric in missing.score or any(missing.pooled.get(metric, ()))


def expected_row(scorer: Scorer, number: int, messages: list[dict[str, Any]]) -> Row:
    """A row of the hold-out, parsed. Raises ``ValueError`` that says why it does not keep to the task."""
    *prompt, answer = messages
    row = Row(number, tuple(prompt), answer["content"], scorer.expect(answer["content"]))
    if isinstance(scorer, CodeScorer):
        scorer.check(row)
    return row


def read_task(path: Path) -> Task:
    """The task as it was at submit. Raises ``IntegrityError``."""
    try:
        return _ADAPTER.validate_json(path.read_bytes())
    except (OSError, ValueError) as exc:
        raise IntegrityError(f"{path} cannot be read: {exc}", hint="restore the file, or submit again") from exc


def _is_own(primary: str, own: list[str]) -> bool:
    """A function of the user's gives a metric of its own name, or several ``name.key``."""
    return any(primary == name or primary.startswith(f"{name}.") for name in own)


def _json(config: JsonTaskConfig, root: Path, rows: Iterable[DataRow]) -> Task:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    path = root / config.json_schema
    schema = _read_json("task.schema", path)
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as exc:
        raise _wrong(f"task.schema: {path} is no JSON schema: {exc.message}") from exc
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not properties:
        raise _wrong(f"task.schema: {path} describes no object with properties")
    unknown = [key for key in config.keys or () if key not in properties]
    if unknown:
        raise _wrong(f"task.keys: {', '.join(unknown)} not in {path}")
    keys = tuple(config.keys or properties)
    return JsonTask(json_schema=schema, keys=keys, max_tokens=config.max_tokens, primary=config.primary)


def _classification(config: ClassificationTaskConfig, root: Path, rows: Iterable[DataRow]) -> Task:
    labels = tuple(config.labels or ())
    if len(set(labels)) < len(labels):
        raise _wrong("task.labels: a label stands there twice")
    if not labels:
        try:
            labels = labels_in([row.messages[-1].content for row in rows], config.label_key)
        except ValueError as exc:
            raise DataError(str(exc), effect=NOTHING, hint="list the labels as task.labels in cloudft.yaml") from exc
        if len(labels) < 2:
            raise DataError("the data has fewer than two labels", effect=NOTHING, hint="add rows, or set task.labels")
    return ClassificationTask(
        labels=labels,
        label_key=config.label_key,
        rationale_key=config.rationale_key,
        max_tokens=config.max_tokens,
        primary=config.primary,
    )


def _tools(config: ToolsTaskConfig, root: Path, rows: Iterable[DataRow]) -> Task:
    tools: Any = _read_json("task.tools", root / config.tools) if config.tools else []
    if not isinstance(tools, list) or not all(_is_tool(tool) for tool in tools):
        raise _wrong(
            f'task.tools: {config.tools} must be a list of {{"type": "function", "function": {{"name": …, '
            '"parameters": {…}}}'
        )
    if config.send and not tools:
        raise _wrong("task.send: there is nothing to send without task.tools")
    return ToolsTask(tools=tuple(tools), send=config.send, max_tokens=config.max_tokens, primary=config.primary)


def _is_tool(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
    return isinstance(function, dict) and isinstance(function.get("name"), str) and bool(function["name"])


def _text(config: TextTaskConfig, root: Path, rows: Iterable[DataRow]) -> Task:
    return TextTask(metrics=tuple(config.metrics), max_tokens=config.max_tokens, primary=config.primary)


def _code(config: CodeTaskConfig, root: Path, rows: Iterable[DataRow]) -> Task:
    return CodeTask(**config.model_dump(exclude={"metric"}))


_LOAD: dict[type[Any], Any] = {
    JsonTaskConfig: _json,
    ClassificationTaskConfig: _classification,
    ToolsTaskConfig: _tools,
    TextTaskConfig: _text,
    CodeTaskConfig: _code,
}


def _read_json(key: str, path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise ConfigError(f"{key}: {path} is not there", effect="nothing was started") from exc
    except (OSError, ValueError) as exc:
        raise _wrong(f"{key}: {path} is no JSON: {exc}") from exc


def _wrong(what: str) -> ConfigError:
    return ConfigError(what, effect="nothing was started", hint="every key is described by:  cloudft init --schema")
