"""Builds the training image, only when something changed, pushes it, and pins it by digest.

The tag is made from all that the image is made from: the files of the context, the base's digest, the build arguments
and the platform. So whether there is anything to do is a question to the registry and the engine, not to a clock.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloudft.errors import ConfigError, EnvironmentProblem
from images.base import Base, check_base, have_base, look_inside, pin_base
from images.builder import run_build
from images.context import BuildContext, train_context, tree_sha256
from images.engine import UNTOUCHED, Progress, connect
from images.extras import NONE, Extras, add, refuse_secret
from images.lock import LABEL_CONTENT, LABEL_CONTENTS, Contents, ImageLock, contents_of
from images.reference import Reference, parse_repository
from images.registry import Registry
from jobs.backends import Backend

if TYPE_CHECKING:
    from docker import DockerClient

# The name of an image that stays in this engine, where no repository is set.
LOCAL_NAME = "cloudft-train"


@dataclass(frozen=True)
class Plan:
    """What to build and where to push it.

    ``repository`` may be None only without ``push``: then the image stays in this engine. ``args``: build arguments.
    ``earlier`` is the lock of the last build: its base is kept unless ``update_base``.
    """

    repository: str | None
    base_image: str
    platform: str = "linux/amd64"
    args: Mapping[str, str] = field(default_factory=dict)
    extras: Extras = NONE
    backend: Backend = "trl"
    push: bool = True
    update_base: bool = False
    earlier: ImageLock | None = None


@dataclass(frozen=True)
class BuiltImage:
    """``lock.image`` is what to pin. ``built`` and ``pushed``: what had to be done. ``notes``: good to know."""

    lock: ImageLock
    built: bool
    pushed: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Work:
    """One build on its way."""

    client: DockerClient
    plan: Plan
    repository: Reference
    context: BuildContext
    base: Base
    content: str
    progress: Progress

    @property
    def tag(self) -> str:
        return self.content[:16]

    @property
    def name(self) -> str:
        return f"{self.repository}:{self.tag}"


def build_image(plan: Plan, progress: Progress) -> BuiltImage:
    """Build, push and pin as the plan says; nothing is done again that is done already.

    Raises:
        ConfigError: names, base, requirements or arguments that cannot be, or that hold a secret.
        EnvironmentProblem: no engine, a full disk, or a platform that this computer cannot run.
        ProviderError: a registry refuses or cannot be reached.
        IntegrityError: the registry holds something else than what was pushed.
    """
    repository = _repository(plan)
    for name, value in plan.args.items():
        refuse_secret(f"build.args.{name}", value.encode(), addresses=True)
    with connect() as client, train_context(plan.backend) as plain:
        context = with_extras(plain, plan.extras)
        registry = Registry(client, repository) if plan.push else None
        if registry:
            progress("check the registry")
            registry.check_login()
        locked = _locked_base(plan)
        base = pin_base(client, plan.base_image, plan.platform, locked=locked, update=plan.update_base)
        content = content_sha256(context, base.pinned, plan.args, plan.platform)
        work = _Work(client, plan, repository, context, base, content, progress)
        digest = registry.digest(work.tag) if registry else None
        if registry and digest:
            return BuiltImage(_lock_of(work, registry, digest), built=False, pushed=False)
        image = _image_here(work)
        notes: tuple[str, ...] = ()
        built = image is None
        if image is None:
            image, notes = _build(work)
        if registry:
            digest = registry.push(work.tag, progress)
        return BuiltImage(_lock_of(work, registry, digest, image), built, registry is not None, notes)


def content_sha256(context: BuildContext, base: str, args: Mapping[str, str], platform: str) -> str:
    """Names the image: equal contents, equal images."""
    made_of = {"context": context.sha256, "base": base, "args": dict(sorted(args.items())), "platform": platform}
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def current_content(lock: ImageLock, args: Mapping[str, str], extras: Extras) -> str | None:
    """The content that an image would have if it were built now on the lock's base; None if the lock does not say.

    Needs no engine. Another value than ``lock.content`` means that the image is out of date.
    """
    if lock.contents is None:
        return None
    with train_context(lock.contents.backend) as plain:
        context = with_extras(plain, extras)
        return content_sha256(context, lock.contents.base_pinned, args, lock.contents.platform)


def with_extras(plain: BuildContext, extras: Extras) -> BuildContext:
    """The context with what a project adds; without any, it is the plain one.

    Raises:
        EnvironmentProblem: a file cannot be copied.
    """
    if extras == NONE:
        return plain
    try:
        add(extras, plain.folder, plain.dockerfile)
    except OSError as exc:
        raise EnvironmentProblem(
            f"{exc.filename} could not be copied into the build context: {exc.strerror or exc}",
            effect=UNTOUCHED,
            hint="free some space in the temporary folder, or name another one in TMPDIR",
        ) from exc
    return replace(plain, sha256=tree_sha256(plain.folder))


def _repository(plan: Plan) -> Reference:
    if plan.repository:
        return parse_repository(plan.repository)
    if not plan.push:
        return Reference(LOCAL_NAME)
    raise ConfigError(
        "build.repository is not set, so there is nowhere to push the image to",
        effect=UNTOUCHED,
        hint="set it in cloudft.yaml, such as ghcr.io/me/cloudft-train; for provider docker:  cloudft build --no-push",
    )


def _locked_base(plan: Plan) -> str | None:
    """The base of the last build, if the same one is asked for."""
    then = plan.earlier.contents if plan.earlier else None
    same = then and (then.base, then.platform) == (plan.base_image, plan.platform)
    return then.base_pinned if then and same else None


def _image_here(work: _Work) -> Any | None:
    """The finished image in this engine; None when it must be built."""
    from docker.errors import ImageNotFound

    try:
        image = work.client.images.get(work.name)
    except ImageNotFound:
        return None
    return image if image.labels.get(LABEL_CONTENT) == work.content and contents_of(image.labels) else None


def _build(work: _Work) -> tuple[Any, tuple[str, ...]]:
    """Build the image, look into it, and label it with what was found."""
    client, plan, base, progress = work.client, work.plan, work.base, work.progress
    have_base(client, base, progress)
    progress("check the base")
    notes = check_base(base, look_inside(client, base.pinned, plan.platform), _locked_torch(work.context))
    image = run_build(
        client,
        work.context.folder,
        work.context.dockerfile,
        platform=plan.platform,
        args={**plan.args, **work.context.args, "BASE_IMAGE": base.pinned},
        progress=progress,
    )
    progress("list what is inside")
    inside = look_inside(client, image, plan.platform)
    contents = Contents(
        base=base.name,
        base_pinned=base.pinned,
        platform=plan.platform,
        backend=plan.backend,
        python=inside.python,
        packages=inside.packages,
    )
    return _label(work, image, contents), notes


def _label(work: _Work, image: str, contents: Contents) -> Any:
    """Write on the image what is inside, known only now: a build of one line, which adds no layer; then name it."""
    labels = {
        LABEL_CONTENT: work.content,
        LABEL_CONTENTS: contents.model_dump_json(),
        "org.opencontainers.image.base.name": contents.base_pinned,
    }
    with tempfile.TemporaryDirectory(prefix="cloudft-label-", ignore_cleanup_errors=True) as tmp:
        (Path(tmp) / "Dockerfile").write_text(f"FROM {image}\n")
        run_build(
            work.client, Path(tmp), "Dockerfile", platform=contents.platform, args={}, labels=labels, tag=work.name
        )
    return work.client.images.get(work.name)


def _locked_torch(context: BuildContext) -> str | None:
    lock = context.requirements.read_text(encoding="utf-8")
    found = re.search(r"^torch==([^\s;]+)", lock, re.MULTILINE)
    return found[1] if found else None


def _lock_of(work: _Work, registry: Registry | None, digest: str | None, image: Any | None = None) -> ImageLock:
    """The lock of a finished image, from the image itself, from the registry, or from the last build's lock."""
    image = image or _image_here(work)
    told = registry.describe(digest) if registry and digest else None
    earlier = work.plan.earlier
    same = earlier if earlier and earlier.content == work.content else None
    contents = contents_of(image.labels) if image else contents_of(told.labels) if told else None
    return ImageLock(
        image=work.repository.pinned(digest) if digest else str(image.id) if image else "",
        tag=work.name,
        content=work.content,
        contents=contents or (same.contents if same else None),
        bytes=int(image.attrs["Size"]) if image else same.bytes if same else None,
        pull_bytes=told.pull_bytes if told else same.pull_bytes if same else None,
    )
