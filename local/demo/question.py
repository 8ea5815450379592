"""The end of the demo: one chat request, answered by the served model."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass

from local.config import load_config
from local.evaluation.endpoint import chat_once
from local.project import Project
from local.serving.serve import current_gguf, serve_in_process


@dataclass(frozen=True)
class Example:
    """A held-out question, what the served model said, and what was expected."""

    question: str
    answer: str
    expected: str


def ask_served(project: Project) -> Example:
    """Serve the current model for a moment and ask it the first held-out question of the latest run."""
    config = load_config(project.config_file)
    holdout = project.pick_run(None).holdout
    messages = json.loads(holdout.read_text(encoding="utf-8").splitlines()[0])["messages"]
    log = project.state / "demo-serve.log"
    with serve_in_process(
        current_gguf(project), api_key=secrets.token_urlsafe(16), context=config.serve.context, log=log
    ) as endpoint:
        reply = chat_once(endpoint, messages[:-1], max_tokens=config.task.max_tokens)
    return Example(messages[-2]["content"], reply.text.strip(), messages[-1]["content"])
