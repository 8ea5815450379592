"""Serving at home: the current model as an OpenAI-compatible endpoint, in a container or in a child process."""

from __future__ import annotations

from typing import Literal

from local.evaluation.endpoint import Endpoint
from local.serving.serve_docker import (
    current_gguf,
    docker_available,
    docker_problem,
    serve_with_docker,
    stop,
)
from local.serving.serve_process import serve_in_process
from local.serving.serve_settings import api_key, serve_settings, system_message

__all__ = [
    "Endpoint",
    "Engine",
    "api_key",
    "current_gguf",
    "docker_available",
    "docker_problem",
    "pick_engine",
    "serve_in_process",
    "serve_settings",
    "serve_with_docker",
    "stop",
    "system_message",
]

Engine = Literal["docker", "process"]


def pick_engine(wanted: Engine | None = None) -> tuple[Engine, str]:
    """The engine to serve with, and why: the one that is asked for, else Docker where it answers.

    A container serves several requests at once and is fenced in, so it is preferred.
    """
    if wanted is not None:
        return wanted, "asked for"
    problem = docker_problem()
    return ("docker", "Docker answers") if problem is None else ("process", problem)
