"""The Docker engine through its SDK: the connection, the streams that it sends, and its errors as ours.

The engine's own builder is used and not the ``docker`` command: it needs no CLI, no plugin and no builder besides the
engine, and the SDK cancels what it has begun when the connection is closed.
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from cloudft.errors import CloudftError, ConfigError, EnvironmentProblem, ProviderError

if TYPE_CHECKING:
    from docker import DockerClient

    from images.reference import Reference

UNTOUCHED = "nothing was rented, and cloudft.yaml is as it was"

# A connection is refused at once; but an engine that compresses gigabytes may be silent for minutes.
_CONNECT_SECONDS = 20
_SILENCE_SECONDS = 1800


class Progress(Protocol):
    """``local.progress.Progress``, which this package may not import: piece of work, done, total, unit, note."""

    def __call__(
        self, what: str, done: float = 0, total: float | None = None, unit: str = "", note: str = ""
    ) -> None: ...


@contextlib.contextmanager
def connect() -> Iterator[DockerClient]:
    """The engine that DOCKER_HOST or Docker's current context names.

    Raises:
        EnvironmentProblem: none answers, or it stops answering, or Docker's own config is broken.
    """
    import docker

    try:
        client = docker.from_env(timeout=_CONNECT_SECONDS, use_ssh_client=True)
    except _faults(OSError, ValueError) as exc:
        raise _no_engine(exc) from exc
    try:
        try:
            client.ping()
        except _faults() as exc:
            raise _no_engine(exc) from exc
        client.api.timeout = _SILENCE_SECONDS
        try:
            yield client
        except _faults() as exc:
            raise _gone("go on", exc) from exc
    finally:
        client.close()


def _faults(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """What the SDK lets through when the engine is not there, or goes away in the middle of a stream."""
    from docker.errors import DockerException
    from requests.exceptions import RequestException
    from urllib3.exceptions import HTTPError

    return (DockerException, RequestException, HTTPError, *more)


def _no_engine(exc: Exception) -> EnvironmentProblem:
    where = os.environ.get("DOCKER_HOST") or "the usual socket, /var/run/docker.sock"
    hint = "start Docker (Debian, Ubuntu: sudo apt-get install docker.io) and see that  docker info  works"
    match _system_error(exc):
        case FileNotFoundError() | ConnectionRefusedError():
            why = "nothing listens there"
        case PermissionError():
            why = "this user may not use it"
            hint = "add the user to Docker's group and log in again:  sudo usermod -aG docker $USER"
        case _:
            why = " ".join(str(exc).split())[:200]
    return EnvironmentProblem(
        f"no Docker engine answers at {where}: {why}",
        effect=UNTOUCHED,
        hint=f"{hint}    or let Modal build it:  cloudft submit --provider modal",
    )


def _system_error(exc: BaseException | None) -> OSError | None:
    """What the system said, below all that libraries have wrapped around it."""
    found: OSError | None = None
    while exc is not None:
        inner = [arg for arg in exc.args if isinstance(arg, BaseException)]
        if type(exc) in (FileNotFoundError, ConnectionRefusedError, PermissionError) and isinstance(exc, OSError):
            found = exc
        exc = exc.__cause__ or exc.__context__ or (inner[-1] if inner else None)
    return found


def _gone(doing: str, exc: Exception) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"cannot {doing}: the Docker engine does not answer as it should: {exc}",
        effect=UNTOUCHED,
        hint="see that  docker info  works, then:  cloudft build    (finished steps are kept)",
    )


def credentials(host: str) -> dict[str, Any]:
    """The login for a registry from Docker's own config (auths, credHelpers, credsStore); empty if there is none.

    Raises:
        EnvironmentProblem: the config names a credential helper that is missing or fails.
    """
    from docker.auth import load_config, resolve_authconfig
    from docker.credentials.errors import StoreError
    from docker.errors import DockerException

    try:
        with warnings.catch_warnings():
            # A helper that is missing is an error, below, and no second message.
            warnings.simplefilter("ignore")
            found = resolve_authconfig(load_config(), host)
    except (DockerException, StoreError, ValueError) as exc:
        raise EnvironmentProblem(
            f"Docker's own config does not give a login for {host}: {exc}",
            effect=UNTOUCHED,
            hint=f"log in again:  docker login {host}",
        ) from exc
    return {key[:1].lower() + key[1:]: value for key, value in (found or {}).items() if value}


@contextlib.contextmanager
def talking(doing: str, about: Reference) -> Iterator[None]:
    """The engine's errors as ours, while it talks with the registry of ``about``.

    Args:
        doing: what fails, as an infinitive: "push ghcr.io/me/x".
    """
    from docker.errors import APIError

    try:
        yield
    except APIError as exc:
        raise explain(str(exc.explanation or exc), doing, about.host) from exc
    except _faults() as exc:
        raise _gone(doing, exc) from exc


def events(stream: Iterable[dict[str, Any]], doing: str, about: Reference) -> Iterator[dict[str, Any]]:
    """The events of a pull or push.

    Raises:
        CloudftError: the event that says why it failed, as ours.
    """
    with talking(doing, about):
        for event in stream:
            if "error" in event:
                raise explain(str(event["error"]), doing, about.host)
            yield event


_FULL = re.compile(r"no space left on device|not enough space|disk quota exceeded", re.IGNORECASE)
_LIMIT = re.compile(r"toomanyrequests|rate limit|429 Too Many", re.IGNORECASE)
_NO_REPOSITORY = re.compile(r"name unknown|NAME_UNKNOWN|repository with name .* does not exist", re.IGNORECASE)
_REFUSED = re.compile(
    r"unauthorized|denied|forbidden|no basic auth|authentication required|incorrect username|docker login"
    r"|\b40[13]\b",
    re.IGNORECASE,
)
_MISSING = re.compile(r"manifest unknown|manifest for .* not found|not found|no match for platform", re.IGNORECASE)
_UNREACHABLE = re.compile(
    r"dial tcp|no such host|connection (?:refused|reset)|time-?out|deadline exceeded|TLS|x509|certificate|\bEOF\b"
    r"|HTTP response to HTTPS|network is unreachable|\b50[0-4]\b",
    re.IGNORECASE,
)


def is_refusal(message: str) -> bool:
    """Whether a registry did not like who asked."""
    return bool(_REFUSED.search(message) and not _LIMIT.search(message))


def explain(message: str, doing: str, host: str) -> CloudftError:
    """What an engine or a registry says, as an error that a person can act on."""
    message = " ".join(message.split())
    what = f"cannot {doing}: {message}"
    if is_full(message):
        return disk_full(what)
    if _LIMIT.search(message):
        hint = f"log in, which raises the limit, or wait:  docker login {host}"
        return ProviderError(f"cannot {doing}: {host} limits how much it gives: {message}", effect=UNTOUCHED, hint=hint)
    if _NO_REPOSITORY.search(message):
        hint = f"some registries want it made first: make it at {host}, or correct build.repository"
        return ConfigError(f"cannot {doing}: {host} has no such repository: {message}", effect=UNTOUCHED, hint=hint)
    if _REFUSED.search(message):
        hint = f"log in with an account that may do that:  docker login {host}"
        return ProviderError(f"cannot {doing}: {host} refuses: {message}", effect=UNTOUCHED, hint=hint)
    if _UNREACHABLE.search(message):
        hint = "check the registry's name and the network, then:  cloudft build"
        return ProviderError(f"cannot {doing}: {host} cannot be reached: {message}", effect=UNTOUCHED, hint=hint)
    if _MISSING.search(message):
        return ConfigError(f"cannot {doing}: {host} has no such image: {message}", effect=UNTOUCHED)
    return ProviderError(what, effect=UNTOUCHED, hint="try again; if it stays, see  docker info")


def is_full(message: str) -> bool:
    return bool(_FULL.search(message))


def disk_full(what: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{what}: the engine's disk is full",
        effect=UNTOUCHED,
        hint="see what takes the room:  docker system df    and free some:  docker image prune",
    )
