"""Registries that refuse, logins from Docker's own config, and what a registry tells without a pull."""

from __future__ import annotations

import json
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


def test_no_engine_answers(plan: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nothing.sock")
    error = refused(plan, EnvironmentProblem)
    assert "no Docker engine answers" in error.what
    assert "docker info" in error.hint
