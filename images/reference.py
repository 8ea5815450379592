"""Names of images: where one lies, and what pins it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cloudft.errors import ConfigError

DOCKER_HUB = "docker.io"
# Where the Hub's registry really answers.
_HUB_API = "registry-1.docker.io"

_HOST = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]+)?"
_PART = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"(?:{_HOST}/)?{_PART}(?:/{_PART})*")
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DIGEST = r"sha256:[0-9a-f]{64}"
_IMAGE = re.compile(rf"(?P<repository>{_REPOSITORY.pattern})(?::(?P<tag>{_TAG}))?(?:@(?P<digest>{_DIGEST}))?")


@dataclass(frozen=True)
class Reference:
    """``repository[:tag][@digest]``, as a person writes it."""

    repository: str
    tag: str | None = None
    digest: str | None = None

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.repository}{tag}{'@' + self.digest if self.digest else ''}"

    @property
    def host(self) -> str:
        """The registry, as Docker's own config names it; ``docker.io`` when none is named."""
        first, slash, _ = self.repository.partition("/")
        return first if slash and ("." in first or ":" in first or first == "localhost") else DOCKER_HUB

    @property
    def path(self) -> str:
        """The repository inside its registry."""
        if self.host != DOCKER_HUB:
            return self.repository.partition("/")[2]
        path = self.repository.removeprefix(f"{DOCKER_HUB}/")
        return path if "/" in path else f"library/{path}"

    @property
    def api_host(self) -> str:
        """Host and port to speak HTTP with."""
        return _HUB_API if self.host == DOCKER_HUB else self.host

    def same_repository(self, other: Reference) -> bool:
        """``python`` and ``docker.io/library/python`` are the same."""
        return (self.host, self.path) == (other.host, other.path)

    def pinned(self, digest: str) -> str:
        """``repository@digest``: these bytes and no others."""
        return f"{self.repository}@{digest}"


def parse_image(text: str, key: str) -> Reference:
    """An image's name as Docker reads it; without tag and digest it means ``latest``.

    Args:
        key: the key of ``cloudft.yaml`` that it stands in, for the message.

    Raises:
        ConfigError: it is none.
    """
    match = _IMAGE.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"{key}: {text!r} is not the name of an image",
            effect="nothing was built",
            hint="write it as docker pull takes it, such as python:3.11-slim or ghcr.io/me/base:1",
        )
    tag, digest = match["tag"], match["digest"]
    return Reference(match["repository"], tag or (None if digest else "latest"), digest)


def parse_repository(text: str) -> Reference:
    """The repository to push to, without a tag: the tag is made from the content.

    Raises:
        ConfigError: it is no repository, or names a tag.
    """
    if _REPOSITORY.fullmatch(text):
        return Reference(text)
    said = "it names a tag or digest" if _IMAGE.fullmatch(text) else "it is no name of a repository"
    raise ConfigError(
        f"build.repository: {text!r}: {said}",
        effect="nothing was built",
        hint="write registry and name in small letters, without a tag, such as ghcr.io/me/cloudft-train",
    )


def is_pinned(image: str) -> bool:
    """Whether ``image`` can be pulled from anywhere and is always the same: ``repository@sha256:…``."""
    match = _IMAGE.fullmatch(image)
    return match is not None and match["digest"] is not None


def is_local_id(image: str) -> bool:
    """Whether it names an image by an id that only this computer's engine knows."""
    return re.fullmatch(_DIGEST, image) is not None
