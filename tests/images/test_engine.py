"""The words of engines and registries, as errors that a person can act on."""

from __future__ import annotations

import pytest

from cloudft.errors import CloudftError, ConfigError, EnvironmentProblem, ProviderError
from images.engine import UNTOUCHED, explain, is_refusal

DIAL = 'Get "https://ghcr.io/v2/": dial tcp'


@pytest.mark.parametrize(
    ("message", "kind", "says", "hint"),
    [
        # What registries are known to answer, word by word.
        ("no basic auth credentials", ProviderError, "refuses", "docker login ghcr.io"),
        ("unauthorized: authentication required", ProviderError, "refuses", "docker login"),
        ("unauthorized: incorrect username or password", ProviderError, "refuses", "docker login"),
        ("denied: requested access to the resource is denied", ProviderError, "refuses", "docker login"),
        ("denied: permission_denied: write_package", ProviderError, "refuses", "docker login"),
        (
            "login attempt to https://ghcr.io/v2/ failed with status: 401 Unauthorized",
            ProviderError,
            "refuses",
            "login",
        ),
        ("received unexpected HTTP status: 403 Forbidden", ProviderError, "refuses", "docker login"),
        (
            "pull access denied for me/x, repository does not exist or may require 'docker login'",
            ProviderError,
            "refuses",
            "docker login",
        ),
        (
            "name unknown: The repository with name 'x' does not exist in the registry with id '1234'",
            ConfigError,
            "no such repository",
            "build.repository",
        ),
        (
            "toomanyrequests: You have reached your unauthenticated pull rate limit",
            ProviderError,
            "limits how much it gives",
            "docker login",
        ),
        (f"{DIAL}: lookup ghcr.io on 10.0.0.1:53: no such host", ProviderError, "cannot be reached", "network"),
        (f"{DIAL} 140.82.1.1:443: i/o timeout", ProviderError, "cannot be reached", "network"),
        (f"{DIAL} 127.0.0.1:443: connect: connection refused", ProviderError, "cannot be reached", "network"),
        ("x509: certificate signed by unknown authority", ProviderError, "cannot be reached", "network"),
        ("received unexpected HTTP status: 502 Bad Gateway", ProviderError, "cannot be reached", "network"),
        ("http: server gave HTTP response to HTTPS client", ProviderError, "cannot be reached", "network"),
        ("manifest for x:1 not found: manifest unknown: manifest unknown", ConfigError, "no such image", ""),
        (
            "write /var/lib/docker/tmp/x: no space left on device",
            EnvironmentProblem,
            "disk is full",
            "docker system df",
        ),
        ("something nobody has seen", ProviderError, "something nobody has seen", "docker info"),
    ],
)
def test_each_cause_gets_its_own_words(message: str, kind: type[CloudftError], says: str, hint: str) -> None:
    error = explain(message, "push ghcr.io/me/x:1", "ghcr.io")
    assert type(error) is kind
    assert "cannot push ghcr.io/me/x:1" in error.what
    assert says in error.what
    assert message in error.what
    assert hint in error.hint
    assert error.effect == UNTOUCHED


def test_a_limit_is_no_refusal() -> None:
    assert is_refusal("denied: requested access to the resource is denied")
    assert not is_refusal("toomanyrequests: unauthorized pull rate limit")
    assert not is_refusal("manifest unknown")
