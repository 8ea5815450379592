"""``cloudft build`` for a project: from its ``cloudft.yaml``, with the lock beside it, to the image pinned in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from cloudft.errors import CloudftError, ConfigError
from images.build import BuiltImage, Plan, build_image, current_content
from images.extras import collect
from images.lock import ImageLock
from images.reference import is_local_id, is_pinned
from local.config import BuildConfig, Config, load_config
from local.files import write_json
from local.pin import pin_image
from local.progress import Progress
from local.project import Project

# Beside cloudft.yaml, to be committed with it: with the lock, a colleague's build makes the very same image, or none.
LOCK_NAME = "image.lock.json"


@dataclass(frozen=True)
class ProjectImage:
    """``written``: the files that were changed. ``runs_here_only``: it has no name that another machine could pull."""

    image: BuiltImage
    written: tuple[str, ...]
    runs_here_only: bool


def build_project_image(
    project: Project,
    *,
    push: bool = True,
    platform: str | None = None,
    update_base: bool = False,
    progress: Progress,
) -> ProjectImage:
    """Build the project's training image if anything changed, push it, and pin it in ``cloudft.yaml``.

    Without ``push`` the image stays in this computer's engine; it is pinned, by its id, only for provider ``docker``,
    which is the only one that can run it.

    Raises:
        CloudftError: see ``images.build.build_image`` and ``local.pin.pin_image``; ``cloudft.yaml`` is as it was.
    """
    config = load_config(project.config_file)
    plan = replace(
        _plan(project, config.build, read_lock(project)),
        backend=config.train.backend,
        push=push,
        update_base=update_base,
        platform=platform or config.build.platform,
    )
    built = build_image(plan, progress)
    written = []
    if push or config.provider == "docker":
        lock = built.lock.model_dump(mode="json")
        if lock != _raw_lock(project):
            write_json(project.root / LOCK_NAME, lock)
            written.append(LOCK_NAME)
        # Last: from here on, `cloudft submit` takes this image.
        if pin_image(project, built.lock.image):
            written.append(project.config_file.name)
    return ProjectImage(built, tuple(written), is_local_id(built.lock.image))


def read_lock(project: Project) -> ImageLock | None:
    """The lock of the last build; None without one, or with one that another version wrote."""
    try:
        return ImageLock.model_validate(_raw_lock(project))
    except ValidationError:
        return None


def check_image(project: Project, config: Config) -> str | None:
    """Refuse an image that the provider cannot run as it was built; returns a note on one that is out of date.

    Needs no engine and no network, so that `submit` can ask it every time.

    Raises:
        ConfigError: a rented machine would get an image that it cannot pull, that may change under its name, or that
            holds another backend.
    """
    image = config.image
    if image is None or config.provider == "local":
        return None
    if config.rents and not is_pinned(image):
        why = "is known to this computer only" if is_local_id(image) else "names no digest, so it may change"
        raise ConfigError(
            f"image: {image} {why}",
            effect="nothing was rented",
            hint="push it and pin it by digest:  cloudft build",
        )
    lock = read_lock(project)
    backend = config.train.backend
    if lock is None or lock.image != image:
        return None if backend == "trl" else "whether the image holds Unsloth cannot be told: it was not built here"
    if lock.contents is not None and lock.contents.backend != backend:
        raise ConfigError(
            f"image: {image} was built for backend {lock.contents.backend}, but train.backend is {backend}",
            effect="nothing was started",
            hint=f"build one for it:  cloudft build    or set train.backend to {lock.contents.backend}",
        )
    try:
        extras = collect(project.root, listed(config.build.requirements), listed(config.build.files))
        now = current_content(lock, build_args(config.build), extras)
    except CloudftError as exc:
        return f"whether the image is up to date could not be told: {exc}"
    same_base = lock.contents is None or lock.contents.base == config.build.base_image
    if same_base and now in (None, lock.content):
        return None
    return "the image was built from other files than those of this project and this cloudft:  cloudft build"


def _plan(project: Project, config: BuildConfig, earlier: ImageLock | None) -> Plan:
    return Plan(
        repository=config.repository,
        base_image=config.base_image,
        args=build_args(config),
        extras=collect(project.root, listed(config.requirements), listed(config.files)),
        earlier=earlier,
    )


def build_args(config: BuildConfig) -> dict[str, str]:
    """The build arguments that a project sets."""
    return {str(name): value for name, value in config.args.items()}


def listed(names: Sequence[str] | str) -> list[str]:
    """Several names, where one may be written alone."""
    return [names] if isinstance(names, str) else list(names)


def _raw_lock(project: Project) -> object:
    try:
        return json.loads(Path(project.root / LOCK_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
