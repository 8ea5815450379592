"""The best weights of a stage so far, on the disk and in its checkpoints: what goes home if the stage ends now.

Of a full fine-tune they are there twice: in the 32 bits that training goes on from, and as the 16-bit model that goes
home, which the supervisor can take out of a checkpoint when the trainer is gone.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from jobs import ranks
from jobs.checkpoints import BEST, BEST_FACTS, WEIGHTS
from jobs.model import Tuned
from jobs.saving import write_adapter, write_model

# Of a full fine-tune, in the 32 bits that training goes on from.
WHOLE = "weights.safetensors"


class Best:
    """Kept in ``folder``. With several ranks all of them call each method, and the first one writes."""

    def __init__(self, folder: Path, tuned: Tuned) -> None:
        self.folder, self.tuned = folder, tuned

    def take_up(self, checkpoint: Path | None) -> None:
        """Begin with the best that a checkpoint holds, or with none."""
        if not ranks.first():
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        if checkpoint is not None and (checkpoint / BEST).is_dir():
            shutil.copytree(checkpoint / BEST, self.folder)

    def take(self, facts: dict[str, Any]) -> None:
        """The model as it is now is the best. ``facts`` say of what step."""
        part = self.folder.with_name(f".{self.folder.name}.part")
        if ranks.first():
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        if self.tuned.method == "full":
            self.tuned.write_weights(part / WHOLE)
            write_model(self.tuned, part, half=True)
        elif ranks.first():
            write_adapter(self.tuned.model, self.tuned.base, part)
        if ranks.first():
            (part / BEST_FACTS).write_text(json.dumps(facts), encoding="utf-8")
            shutil.rmtree(self.folder, ignore_errors=True)
            part.rename(self.folder)

    def put_back(self) -> None:
        """Make it the model."""
        ranks.wait()
        if self.tuned.method == "full":
            self.tuned.put_back(self.folder / WHOLE)
            return
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        set_peft_model_state_dict(self.tuned.model, load_file(self.folder / WEIGHTS), adapter_name="default")
