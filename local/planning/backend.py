"""Whether what is asked for can compute with the backend that the project names, said before anything is started."""

from __future__ import annotations

import importlib.util

from cloudft.errors import ConfigError, EnvironmentProblem
from local.config import NOTHING_STARTED, Config
from local.planning.quote import wishes_of


def check_backend(config: Config) -> None:
    """Refuse machines that the backend cannot use.

    Raises:
        ConfigError: several GPUs for a backend that trains on one.
        EnvironmentProblem: this computer is to train, and lacks it.
    """
    if config.train.backend != "unsloth":
        return
    if config.rents and (several := next((wish for wish in wishes_of(config) if wish.count > 1), None)):
        raise ConfigError(
            f"gpu: {several.text}: backend unsloth trains on one GPU",
            effect="nothing was rented",
            hint=f"ask for one:  --gpu {several.text.partition(':')[0]}    or set train.backend to trl",
        )
    if not config.rents and config.machine.gpus > 1:
        raise ConfigError(
            f"machine.gpus: {config.machine.gpus}: backend unsloth trains on one GPU",
            effect=NOTHING_STARTED,
            hint="set machine.gpus to 1, or train.backend to trl",
        )
    if config.provider == "local" and importlib.util.find_spec("unsloth") is None:
        raise EnvironmentProblem(
            "provider local trains on this computer, but unsloth cannot be imported",
            effect=NOTHING_STARTED,
            hint="it needs an environment of its own:  pip install 'cloudft[unsloth]'    or set train.backend to trl",
        )
