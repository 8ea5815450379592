"""A real image registry that wants a password: Debian's ``docker-registry`` over a temporary folder, on loopback."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.services.engine import DockerEngine
from tests.services.host import ENVIRONMENT, answers, free_port, running, unavailable

USER, PASSWORD = "cloudft", "registry-password"
# bcrypt of PASSWORD, as `htpasswd -B` writes it: this registry takes no other kind.
_HASH = "$2b$04$4M.coVndttY540PA/X3FHulOrv1GbgbaOPVoJw6y.DguhRWE7To9e"

_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


@dataclass(frozen=True)
class RegistryServer:
    """The registry and its one account. Engines speak plain HTTP with loopback, so it needs no certificate."""

    host: str
    log: Path
    user: str = USER
    password: str = field(default=PASSWORD, repr=False)

    def config(self, folder: Path, password: str | None = None) -> Path:
        """Make ``folder`` a DOCKER_CONFIG that is logged in, with another password if one is given."""
        auth = base64.b64encode(f"{self.user}:{password or self.password}".encode()).decode()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"auths": {self.host: {"auth": auth}}}))
        return folder

    def tags(self, repository: str) -> list[str]:
        """The tags of a repository, such as ``me/image``; none if there is no such repository."""
        try:
            return list(self._get(f"{repository}/tags/list")["tags"] or ())
        except urllib.error.HTTPError as exc:
            if exc.code != 404:
                raise
            return []

    def manifest(self, repository: str, reference: str) -> dict[str, Any]:
        """The manifest under a tag or digest."""
        return self._get(f"{repository}/manifests/{reference}")

    def uploads(self) -> int:
        """How many pieces of layers, and manifests, were ever sent to it."""
        return sum(self.log.read_text().count(f'"{method} /v2/') for method in ("PUT", "PATCH"))

    def _get(self, path: str) -> dict[str, Any]:
        auth = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        request = urllib.request.Request(f"http://{self.host}/v2/{path}")
        request.add_header("Authorization", f"Basic {auth}")
        request.add_header("Accept", _MANIFEST)
        with urllib.request.urlopen(request, timeout=30) as reply:
            found: dict[str, Any] = json.load(reply)
        return found


@contextlib.contextmanager
def registry_server(folder: Path) -> Iterator[RegistryServer]:
    """A registry of one's own. ``folder`` gets its layers, its settings and its log."""
    command = shutil.which("docker-registry", path=ENVIRONMENT.get("PATH"))
    if command is None:
        unavailable("the command docker-registry (Debian: apt-get install docker-registry)")
    port = free_port()
    (folder / "htpasswd").write_text(f"{USER}:{_HASH}\n")
    settings = {
        "version": "0.1",
        "log": {"level": "info", "accesslog": {"disabled": False}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "layers")}, "delete": {"enabled": True}},
        "http": {"addr": f"127.0.0.1:{port}"},
        "auth": {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}},
    }
    # JSON is YAML.
    (folder / "config.yml").write_text(json.dumps(settings))
    log = folder / "registry.log"
    with running([command, "serve", str(folder / "config.yml")], log, lambda: answers("127.0.0.1", port)):
        yield RegistryServer(f"127.0.0.1:{port}", log)


@pytest.fixture(scope="session")
def registry(docker_engine: DockerEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """The registry of the session. What was pushed there, and the engine's images of that name, go with it."""
    with registry_server(tmp_path_factory.mktemp("registry")) as server:
        yield server
        listed = docker_engine.run(
            "image", "ls", "--digests", "--format", "{{.Repository}}\t{{.Tag}}\t{{.Digest}}"
        ).stdout
        ours = []
        for name, tag, digest in (line.split("\t") for line in listed.splitlines()):
            if name.startswith(f"{server.host}/"):
                ours.append(f"{name}:{tag}" if tag != "<none>" else f"{name}@{digest}")
        if ours:
            docker_engine.run("rmi", "-f", *ours, check=False)
