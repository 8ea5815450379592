"""Images at the double: from a registry by name, or built from a Dockerfile and the files that were sent with it.

What is built is what was received: the commands, the files of the context, the build arguments. By default a build
only checks them; ``ImageStore.build`` can be set to one that really builds.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from grpclib import Status as Code

from .boxes import Status, new_result
from .faults import Faults
from .ledger import Ledger
from .refusal import Refused

REGISTRY_KEYS = ("REGISTRY_USERNAME", "REGISTRY_PASSWORD")
# [3p] Modal's builder is not Docker's: these are not known to it.
NOT_KNOWN = ("EXPOSE", "HEALTHCHECK", "LABEL", "ONBUILD", "STOPSIGNAL", "VOLUME", "MAINTAINER")


class BuildFailed(Exception):
    """A step of a build failed; the message is the end of its log."""


@dataclass(frozen=True)
class Definition:
    """What an image is made of. ``files``: path in the context → content."""

    commands: tuple[str, ...]
    bases: tuple[str, ...]
    files: Mapping[str, bytes] = field(repr=False)
    args: Mapping[str, str]
    login: Mapping[str, str] = field(repr=False)

    @property
    def reference(self) -> str | None:
        """The image of a registry, if it is nothing else."""
        plain = len(self.commands) == 1 and self.commands[0].startswith("FROM ") and not self.bases
        return self.commands[0].removeprefix("FROM ") if plain else None

    @property
    def id(self) -> str:
        """Equal content, equal image."""
        parts = [*self.commands, *self.bases, *(f"{k}={v}" for k, v in sorted(self.args.items()))]
        parts += [f"{name} {hashlib.sha256(data).hexdigest()}" for name, data in sorted(self.files.items())]
        return "im-" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:22]


@dataclass
class Build:
    """One build: until ``ready_at`` (real time) it goes on, printing its log."""

    definition: Definition
    started_at: float
    ready_at: float
    result: Any
    log: list[str]
    runs_as: str = ""

    @property
    def done(self) -> bool:
        return time.monotonic() >= self.ready_at

    @property
    def succeeded(self) -> bool:
        return bool(self.result.status == Status.GENERIC_STATUS_SUCCESS)

    def printed(self) -> list[str]:
        """The lines so far: they come evenly over the build's time."""
        if self.done:
            return self.log
        share = (time.monotonic() - self.started_at) / (self.ready_at - self.started_at)
        return self.log[: int(share * len(self.log))]


Builder = Callable[[Definition, str | None], tuple[str, list[str]]]


class ImageStore:
    """All images of a workspace, and the files that were sent for them.

    Attributes:
        build: makes an image of a Definition, on a base that was built before if there is one; returns what a runner
            takes for it, and the log. ``BuildFailed`` if it cannot be made. None: it is only looked at.
        registry_login: makes every image of a registry private, with that user and password.
        builds: by image id.
    """

    def __init__(self, faults: Faults, ledger: Ledger, now: Callable[[], float], rate: Callable[[], float]) -> None:
        self.faults, self.ledger = faults, ledger
        self._now, self._rate = now, rate
        self.registry_login: tuple[str, str] | None = None
        self.build: Builder | None = None
        self.builds: dict[str, Build] = {}
        self.mounts: dict[str, dict[str, str]] = {}
        self.blobs: dict[str, bytes] = {}

    def get_or_build(self, definition: Definition) -> tuple[Build, bool]:
        """The image of that content, and whether it was there; one that failed is tried again."""
        known = self.builds.get(definition.id)
        if known is not None and (known.succeeded or not known.done):
            return known, known.done
        slow = self.faults.take("slow_build")
        began = time.monotonic()
        result, runs_as, log = self._made(definition)
        took = slow.value if slow else time.monotonic() - began
        self.builds[definition.id] = Build(definition, began, began + took, result, log, runs_as)
        self._bill(definition, took)
        return self.builds[definition.id], False

    def of(self, image_id: str) -> Build:
        """A finished image."""
        found = self.builds.get(image_id)
        if found is None or not found.done or not found.succeeded:
            raise Refused(Code.NOT_FOUND, f"no image {image_id}")
        return found

    def files(self, mount_id: str) -> dict[str, bytes]:
        """What was sent, as paths relative to the context."""
        return {name.lstrip("/"): self.blobs[sha] for name, sha in self.mounts.get(mount_id, {}).items()}

    def _made(self, definition: Definition) -> tuple[Any, str, list[str]]:
        log = [f"=> Step {i}: {command}" for i, command in enumerate(instructions(definition.commands))]
        try:
            if self.faults.take("build_fails") is not None:
                raise BuildFailed("the registry does not answer")
            self._check(definition)
            if len(definition.commands) == 1 and definition.bases:
                # A layer without a step of its own.
                return new_result(Status.GENERIC_STATUS_SUCCESS), self.of(definition.bases[0]).runs_as, log
            runs_as = definition.reference or definition.id
            if self.build is not None and definition.reference is None:
                base = self.of(definition.bases[0]).runs_as if definition.bases else None
                runs_as, log = self.build(definition, base)
        except BuildFailed as exc:
            # Of what is built from a Dockerfile the log alone tells why.
            told = str(exc) if definition.reference else ""
            return new_result(Status.GENERIC_STATUS_FAILURE, 1, told), "", [*log, f"ERROR: {exc}"]
        return new_result(Status.GENERIC_STATUS_SUCCESS), runs_as, [*log, "Saved image"]

    def _check(self, definition: Definition) -> None:
        private = definition.reference is not None and self.registry_login is not None
        if private and tuple(definition.login.get(key) for key in REGISTRY_KEYS) != self.registry_login:
            raise BuildFailed("unauthorized: authentication required")
        steps = instructions(definition.commands)
        if not steps or not steps[0].startswith("FROM "):
            raise BuildFailed(f"the first instruction must be FROM, not {steps[0] if steps else 'nothing'}")
        for step in steps:
            word, _, rest = step.partition(" ")
            if word.upper() in NOT_KNOWN:
                raise BuildFailed(f"unsupported instruction {word}")
            if word.upper() == "COPY" and not rest.startswith("--from="):
                for source in rest.split()[:-1]:
                    if not any(_below(name, source) for name in definition.files):
                        raise BuildFailed(f"COPY: {source} is not in the build context")

    def _bill(self, definition: Definition, took: float) -> None:
        """[assumed] The builder's minutes are billed; an image that is only fetched from a registry is not."""
        if definition.reference is None and took > 0:
            account = f"{definition.id}-{len(self.builds)}"
            self.ledger.open(account, "cloudft-image", self._rate(), self._now())
            self.ledger.close(account, self._now() + took)


def instructions(commands: tuple[str, ...]) -> list[str]:
    """The instructions of a Dockerfile, one a line: comments out, continued lines joined."""
    lines = [line for line in commands if line.strip() and not line.lstrip().startswith("#")]
    return [line.strip() for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).split("\n")]


def copied(definition: Definition) -> Iterator[tuple[str, bytes]]:
    """Path in the image → content, by the COPY instructions of our Dockerfile."""
    for step in instructions(definition.commands):
        word, *rest = step.split()
        if word != "COPY":
            continue
        *sources, target = rest
        for source in sources:
            for name, data in definition.files.items():
                if _below(name, source):
                    inside = name.removeprefix(source) if source.endswith("/") else name.rpartition("/")[2]
                    yield f"{target.rstrip('/')}/{inside.lstrip('/')}", data


def _below(name: str, source: str) -> bool:
    return name == source or name.startswith(source.rstrip("/") + "/") or fnmatchcase(name, source)
