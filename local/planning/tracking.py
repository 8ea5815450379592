"""Trackers that a project reports to, checked before anything is rented: is the package there, is the key?"""

from __future__ import annotations

import contextlib
import importlib.util
import netrc
import os
import re

from cloudft.errors import ConfigError, EnvironmentProblem
from jobs.trackers import CREDENTIAL, TRACKERS, Tracker, Tracking
from local.build_image import read_lock
from local.config import TOKEN, Config
from local.project import Project

NOTHING = "nothing was rented, and no run was made"


def tracking_of(config: Config) -> Tracking:
    """What goes into the spec.

    Raises:
        ConfigError: a setting is none of these trackers', or is a credential: those are named, not contained.
    """
    train = config.train
    prefixes = tuple(tracker.prefix for tracker in TRACKERS.values())
    for name, value in train.report_environment.items():
        if not name.startswith(prefixes):
            raise ConfigError(
                f"train.report_environment: {name} is no setting of a tracker ({', '.join(prefixes)}…)",
                effect=NOTHING,
                hint="it would be passed on to the trackers only",
            )
        if CREDENTIAL.search(name) or TOKEN.match(value):
            # The value is not repeated: it may be the key itself.
            raise ConfigError(
                f"train.report_environment: {name} is a credential, and the spec of a run is no place for one",
                effect=NOTHING,
                hint=f"keep it with the provider and name it:  machine.secrets: {{{name}: my_secret}}",
            )
    return Tracking(report_to=tuple(dict.fromkeys(train.report_to)), environment=train.report_environment)


def check_tracking(project: Project, config: Config, tracking: Tracking) -> tuple[str, ...]:
    """Whether what the run reports to can be reached from where it trains, as far as that can be known here.

    Returns:
        What could not be known, for a person to read.

    Raises:
        ConfigError: a tracker's key is named nowhere, or the image is known to lack its package.
        EnvironmentProblem: provider ``local``, and the package or the key is not on this computer.
    """
    notes = []
    for name in tracking.report_to:
        tracker = TRACKERS[name]
        if note := _check_package(project, config, name, tracker):
            notes.append(note)
        _check_secret(config, tracking, name, tracker)
    return tuple(notes)


def _check_package(project: Project, config: Config, name: str, tracker: Tracker) -> str:
    if config.provider == "local":
        if not any(importlib.util.find_spec(module) for module in tracker.modules):
            raise EnvironmentProblem(
                f"train.report_to: {name} cannot be imported on this computer",
                effect=NOTHING,
                hint=f"install it:  pip install {tracker.package}",
            )
        return ""
    if config.provider == "manual":
        return f"reports to {name} if that machine has its package:  pip install {tracker.package}"
    lock = read_lock(project)
    if lock is None or lock.image != config.image or lock.contents is None:
        return f"reports to {name} if the image has its package; what is in this image is not known here"
    inside = {_plain(package) for package in lock.contents.packages}
    if not inside & {_plain(tracker.package), *map(_plain, tracker.modules)}:
        raise ConfigError(
            f"train.report_to: {name} is not in the training image",
            effect=NOTHING,
            hint=f"write {tracker.package} into a file, name that as build.requirements, then:  cloudft build",
        )
    return ""


def _check_secret(config: Config, tracking: Tracking, name: str, tracker: Tracker) -> None:
    if not tracker.secret or config.provider == "manual":
        return
    if tracker.without_secret and tracker.without_secret in tracking.environment.items():
        return
    if config.provider == "local":
        if os.environ.get(tracker.secret) or (name == "wandb" and _logged_in()):
            return
        what, hint = f"{tracker.secret} is not set", f"export {tracker.secret}=…"
        raise EnvironmentProblem(f"train.report_to: {name} needs its key: {what}", effect=NOTHING, hint=hint)
    if tracker.secret not in config.machine.secrets:
        offline = (
            f"; or {': '.join(tracker.without_secret)} as train.report_environment" if tracker.without_secret else ""
        )
        raise ConfigError(
            f"train.report_to: {name} needs its key on the machine, and machine.secrets names no {tracker.secret}",
            effect=NOTHING,
            hint=f"keep the key with the provider, then:  machine.secrets: {{{tracker.secret}: my_secret}}{offline}",
        )


def _logged_in() -> bool:
    """Whether ``wandb login`` has left its key here."""
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        host = re.sub(r"^https?://", "", os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).rstrip("/")
        return netrc.netrc().authenticators(host) is not None
    return False


def _plain(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()
