"""Whether a training fits this computer: where nothing is rented, running out of memory kills other programs too."""

from __future__ import annotations

import psutil

from cloudft.errors import ConfigError
from jobs.gpu import GpuWatch
from local.config import NOTHING_STARTED
from local.planning.estimate import Work, needed
from local.planning.fit import ways_to_fit


def memory_here() -> int:
    """Bytes that a training may take on this computer at most: a GPU's, or all that programs share, the larger."""
    shared = int(psutil.virtual_memory().total) + int(psutil.swap_memory().total)
    return max(shared, int(GpuWatch().sample().get("memory_total_bytes") or 0))


def check_memory_here(work: Work, gpus: int, memory: int) -> None:
    """Refuse what cannot fit, even with the least that it may need.

    Args:
        gpus: how many share the states of a full fine-tune.
        memory: bytes that there are.

    Raises:
        ConfigError: it needs more, and what would fit.
    """
    need = needed(work, None, gpus)
    if need is None or need.least <= memory:
        return
    ways = [way.text for way in ways_to_fit(work, None, int(memory / 1e9), gpus)]
    rented = [f"{text} with provider runpod, modal or auto" if text.startswith("--gpu") else text for text in ways]
    raise ConfigError(
        f"the training needs {need.least / 1e9:,.0f} GB of memory or more; this computer has {memory / 1e9:,.0f} GB",
        effect=NOTHING_STARTED,
        hint="; or ".join([*rented, "a smaller base"]),
    )
