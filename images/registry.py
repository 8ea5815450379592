"""The registry that an image is pushed to: the login, what is there already, the push, and the digest that pins it.

All of it goes through the engine, which has the certificates, mirrors and proxies that a registry may need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cloudft.errors import IntegrityError
from images.engine import UNTOUCHED, Progress, credentials, events, explain, is_refusal, talking
from images.manifest import Told, describe
from images.reference import DOCKER_HUB, Reference

if TYPE_CHECKING:
    from docker import DockerClient


class Registry:
    """One repository of one registry, with the login that Docker's own config has for it.

    Raises:
        EnvironmentProblem: the login cannot be read.
    """

    def __init__(self, client: DockerClient, repository: Reference) -> None:
        self.repository = Reference(repository.repository)
        self._client: Any = client
        self._login = credentials(repository.host)

    def check_login(self) -> None:
        """Try the login before half an hour of building, not after it.

        Raises:
            ProviderError: the registry refuses it, or cannot be reached.
        """
        host, login = self.repository.host, self._login
        # A token, such as some clouds give, is tried by the push itself: the engine's check wants a password.
        if "username" in login and "password" in login:
            from docker.auth import INDEX_URL

            address = INDEX_URL if host == DOCKER_HUB else host
            with talking(f"log in to {host} as {login['username']}", self.repository):
                self._client.api.login(login["username"], login["password"], registry=address, reauth=True)

    def digest(self, tag: str) -> str | None:
        """Digest of what the registry has under ``tag``; None when it has nothing.

        Raises:
            ProviderError: it refuses to say, or cannot be reached.
        """
        from docker.errors import APIError, NotFound

        name = f"{self.repository}:{tag}"
        with talking(f"look for {name}", self.repository):
            try:
                found = self._client.api.inspect_distribution(name, auth_config=self._login)
            except NotFound:
                return None
            except APIError as exc:
                # Some registries refuse rather than say that there is nothing yet, whoever asks. Then the push tells.
                if self._login and is_refusal(str(exc.explanation)):
                    return None
                raise
        return str(found["Descriptor"]["digest"])

    def describe(self, digest: str) -> Told | None:
        """Size to pull and labels of ``repository@digest``; None where they cannot be read."""
        host = self.repository.host
        known = self._client.info().get("RegistryConfig", {}).get("IndexConfigs", {}).get(host, {})
        insecure = host.startswith(("127.", "localhost")) or known.get("Secure") is False
        return describe(self.repository, digest, self._login, insecure)

    def pull(self, pinned: str, platform: str, progress: Progress) -> None:
        """Pull ``repository@digest``.

        Raises:
            ConfigError: the registry does not have it, or not for that platform.
            ProviderError: the registry refuses, or cannot be reached.
        """
        doing = f"pull {pinned} for {platform}"
        layers = Layers("pull base", progress)
        repository, _, digest = pinned.partition("@")
        with talking(doing, self.repository):
            stream = self._client.api.pull(
                repository, digest, stream=True, decode=True, platform=platform, auth_config=self._login
            )
        for event in events(stream, doing, self.repository):
            layers.saw(event)

    def push(self, tag: str, progress: Progress) -> str:
        """Push ``repository:tag`` and return its digest, as the registry itself confirms it.

        An image exists in a registry only once its manifest is there, which is sent last: an interrupted push leaves
        layers that the next one reuses, and no image.

        Raises:
            ProviderError: the registry refuses, or cannot be reached.
            IntegrityError: it holds something else under that tag now.
        """
        doing = f"push {self.repository}:{tag}"
        layers = Layers("push", progress)
        digest = ""
        with talking(doing, self.repository):
            stream = self._client.api.push(str(self.repository), tag, stream=True, decode=True, auth_config=self._login)
        for event in events(stream, doing, self.repository):
            layers.saw(event)
            digest = event.get("aux", {}).get("Digest") or digest
        if not digest:
            raise explain("the engine did not say which digest it pushed", doing, self.repository.host)
        there = self.digest(tag)
        if there != digest:
            raise IntegrityError(
                f"{self.repository}:{tag} is {there} in the registry, but {digest} was pushed",
                effect=UNTOUCHED,
                hint="somebody else may have pushed at the same time; type it again:  cloudft build",
            )
        return digest


class Layers:
    """Sums what the layers of a pull or push report, in bytes, and passes it on."""

    def __init__(self, what: str, progress: Progress) -> None:
        self._what = what
        self._progress = progress
        self._bytes: dict[str, tuple[int, int]] = {}
        self._there: set[str] = set()

    def saw(self, event: dict[str, Any]) -> None:
        """Take in one event of the engine."""
        layer, status = str(event.get("id", "")), str(event.get("status", ""))
        detail = event.get("progressDetail") or {}
        if status in ("Pushing", "Downloading") and detail.get("total"):
            # What goes over the wire may be more than was expected: headers, padding.
            self._bytes[layer] = (min(detail["current"], detail["total"]), detail["total"])
        elif status in ("Pushed", "Download complete", "Pull complete") and layer in self._bytes:
            self._bytes[layer] = (self._bytes[layer][1], self._bytes[layer][1])
        elif status.startswith(("Layer already exists", "Already exists", "Mounted from")):
            self._there.add(layer)
        done, total = (sum(pair[i] for pair in self._bytes.values()) for i in (0, 1))
        note = "" if total or not self._there else f"{len(self._there)} layers are there already"
        self._progress(self._what, done, total or None, "bytes", note)
