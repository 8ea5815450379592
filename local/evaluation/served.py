"""Finds the endpoint that serves a version now."""

from __future__ import annotations

from cloudft.errors import ConfigError, UsageError
from local.config import load_config
from local.evaluation.endpoint import LLAMA_CPP_SERVER, LLAMA_SERVER, Client, Endpoint, Failure, as_error, connect
from local.evaluation.holdout import NOTHING_WRITTEN
from local.project import Project
from local.serving.serve_settings import api_key

OTHER = "endpoint"


def find_served(project: Project, model: str, url: str | None = None) -> Endpoint | None:
    """The endpoint at ``url``, or the one that `cloudft serve` or compose.yaml runs for this project.

    Returns:
        None if no ``url`` was given and nothing is served there.

    Raises:
        UsageError: ``url`` serves another model.
        ConfigError: it refuses the project's key.
        CloudftError: nobody answers at ``url``.
    """
    try:
        key = api_key(project)
    except ConfigError:
        key = ""
    where = url or f"http://127.0.0.1:{load_config(project.config_file).serve.port}/v1"
    with connect(Endpoint(where, key, model, OTHER), timeout=30, attempts=2 if url else 1) as client:
        served = client.models()
        if url is None and (isinstance(served, Failure) or model not in served):
            return None
        if isinstance(served, Failure):
            raise as_error(client.endpoint, served)
        if model not in served:
            raise UsageError(
                f"{url} serves {', '.join(served) or 'nothing'}, not {model}",
                effect=NOTHING_WRITTEN,
                hint="serve the current model there, or leave --served out",
            )
        return Endpoint(where, key, model, _engine(client, ours=url is None))


def _engine(client: Client, ours: bool) -> str:
    if client.slots() is not None:
        return LLAMA_SERVER
    return LLAMA_CPP_SERVER if ours else OTHER
