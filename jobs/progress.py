"""Where in a run a checkpoint stands: which stage, how far in it, and what became of the stages before.

``stage.json`` in a checkpoint holds it. ``step`` counts the optimiser steps of the stage, ``steps_before`` those of the
stages before it; their sum is the checkpoint's step in the run, by which checkpoints are ordered.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jobs import checkpoints, ranks
from jobs.checkpoints import Checkpoint
from jobs.outcome import StageOutcome
from jobs.runlog import say
from jobs.spec import RunSpec

STAGE = "stage.json"
# The weights that the stage began with: what it goes back to if it makes things worse, and DPO's reference.
START = "start.safetensors"


@dataclass
class Progress:
    """``stage`` counts from 0. ``ended``: the stages before. ``before``: what the gate measured as this one began."""

    stage: int = 0
    step: int = 0
    steps_before: int = 0
    ended: list[StageOutcome] = field(default_factory=list)
    before: dict[str, Any] | None = None

    @property
    def steps(self) -> int:
        """Optimiser steps of the run."""
        return self.steps_before + self.step

    def write(self, folder: Path) -> None:
        (folder / STAGE).write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Progress:
        value = json.loads((folder / STAGE).read_text(encoding="utf-8"))
        return cls(**{**value, "ended": [StageOutcome(**stage) for stage in value["ended"]]})


def stage_name(spec: RunSpec, number: int) -> str:
    """``2-dpo``: for people, logs and metrics."""
    return f"{number + 1}-{spec.stages[number].kind}"


def find_checkpoint(folder: Path, spec: RunSpec) -> Checkpoint | None:
    """The newest whole checkpoint of this spec."""
    whole = []
    for checkpoint in checkpoints.sealed(folder, spec.sha256()):
        if damage := checkpoint.damage():
            say(f"warning: the checkpoint of step {checkpoint.step} is not used: {damage}")
        else:
            whole.append(checkpoint)
    if ranks.first():
        checkpoints.sweep(folder, keep=whole)
    return whole[0] if whole else None


def take_up(checkpoint: Checkpoint, metrics: Path, rejected: Path) -> Progress:
    """Where the checkpoint stands; its metrics become this process's, and those of later steps are gone."""
    progress = Progress.read(checkpoint.path)
    if ranks.first() and checkpoints.METRICS in checkpoint.files:
        shutil.copyfile(checkpoint.path / checkpoints.METRICS, metrics)
    if ranks.first() and (kept_out := checkpoint.path / checkpoints.REJECTED).is_dir():
        shutil.copytree(kept_out, rejected, dirs_exist_ok=True)
    say(f"going on from the checkpoint of step {checkpoint.step}, in stage {progress.stage + 1}")
    return progress
