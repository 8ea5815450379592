"""Where an attempt's seconds went, by the machine's own account (its outcome, or its last heartbeat).

Whatever goes on side by side is counted once, so that the phases of a receipt add up to what is billed. While inputs,
checkpoint and base come, it is *download*, whatever else is done meanwhile; so ``docs/how-it-works.md`` tells it.
"""

from __future__ import annotations

import math
from typing import Any

BOOT, DOWNLOAD, START, MEASURE, TRAIN, SAVE, UPLOAD = (
    "boot and pull",
    "download",
    "start-up",
    "measure",
    "train",
    "save",
    "upload",
)
# What a phase of the supervisor, and one of the trainer inside it, is called.
SUPERVISOR = {
    "boot": START,
    "fetch": DOWNLOAD,
    "earlier tries": TRAIN,
    "stopping": TRAIN,
    "upload": UPLOAD,
    "record": UPLOAD,
}
TRAINER = {"import": START, "load": START, "measure": MEASURE, "train": TRAIN, "save": SAVE}
# The trainer's life, from its inputs to its end, in the supervisor's words.
TRAINERS_LIFE = ("train", "stopping")


def phases_of(created_at: float, told: dict[str, Any]) -> dict[str, float]:
    """Seconds of each phase, in the order in which they came; {} for a machine that told nothing.

    Args:
        created_at: the attempt's creation, epoch seconds; until the container's start it is *boot and pull*.
        told: what the machine wrote.
    """
    if "started_at" not in told:
        return {}
    whole: dict[str, float] = dict(told.get("phases") or {})
    trained: dict[str, float] = (told.get("trainer") or {}).get("phases") or {}
    seconds = dict.fromkeys((BOOT, DOWNLOAD, START, MEASURE, TRAIN, SAVE, UPLOAD), 0.0)
    seconds[BOOT] = max(told["started_at"] - created_at, 0.0)
    if trained:
        life, named = math.fsum(whole.pop(name, 0.0) for name in TRAINERS_LIFE), math.fsum(trained.values())
        # Python's start and end, and some words between the phases. Where a clock was set, no second counts twice.
        seconds[START] += max(life - named, 0.0)
        trained = {name: value * min(1.0, life / named) if named else 0.0 for name, value in trained.items()}
    for names, each in ((SUPERVISOR, whole), (TRAINER, trained)):
        for name, value in each.items():
            seconds[names.get(name, name)] = seconds.get(names.get(name, name), 0.0) + max(value, 0.0)
    return {name: value for name, value in seconds.items() if value > 0 or name in (BOOT, DOWNLOAD, START)}


def to_first_step(told: dict[str, Any]) -> float | None:
    """Seconds from the container's start to the first step of its last trainer; None where there was none."""
    first = (told.get("trainer") or {}).get("first_step_at")
    return None if first is None or "started_at" not in told else max(first - told["started_at"], 0.0)
