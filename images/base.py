"""The base image: pinned by digest before anything is built on it, pulled when it is not here, and looked into."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cloudft.errors import CloudftError, ConfigError, EnvironmentProblem, ProviderError
from images.engine import UNTOUCHED, Progress, talking
from images.reference import is_local_id, parse_image
from images.registry import Registry

if TYPE_CHECKING:
    from docker import DockerClient

KEY = "build.base_image"
MIN_PYTHON = (3, 11)

# Runs in any Python 3 and prints one line of JSON.
_LOOK = """
import json, re, sys
try:
    from importlib.metadata import distributions
    named = [(d.metadata["Name"], d.version) for d in distributions()]
    found = {re.sub("[-_.]+", "-", name).lower(): version for name, version in named if name}
except ImportError:
    found = {}
print(json.dumps({"python": "%d.%d.%d" % sys.version_info[:3], "packages": found}))
"""


@dataclass(frozen=True)
class Base:
    """``name``: as the user wrote it. ``pinned``: repository@sha256:…, or the engine's id of an image made here."""

    name: str
    pinned: str
    platform: str


@dataclass(frozen=True)
class Inside:
    """Python's version and every installed package, by name in small letters."""

    python: str
    packages: dict[str, str]


def pin_base(client: DockerClient, name: str, platform: str, *, locked: str | None, update: bool) -> Base:
    """Say which very image ``name`` means. Pulls nothing.

    In this order: the digest in the name itself, the one of the last build (so that a moving tag such as
    ``python:3.11-slim`` does not send gigabytes anew every week), the image that is here, the registry's newest.
    With ``update`` the registry is asked first.

    Raises:
        ConfigError: there is no such image here or there.
        ProviderError: its registry refuses, or cannot be reached.
    """
    wanted = parse_image(name, KEY)
    if wanted.digest:
        return Base(name, wanted.pinned(wanted.digest), platform)
    if locked and not update and not is_local_id(locked):
        return Base(name, locked, platform)
    here = _here(client, name, platform)
    if here and not update:
        return Base(name, here, platform)
    try:
        digest = Registry(client, wanted).digest(wanted.tag or "latest")
    except ProviderError as exc:
        if here and is_local_id(here):
            return Base(name, here, platform)
        raise _unusable(name, exc) from exc
    if digest is None:
        raise ConfigError(
            f"{KEY}: {wanted.host} has no image {name}, and this computer has none of {platform}",
            effect=UNTOUCHED,
            hint=f"correct {KEY}, or log in if it is private:  docker login {wanted.host}",
        )
    return Base(name, wanted.pinned(digest), platform)


def have_base(client: DockerClient, base: Base, progress: Progress) -> None:
    """Pull the base unless it is here.

    Raises:
        ConfigError: it is gone from its registry, or there is none of this platform.
        ProviderError: the registry refuses, or cannot be reached.
    """
    from docker.errors import ImageNotFound

    about = parse_image(base.name, KEY)
    doing = f"pull {base.pinned} for {base.platform}"
    with talking(doing, about):
        with contextlib.suppress(ImageNotFound):
            if _platform(client.images.get(base.pinned)) == base.platform:
                return
        if is_local_id(base.pinned):
            raise _no_platform(base)
        registry = Registry(client, about)
        try:
            registry.pull(base.pinned, base.platform, progress)
        except CloudftError as exc:
            raise _unusable(base.name, exc) from exc
        if _platform(client.images.get(base.pinned)) != base.platform:
            raise _no_platform(base)


def look_inside(client: DockerClient, image: str, platform: str) -> Inside:
    """Run the image's own Python, without a network, and ask what is installed.

    Raises:
        ConfigError: it has no Python.
        EnvironmentProblem: this computer cannot run programs of that platform.
    """
    from docker.errors import APIError

    try:
        container = client.containers.create(
            image, ["-c", _LOOK], entrypoint=["python"], network_mode="none", platform=platform
        )
        try:
            container.start()
            code = container.wait()["StatusCode"]
            said = container.logs(stdout=True, stderr=code != 0).decode(errors="replace").strip()
        finally:
            container.remove(force=True)
    except APIError as exc:
        code, said = 1, str(exc.explanation or exc)
    if code == 0:
        told = json.loads(said.splitlines()[-1])
        return Inside(told["python"], dict(sorted(told["packages"].items())))
    raise _cannot_run(image, platform, said)


def check_base(base: Base, inside: Inside, locked_torch: str | None) -> tuple[str, ...]:
    """Refuse a base that cannot work; returns what is good to know about one that can.

    Raises:
        ConfigError: its Python is too old.
    """
    version = tuple(int(part) for part in inside.python.split(".")[:2])
    if version < MIN_PYTHON:
        raise ConfigError(
            f"{KEY}: {base.name} has Python {inside.python}, and the training needs {_dotted(MIN_PYTHON)} or newer",
            effect=UNTOUCHED,
            hint="take another base, such as python:3.11-slim",
        )
    torch = inside.packages.get("torch")
    if torch is None or locked_torch is None or torch.partition("+")[0] == locked_torch:
        return ()
    return (
        f"{base.name} brings torch {torch}, and {locked_torch} is installed beside it: this image is larger than one "
        "on a base without torch",
    )


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _cannot_run(image: str, platform: str, said: str) -> CloudftError:
    last = " ".join(said.splitlines()[-1:])
    if "exec format error" in said:
        return EnvironmentProblem(
            f"this computer cannot run programs of {platform}: {last}",
            effect=UNTOUCHED,
            hint="let Docker emulate it, once:  docker run --privileged --rm tonistiigi/binfmt --install all",
        )
    if "not found" in said or "no such file" in said:
        hint = f"take another base in {KEY}, such as python:3.11-slim"
        return ConfigError(f"{image} has no program called python: {last}", effect=UNTOUCHED, hint=hint)
    return EnvironmentProblem(f"python in {image} fails: {last}", effect=UNTOUCHED, hint=f"take another {KEY}")


def _here(client: DockerClient, name: str, platform: str) -> str | None:
    """What pins the image of that name and platform that the engine has: its digest, or else its id."""
    from docker.errors import ImageNotFound

    wanted = parse_image(name, KEY)
    with talking(f"look for {name}", wanted):
        try:
            image = client.images.get(name)
        except ImageNotFound:
            return None
    if _platform(image) != platform:
        return None
    known = (parse_image(text, KEY) for text in image.attrs.get("RepoDigests") or ())
    digest = next((ref.digest for ref in known if ref.same_repository(wanted)), None)
    return wanted.pinned(digest) if digest else str(image.id)


def _platform(image: Any) -> str:
    return f"{image.attrs['Os']}/{image.attrs['Architecture']}"


def _no_platform(base: Base) -> ConfigError:
    return ConfigError(
        f"{KEY}: there is no {base.name} for {base.platform}",
        effect=UNTOUCHED,
        hint="take another base or another --platform; rented machines are linux/amd64",
    )


def _unusable(name: str, exc: CloudftError) -> CloudftError:
    """The same error, and the key of cloudft.yaml that it comes from."""
    hint = f"{exc.hint}    or take another {KEY}" if exc.hint else f"take another {KEY}"
    return type(exc)(f"{KEY}: {name}: {exc.what}", effect=exc.effect, hint=hint)
