"""``cloudft serve``."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloudft.commands.common import cloudft_command, if_interrupted, open_project
from cloudft.errors import UsageError
from cloudft.output import Output

if TYPE_CHECKING:
    from local.evaluation.endpoint import Endpoint
    from local.project import Project
    from local.serving.serve import Engine


@cloudft_command("serve")
@click.option(
    "--engine",
    type=click.Choice(["docker", "process"]),
    help="docker: the container of compose.yaml. process: a child of this command. Default: docker if it answers.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help="Port for --engine process; default: CLOUDFT_PORT in .env, or serve.port.",
)
@click.option("--stop", is_flag=True, help="Stop the container.")
def command(out: Output, directory: Path, engine: Engine | None, port: int | None, stop: bool) -> None:
    """Serve the current model with an OpenAI-compatible API on this computer.

    With Docker it does what `docker compose up -d --wait serve` does, and the container runs on. Without, the
    server lives as long as this command. The API key stands in the project's .env.
    """
    from local.serving.serve import pick_engine
    from local.serving.serve import stop as stop_serving

    project = open_project(directory)
    if stop:
        stop_serving(project)
        out.result({"engine": "docker", "serving": False}, "the container is stopped")
        return
    picked, why = pick_engine(engine)
    if picked == "docker" and port is not None:
        raise UsageError(
            "--port is for --engine process; the container takes CLOUDFT_PORT from .env, or serve.port",
            effect="nothing was started",
        )
    out.note(f"engine: {picked} ({why})")
    if picked == "docker":
        _docker(project, out)
    else:
        _process(project, out, port)


def _docker(project: Project, out: Output) -> None:
    from local.serving.serve import serve_with_docker

    waiting = if_interrupted(
        "interrupted", "the container may be starting still; it costs nothing", "stop it:  cloudft serve --stop"
    )
    with waiting, out.progress() as progress:
        endpoint = serve_with_docker(project, progress=progress)
    _say(project, endpoint, out)
    out.next_commands("stop it:  cloudft serve --stop")


def _process(project: Project, out: Output, port: int | None) -> None:
    from local.serving.serve import current_gguf, serve_in_process, serve_settings

    settings = serve_settings(project)
    log = project.state / "serve.log"
    log.parent.mkdir(exist_ok=True)
    gguf = current_gguf(project)
    stopped = if_interrupted("the server has stopped", "nothing is served any more; the model is unchanged")
    with (
        stopped,
        serve_in_process(
            gguf, api_key=settings.api_key, context=settings.context, port=port or settings.port, log=log
        ) as endpoint,
    ):
        _say(project, endpoint, out)
        out.note(f"log: {log}\nstop it with Ctrl-C")
        while True:
            time.sleep(3600)


def _say(project: Project, endpoint: Endpoint, out: Output) -> None:
    """Where it is served, and a request to paste. The key itself is not printed."""
    from local.serving.serve import system_message

    system = system_message(project)
    messages = [{"role": "system", "content": system}] if system else []
    body = json.dumps({"messages": [*messages, {"role": "user", "content": "…"}]}, ensure_ascii=False)
    request = (
        f"curl {endpoint.url}/chat/completions -H 'Content-Type: application/json' \\\n"
        '    -H "Authorization: Bearer $(sed -n s/^CLOUDFT_API_KEY=//p .env)" \\\n'
        f"    -d {shlex.quote(body)}"
    )
    data = {"url": endpoint.url, "model": endpoint.model, "engine": endpoint.engine, "serving": True}
    out.result(data, f"serving {endpoint.model} at {endpoint.url}\n\n  {request}\n")
