"""TRL's trainer with checkpoints that are whole or not there, and that hold the adapter as it would go home.

This module imports trl, so the trainer imports it when it has begun to work, and nobody else does.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import Trainer
from trl import SFTTrainer

from jobs import checkpoints

# The newest, and the one before it, should the newest be damaged or just be read by the supervisor.
KEEP = 2


class ResumableTrainer(SFTTrainer):  # type: ignore[misc]  # the library has no types
    """``write_adapter(model, folder)`` writes the adapter's files; ``metrics`` travels with each checkpoint."""

    def __init__(
        self, *, write_adapter: Callable[[Any, Path], None], metrics: Path, spec_sha256: str, **settings: Any
    ) -> None:
        self._write_adapter = write_adapter
        self._metrics_path = metrics
        self._spec_sha256 = spec_sha256
        super().__init__(**settings)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self._write_adapter(self.model, folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """A checkpoint that cannot be saved, as on a full disk, is said; training goes on."""
        step = int(self.state.global_step)
        root = Path(self.args.output_dir)
        folder = root / f"{checkpoints.PREFIX}{step}"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            Trainer._save_checkpoint(self, model, trial)  # SFTTrainer's own adds a model card
            if self._metrics_path.exists():
                shutil.copyfile(self._metrics_path, folder / checkpoints.METRICS)
            checkpoints.seal(folder, step, self._spec_sha256, time.time())
        except (OSError, RuntimeError) as exc:  # torch.save has only RuntimeError for a disk that is full
            shutil.rmtree(folder, ignore_errors=True)
            print(f"warning: no checkpoint at step {step}: {exc}", flush=True)
            return
        for old in checkpoints.sealed(root, self._spec_sha256)[KEEP:]:
            shutil.rmtree(old.path, ignore_errors=True)
