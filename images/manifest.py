"""What a registry tells about an image without pulling it: how much a machine would download, and its labels.

Only for what is good to know: a registry that the engine reaches by certificates of its own may not be reachable from
here, so everything answers None rather than fail.
"""

from __future__ import annotations

import base64
import re
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from images.reference import Reference

if TYPE_CHECKING:
    import httpx

_TYPES = ", ".join(
    (
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
    )
)
_SECONDS = 20


@dataclass(frozen=True)
class Told:
    """``pull_bytes``: all layers, compressed. ``labels``: of the image's own settings."""

    pull_bytes: int
    labels: dict[str, str]


def describe(repository: Reference, digest: str, login: dict[str, Any], insecure: bool) -> Told | None:
    """Ask the registry about ``repository@digest``.

    Args:
        login: as ``images.engine.credentials`` gives it.
        insecure: speak plain HTTP, as the engine does with registries on this computer.
    """
    import httpx

    scheme = "http" if insecure else "https"
    base = f"{scheme}://{repository.api_host}/v2/{repository.path}"
    try:
        # The system's certificates: a company's own stand there.
        with httpx.Client(verify=ssl.create_default_context(), timeout=_SECONDS, follow_redirects=True) as http:
            reply = http.get(f"{base}/manifests/{digest}", headers={"Accept": _TYPES})
            authorization = {}
            if reply.status_code == httpx.codes.UNAUTHORIZED:
                authorization = _authorize(http, reply.headers.get("www-authenticate", ""), repository, login)
                reply = http.get(f"{base}/manifests/{digest}", headers={"Accept": _TYPES, **authorization})
            manifest = reply.raise_for_status().json()
            config = http.get(f"{base}/blobs/{manifest['config']['digest']}", headers=authorization)
            settings = config.raise_for_status().json()["config"]
        return Told(sum(layer["size"] for layer in manifest["layers"]), dict(settings.get("Labels") or {}))
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError):
        return None


def _authorize(http: httpx.Client, challenge: str, repository: Reference, login: dict[str, Any]) -> dict[str, str]:
    """The header that a registry wants: the password itself, or a token that its password buys."""
    basic = {}
    if "username" in login and "password" in login:
        pair = base64.b64encode(f"{login['username']}:{login['password']}".encode()).decode()
        basic = {"Authorization": f"Basic {pair}"}
    if not challenge.lower().startswith("bearer"):
        return basic
    said = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    query = {"service": said.get("service", ""), "scope": f"repository:{repository.path}:pull"}
    answer = http.get(said["realm"], params=query, headers=basic).raise_for_status().json()
    return {"Authorization": f"Bearer {answer.get('token') or answer['access_token']}"}
