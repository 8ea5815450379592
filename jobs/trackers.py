"""The trackers that a run may report to: what each is called, and what it needs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

TrackerName = Literal["wandb", "mlflow", "comet_ml", "trackio", "tensorboard"]


@dataclass(frozen=True)
class Tracker:
    """``modules``: any of them must be importable; ``package``: what pip installs.

    ``secret`` is the environment variable of its key, "" for one that needs none; ``without_secret`` a setting
    (name, value) with which it does without, keeping its files on the machine, from where they come home.
    """

    modules: tuple[str, ...]
    package: str
    prefix: str
    secret: str = ""
    without_secret: tuple[str, str] | None = None


TRACKERS: dict[TrackerName, Tracker] = {
    "wandb": Tracker(("wandb",), "wandb", "WANDB_", "WANDB_API_KEY", ("WANDB_MODE", "offline")),
    "mlflow": Tracker(("mlflow",), "mlflow-skinny", "MLFLOW_"),
    "comet_ml": Tracker(("comet_ml",), "comet-ml", "COMET_", "COMET_API_KEY"),
    "trackio": Tracker(("trackio",), "trackio", "TRACKIO_"),
    "tensorboard": Tracker(("tensorboard", "tensorboardX"), "tensorboard", "TENSORBOARD_"),
}


class Tracking(BaseModel):
    """What a run reports to. ``environment``: settings of the trackers, by their own names, and never a credential."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    report_to: tuple[TrackerName, ...] = ()
    environment: dict[str, str] = {}


# A setting whose name says that it is a credential belongs into machine.secrets.
CREDENTIAL = re.compile(r"KEY|TOKEN|PASSWORD|SECRET|USERNAME")
