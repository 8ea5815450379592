"""An endpoint's address as a person gives it: no secret in it, and its key in the environment."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from cloudft.errors import UsageError
from local.evaluation.endpoint import Endpoint


def other_endpoint(url: str | None, model: str | None, key_env: str | None) -> Endpoint | None:
    """An endpoint that is not ours, as the command line names it; None if it names none.

    Args:
        key_env: environment variable that holds the key; None: there is none.

    Raises:
        UsageError: a part is missing, or the address is none.
    """
    if url is None:
        if model or key_env:
            raise UsageError("--model and --key-env belong to --endpoint", effect="nothing was measured")
        return None
    if not is_address(url):
        raise UsageError(
            "--endpoint must be an address such as https://host/v1, without a name, a password or a key in it",
            effect="nothing was measured",
            hint="put the key into the environment, and name the variable:  --key-env VARIABLE",
        )
    if not model:
        raise UsageError(f"--model must say which model of {url}", effect="nothing was measured")
    key = os.environ.get(key_env, "").strip() if key_env else ""
    if key_env and not key:
        raise UsageError(f"the environment has no {key_env}", effect="nothing was measured", hint=f"export {key_env}=…")
    return Endpoint(url.rstrip("/"), key, model, urlsplit(url).netloc)


def is_address(url: str) -> bool:
    """Whether this is an endpoint's address, and holds no secret: addresses are shown, and written into results."""
    try:
        parts = urlsplit(url)
        hidden = parts.username or parts.password or parts.query or parts.fragment
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not hidden
