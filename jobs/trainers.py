"""TRL's trainers with checkpoints that are whole or not there, and that hold what would go home.

This module imports trl, so the trainer imports it when it has begun to work, and nobody else does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import Trainer
from trl import DPOTrainer, SFTTrainer

from jobs import checkpoints, ranks, sharding
from jobs.best import link_best
from jobs.course import Course
from jobs.memory import FitsMemory
from jobs.progress import START, Progress
from jobs.runlog import say
from jobs.validating import Evaluates

# The newest, and the one before it, should the newest be damaged or just be read by the supervisor.
KEEP = 2


@dataclass
class Keeping:
    """How a stage's checkpoints are kept, in ``root``. ``write`` writes what would go home into a folder.

    ``metrics`` travels with each, and ``rejected``, the adapters of stages that were kept out; so does ``start``, the
    weights that the stage began with, unless it is the first, whose start is the base and the seed; and what the stage
    found out on its way: ``course``, and in ``best`` the best weights so far.

    With several ranks all of them come here, and the first one writes.
    """

    root: Path
    spec_sha256: str
    metrics: Path
    write: Callable[[Path], None]
    progress: Progress
    start: Path | None
    rejected: Path
    course: Course
    best: Path

    def complete(self, folder: Path, step: int) -> None:
        """Make a folder that holds the trainer's files a checkpoint of the run, ``step`` steps into the stage."""
        if ranks.first():
            self._complete(folder, step)

    def _complete(self, folder: Path, step: int) -> None:
        self.course.write(folder)
        if step:  # at its start a stage has no best; what lies there is that of the one before
            link_best(self.best, folder)
        progress = replace(self.progress, step=step)
        progress.write(folder)
        if self.metrics.exists():
            shutil.copyfile(self.metrics, folder / checkpoints.METRICS)
        if self.start is not None:
            # A link: it may be as large as the model, and never changes.
            os.link(self.start, folder / START)
        if self.rejected.is_dir():
            shutil.copytree(self.rejected, folder / checkpoints.REJECTED, copy_function=os.link)
        target = self.root / f"{checkpoints.PREFIX}{progress.steps}"
        if target != folder:
            shutil.rmtree(target, ignore_errors=True)
            folder.rename(target)
        checkpoints.seal(target, progress.steps, self.spec_sha256, time.time())
        for old in checkpoints.sealed(self.root, self.spec_sha256)[KEEP:]:
            shutil.rmtree(old.path, ignore_errors=True)

    def at_start(self) -> None:
        """A checkpoint before the stage's first step: a machine that is lost now loses nothing of the stages before."""
        folder = self.root / f"{checkpoints.PREFIX}{self.progress.steps_before}"
        with or_said(folder):
            with ranks.together():
                if ranks.first():
                    shutil.rmtree(folder, ignore_errors=True)
                    folder.mkdir(parents=True)
            with ranks.together():
                self.write(folder)
            self.complete(folder, 0)


@contextlib.contextmanager
def or_said(folder: Path) -> Iterator[None]:
    """A checkpoint that cannot be saved, as on a full disk, is said; training goes on."""
    try:
        yield
    except (OSError, RuntimeError) as exc:  # torch.save has only RuntimeError for a disk that is full
        if ranks.first():
            shutil.rmtree(folder, ignore_errors=True)
        say(f"warning: no checkpoint at step {folder.name.removeprefix(checkpoints.PREFIX)}: {exc}")


class _Resumable(FitsMemory, Evaluates):
    """Its checkpoints are those of ``keeping``, also where trl has its own idea of one.

    Args:
        work: the run's work folder.
        held: rows to evaluate on.
    """

    def __init__(self, keeping: Keeping, work: Path, held: Sequence[dict[str, Any]], **settings: Any) -> None:
        self.keeping, self.course, self.work, self.held = keeping, keeping.course, work, held
        super().__init__(**settings)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Counts the tokens where the trainer below does not, as those that Unsloth rewrites."""
        known, mask = self._total_train_tokens, inputs.get("attention_mask")
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if model.training and self._total_train_tokens == known and mask is not None:
            self._total_train_tokens += int(mask.sum())
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        told = {"num_tokens": self._total_train_tokens} if "loss" in logs else {}
        super().log({**told, **logs}, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        self.keeping.write(Path(output_dir or self.args.output_dir))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step = int(self.state.global_step)
        folder = Path(self.args.output_dir) / f"{checkpoints.PREFIX}{step}"
        with or_said(folder):
            if ranks.first():
                shutil.rmtree(folder, ignore_errors=True)
            with ranks.together():  # each saves its own random state
                Trainer._save_checkpoint(self, model, trial)  # trl's own adds a model card
            self.keeping.complete(folder, step)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if sharding.sharded(self.model):
            sharding.load_weights(self.model, Path(resume_from_checkpoint))
        elif hasattr(self.model, "peft_config"):
            # Not by the library, which takes the best weights in a folder there for one more adapter, or for this one.
            self.model.load_adapter(resume_from_checkpoint, "default", is_trainable=True)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if sharding.sharded(self.model):
            sharding.save_optimizer(self.model, self.optimizer.optimizer, self.lr_scheduler, Path(output_dir))
        else:
            super()._save_optimizer_and_scheduler(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and sharding.sharded(self.model):
            sharding.load_optimizer(self.model, self.optimizer.optimizer, self.lr_scheduler, Path(checkpoint))
        else:
            super()._load_optimizer_and_scheduler(checkpoint)


class ResumableSFT(_Resumable, SFTTrainer):  # type: ignore[misc]
    """For cpt and sft."""


class ResumableDPO(_Resumable, DPOTrainer):  # type: ignore[misc]
    """For dpo. Its rows are encoded already, as the answers of an sft row are."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


TRAINERS: dict[str, type[_Resumable]] = {"cpt": ResumableSFT, "sft": ResumableSFT, "dpo": ResumableDPO}
