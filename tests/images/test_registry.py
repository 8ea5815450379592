"""Registries that refuse, logins from Docker's own config, and what a registry tells without a pull."""

from __future__ import annotations

import errno
import json
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from cloudft.errors import ConfigError, EnvironmentProblem, ProviderError
from images.build import Plan
from tests.images.build_fixtures import (
    Recorder,
    build,
    refused,
    repository_of,
)
from tests.services.registry import RegistryServer


def test_a_wrong_password_is_said_before_anything_is_built(
    plan: Plan, registry: RegistryServer, logged_in: Path
) -> None:
    registry.config(logged_in, password="wrong")
    progress = Recorder()
    with pytest.raises(ProviderError) as caught:
        build(plan, progress)
    assert registry.host in caught.value.what
    assert f"docker login {registry.host}" in caught.value.hint
    assert "wrong" not in caught.value.what
    assert progress.of("build") == []


def test_no_login_at_all(plan: Plan, registry: RegistryServer, logged_in: Path) -> None:
    (logged_in / "config.json").write_text("{}")
    error = refused(plan, ProviderError)
    assert f"docker login {registry.host}" in error.hint


def test_a_registry_that_cannot_be_reached(plan: Plan) -> None:
    error = refused(replace(plan, repository="127.0.0.1:9/me/x"), ProviderError)
    assert "127.0.0.1:9 cannot be reached" in error.what


def test_no_repository_is_set(plan: Plan) -> None:
    error = refused(replace(plan, repository=None), ConfigError)
    assert "build.repository is not set" in error.what
    assert "--no-push" in error.hint


def test_a_login_from_a_credential_helper(
    plan: Plan, registry: RegistryServer, logged_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = tmp_path / "bin" / "docker-credential-cloudfttest"
    helper.parent.mkdir()
    answer = json.dumps({"ServerURL": registry.host, "Username": registry.user, "Secret": registry.password})
    helper.write_text(f"#!/bin/sh\ncat >/dev/null\necho '{answer}'\n")
    helper.chmod(0o755)
    (logged_in / "config.json").write_text(json.dumps({"credHelpers": {registry.host: "cloudfttest"}}))
    # The helper is not there yet.
    error = refused(plan, EnvironmentProblem)
    assert "docker-credential-cloudfttest" in error.what
    monkeypatch.setenv("PATH", str(helper.parent), prepend=":")
    built = build(plan)
    assert built.pushed
    assert registry.manifest(repository_of(plan), built.lock.content[:16])


@pytest.mark.parametrize(
    ("host", "why", "then"),
    [
        ("unix://{folder}/nothing.sock", "nothing listens there", "docker info"),
        ("tcp://127.0.0.1:9", "nothing listens there", "docker info"),
        ("no-address", "Invalid bind address", "docker info"),
    ],
)
def test_no_engine_answers(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str, why: str, then: str
) -> None:
    monkeypatch.setenv("DOCKER_HOST", host.format(folder=tmp_path))
    error = refused(plan, EnvironmentProblem)
    assert f"no Docker engine answers at {host.format(folder=tmp_path)}: {why}" in error.what
    # Said in words, not as libraries say it.
    assert "HTTPConnectionPool" not in error.what
    assert "FileNotFoundError" not in error.what
    assert then in error.hint


def test_an_engine_that_this_user_may_not_use(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests may run as root, whom no socket refuses: the system's answer is put in its place."""

    def connect(self: socket.socket, address: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", connect)
    error = refused(plan, EnvironmentProblem)
    assert "this user may not use it" in error.what
    assert "usermod" in error.hint
