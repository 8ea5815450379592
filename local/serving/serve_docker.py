"""Serving with Docker: ``docker compose up serve`` in the project's folder, as a person would type it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from cloudft.errors import CloudftError, EnvironmentProblem, NotFound
from local.evaluation.endpoint import LLAMA_SERVER, Endpoint
from local.progress import Progress
from local.project import Project
from local.serving.serve_check import refuse_other_prompts
from local.serving.serve_settings import NOT_SERVED, serve_settings

ENGINE = LLAMA_SERVER
SERVICE = "serve"


def docker_problem() -> str | None:
    """Why Docker cannot be used here, in a few words; None if it can."""
    if shutil.which("docker") is None:
        return "the command docker is not installed"
    for command, lacks in (
        (["docker", "info", "--format", "{{.ServerVersion}}"], "no Docker engine answers"),
        (["docker", "compose", "version", "--short"], "docker has no compose plugin"),
    ):
        try:
            found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired) as exc:
            return f"{' '.join(command[:2])} does not work: {exc}"
        if found.returncode != 0:
            said = " ".join(found.stderr.split())
            return f"{lacks} ({said[:200]})" if said else lacks
    return None


def docker_available() -> bool:
    """Whether a Docker engine and compose answer."""
    return docker_problem() is None


def serve_with_docker(project: Project, *, progress: Progress, timeout: int = 900) -> Endpoint:
    """Build the image if need be, start the container, and return when the model answers. It then runs on.

    A container that runs with other settings (``local.serving.serve_settings``) or another version of the model is
    replaced.

    Args:
        progress: told what compose prints, as notes.
        timeout: seconds that loading may take, after the image is built.

    Raises:
        EnvironmentProblem: no Docker here.
        NotFound: the project has no current model, or no compose.yaml.
        ConfigError: the project has no API key.
        VerifyError: the server makes other prompts of conversations than training did; it was removed.
        CloudftError: the container did not start; it was removed, and its last lines are in the message.
    """
    problem = docker_problem()
    if problem:
        raise EnvironmentProblem(
            f"serving with Docker is not possible: {problem}",
            effect=NOT_SERVED,
            hint="serve without it:  cloudft serve --engine process",
        )
    if not (project.root / "compose.yaml").is_file():
        raise NotFound(
            f"{project.root} has no compose.yaml",
            effect=NOT_SERVED,
            hint="take it from a new project (cloudft init in an empty folder), or:  cloudft serve --engine process",
        )
    model, serving = current_gguf(project), serve_settings(project)
    try:
        # The link is resolved when the server starts: a container that runs may still serve the version before.
        up = ["up", "--detach", "--wait", "--wait-timeout", str(timeout), "--force-recreate", SERVICE]
        code, said = _compose(project, up, serving.variables(), progress)
        if code != 0:
            raise _not_started(project, said)
        endpoint = Endpoint(f"http://127.0.0.1:{serving.port}/v1", serving.api_key, model.resolve().parent.name, ENGINE)
        refuse_other_prompts(endpoint, model.resolve().parent)
    except BaseException:
        stop(project)
        raise
    return endpoint


def stop(project: Project) -> None:
    """Stop and remove the project's container. Nothing to stop is no error.

    Raises:
        EnvironmentProblem: no Docker, or no compose, here.
        CloudftError: Docker refuses.
    """
    if problem := docker_problem():
        raise EnvironmentProblem(
            f"there is no container to stop: {problem}",
            effect="a server without Docker ends with its own command (Ctrl-C)",
        )
    found = subprocess.run(
        ["docker", "compose", "rm", "--stop", "--force", SERVICE],
        cwd=project.root,
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode != 0:
        raise CloudftError(
            f"the container of {project.root} could not be stopped: {' '.join(found.stderr.split())}",
            effect="the model may still be served",
            hint="try by hand:  docker compose down",
        )


def current_gguf(project: Project) -> Path:
    """The file that is served.

    Raises:
        NotFound: there is none.
    """
    path = project.current_model / "model.gguf"
    if not path.is_file():
        raise NotFound(
            f"{path} is not there: the project has no model to serve",
            effect=NOT_SERVED,
            hint="make it:  cloudft quantize",
        )
    return path


def _compose(project: Project, args: list[str], settings: dict[str, str], progress: Progress) -> tuple[int, list[str]]:
    """Run compose in the project's folder and hand its output on, line by line; returns the exit code and the end."""
    with subprocess.Popen(
        ["docker", "compose", "--progress", "plain", *args],
        cwd=project.root,
        env={**os.environ, **settings},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        said: list[str] = []
        try:
            for line in process.stdout:
                said = [*said[-30:], line.rstrip()]
                progress("docker compose", note=line.strip())
        except BaseException:
            process.terminate()
            raise
    return process.returncode, said


def _not_started(project: Project, said: list[str]) -> CloudftError:
    """The error for a container that did not become healthy, with what it said itself."""
    logs = subprocess.run(
        ["docker", "compose", "logs", "--no-color", "--no-log-prefix", "--tail", "15", SERVICE],
        cwd=project.root,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    lines = logs.stdout.splitlines() or said[-15:]
    text = "\n".join(f"  {line}" for line in lines)
    return CloudftError(
        f"docker compose could not serve {project.current_model}:\n{text}",
        effect=f"{NOT_SERVED}; the container was removed",
        hint="see all of it:  docker compose up serve",
    )
