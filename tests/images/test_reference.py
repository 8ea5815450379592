"""Names of images: what Docker would take is taken, what it would refuse is refused with a way out."""

from __future__ import annotations

import pytest

from cloudft.errors import ConfigError
from images.reference import is_local_id, is_pinned, parse_image, parse_repository

DIGEST = "sha256:" + "0af1" * 16


@pytest.mark.parametrize(
    ("name", "host", "path", "api"),
    [
        ("python", "docker.io", "library/python", "registry-1.docker.io"),
        ("me/train", "docker.io", "me/train", "registry-1.docker.io"),
        ("docker.io/me/train", "docker.io", "me/train", "registry-1.docker.io"),
        ("ghcr.io/me/train", "ghcr.io", "me/train", "ghcr.io"),
        ("localhost/train", "localhost", "train", "localhost"),
        ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000", "a/b/c", "127.0.0.1:5000"),
        ("1234.dkr.ecr.eu-west-1.amazonaws.com/x", "1234.dkr.ecr.eu-west-1.amazonaws.com", "x", None),
    ],
)
def test_registry_and_path(name: str, host: str, path: str, api: str | None) -> None:
    found = parse_repository(name)
    assert (found.host, found.path, found.api_host) == (host, path, api or host)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ghcr.io/me/train:latest", "tag or digest"),
        (f"ghcr.io/me/train@{DIGEST}", "tag or digest"),
        ("ghcr.io/Me/Train", "no name of a repository"),
        ("https://ghcr.io/me/train", "no name of a repository"),
        ("me/../train", "no name of a repository"),
        ("me/train\n", "no name of a repository"),
        ("", "no name of a repository"),
    ],
)
def test_what_is_no_repository_is_refused(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        parse_repository(name)
    assert "build.repository" in caught.value.what
    assert "nothing was built" in caught.value.effect
    assert "ghcr.io/me/cloudft-train" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "repository", "tag", "digest"),
    [
        ("python:3.11-slim", "python", "3.11-slim", None),
        ("python", "python", "latest", None),
        (f"python@{DIGEST}", "python", None, DIGEST),
        (f"runpod/pytorch:1.0@{DIGEST}", "runpod/pytorch", "1.0", DIGEST),
        ("127.0.0.1:5000/base", "127.0.0.1:5000/base", "latest", None),
    ],
)
def test_an_image_is_read_as_docker_reads_it(name: str, repository: str, tag: str | None, digest: str | None) -> None:
    found = parse_image(name, "build.base_image")
    assert (found.repository, found.tag, found.digest) == (repository, tag, digest)


@pytest.mark.parametrize("name", ["Python", "python:", "python@sha256:12", "http://x/y", "a b", ":tag"])
def test_what_is_no_image_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"build\.base_image"):
        parse_image(name, "build.base_image")


def test_the_hubs_short_names_are_the_same_repository() -> None:
    short, long = parse_repository("python"), parse_repository("docker.io/library/python")
    assert short.same_repository(long)
    assert not short.same_repository(parse_repository("ghcr.io/library/python"))


@pytest.mark.parametrize(
    ("image", "pinned", "local"),
    [
        (f"ghcr.io/me/train@{DIGEST}", True, False),
        (f"ghcr.io/me/train:1@{DIGEST}", True, False),
        ("ghcr.io/me/train:1", False, False),
        ("ghcr.io/me/train", False, False),
        (DIGEST, False, True),
        (f"ghcr.io/me/train@{DIGEST[:-1]}", False, False),
    ],
)
def test_what_pins(image: str, pinned: bool, local: bool) -> None:
    assert (is_pinned(image), is_local_id(image)) == (pinned, local)
