"""The task: what an answer must look like, frozen beside the run at submit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cloudft.errors import ConfigError, IntegrityError
from jobs.spec import Frozen
from local.config import TaskConfig


class Task(Frozen):
    """An answer is one JSON object that obeys ``json_schema``; ``keys`` are compared with the hold-out's answer."""

    kind: str
    json_schema: dict[str, Any]
    keys: tuple[str, ...]
    max_tokens: int


def load_task(config: TaskConfig, root: Path) -> Task:
    """Read the schema that ``cloudft.yaml`` names.

    Raises:
        ConfigError: the file is missing, is no JSON schema of an object, or lacks a key that is to be compared.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    path = root / config.json_schema
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
        Draft202012Validator.check_schema(schema)
    except FileNotFoundError as exc:
        raise ConfigError(f"task.schema: {path} is not there", effect="nothing was started") from exc
    except (ValueError, SchemaError) as exc:
        message = getattr(exc, "message", None) or str(exc)
        raise ConfigError(f"task.schema: {path} is no JSON schema: {message}", effect="nothing was started") from exc
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not properties:
        raise ConfigError(f"task.schema: {path} describes no object with properties", effect="nothing was started")
    unknown = [key for key in config.keys or () if key not in properties]
    if unknown:
        raise ConfigError(f"task.keys: {', '.join(unknown)} not in {path}", effect="nothing was started")
    keys = tuple(config.keys or properties)
    return Task(kind=config.kind, json_schema=schema, keys=keys, max_tokens=config.max_tokens)


def read_task(path: Path) -> Task:
    """The task as it was at submit. Raises ``IntegrityError``."""
    try:
        return Task.model_validate_json(path.read_bytes())
    except (OSError, ValueError) as exc:
        raise IntegrityError(f"{path} cannot be read: {exc}", hint="restore the file, or submit again") from exc
