"""How the project is served: one answer for ``cloudft serve`` and for ``docker compose up serve``.

Compose reads the environment, then the project's ``.env``; so does cloudft. What neither says stands in cloudft.yaml.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from cloudft.errors import CloudftError, ConfigError
from local.config import load_config
from local.project import Project
from local.serving.versions import current

KEY, PORT, CONTEXT = "CLOUDFT_API_KEY", "CLOUDFT_PORT", "CLOUDFT_CONTEXT"
NOT_SERVED = "nothing is being served and no file was changed"


@dataclass(frozen=True)
class ServeSettings:
    """``port`` on 127.0.0.1; ``context`` in tokens, of one conversation."""

    api_key: str
    port: int
    context: int

    def variables(self) -> dict[str, str]:
        """What compose.yaml reads."""
        return {KEY: self.api_key, PORT: str(self.port), CONTEXT: str(self.context)}


def serve_settings(project: Project) -> ServeSettings:
    """The settings in force.

    Raises:
        ConfigError: there is no API key, or a number is none.
    """
    config = load_config(project.config_file).serve
    return ServeSettings(
        api_key(project),
        _number(project, PORT, config.port, 65535),
        _number(project, CONTEXT, config.context, 2**31 - 1),
    )


def api_key(project: Project) -> str:
    """The key that every request must carry.

    Raises:
        ConfigError: there is none.
    """
    if key := _variable(project, KEY):
        return key
    raise ConfigError(
        f"there is no API key: {project.root / '.env'} has no line {KEY}=…",
        effect=NOT_SERVED,
        hint=f'make one:  echo "{KEY}=$(openssl rand -hex 24)" >> .env && chmod 600 .env',
    )


def system_message(project: Project) -> str | None:
    """The system message that the current model was trained with, if its examples have one."""
    try:
        version = current(project)
        if version is None or version.manifest.run_id is None:
            return None
        with project.run(version.manifest.run_id).train_data.open(encoding="utf-8") as rows:
            first = json.loads(next(rows))["messages"][0]
    except (CloudftError, OSError, StopIteration, ValueError, LookupError, TypeError):
        return None
    return str(first["content"]) if first.get("role") == "system" else None


def _number(project: Project, name: str, default: int, most: int) -> int:
    text = _variable(project, name)
    if not text:
        return default
    if not text.isascii() or not text.isdecimal() or not 0 < int(text) <= most:
        raise ConfigError(
            f"{name} is {text!r}, not a whole number from 1 to {most}",
            effect=NOT_SERVED,
            hint=f"correct it in the environment or in {project.root / '.env'}",
        )
    return int(text)


def _variable(project: Project, name: str) -> str:
    """From the environment, else from the project's ``.env``; empty if neither has it."""
    if from_environment := os.environ.get(name, "").strip():
        return from_environment
    try:
        lines = (project.root / ".env").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return ""
    for line in lines:
        key, _, value = line.partition("=")
        if key.strip().removeprefix("export ").strip() == name:
            return _unquoted(value)
    return ""


def _unquoted(value: str) -> str:
    value = value.strip()
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    return value
