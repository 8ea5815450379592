"""The best weights of a stage so far, on the disk and in its checkpoints: what goes home if the stage ends now.

On the disk they lie with all else that goes home, so that the supervisor has a result when the trainer is gone
(``jobs.rescue``); a checkpoint has the rest itself. Of a full fine-tune the weights are there twice: in the 32 bits
that training goes on from, and as the 16-bit model that goes home.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from jobs import ranks
from jobs.checkpoints import BEST, BEST_FACTS, WEIGHTS, has_weights, put_aside
from jobs.model import Tuned
from jobs.saving import sync, write_result

# Of a full fine-tune, in the 32 bits that training goes on from.
WHOLE = "weights.safetensors"


def link_best(folder: Path, checkpoint: Path) -> None:
    """The best weights, where there are such, into a checkpoint that is being made."""
    if folder.is_dir():
        target = checkpoint / BEST
        target.mkdir()
        for path in folder.iterdir():
            if has_weights(path.name) or path.name in (WHOLE, BEST_FACTS):
                os.link(path, target / path.name)


class Best:
    """Kept in ``folder``. With several ranks all of them call each method, and the first one writes."""

    def __init__(self, folder: Path, tuned: Tuned, run_id: str) -> None:
        self.folder, self.tuned, self.run_id = folder, tuned, run_id

    def forget(self) -> None:
        """The stage made nothing that should go home."""
        if ranks.first():
            for folder in (put_aside(self.folder), self.folder):
                shutil.rmtree(folder, ignore_errors=True)

    def take_up(self, checkpoint: Path | None) -> None:
        """Begin with the best that a checkpoint holds, or with none."""
        self.forget()
        if not ranks.first():
            return
        if checkpoint is not None and (checkpoint / BEST).is_dir():
            shutil.copytree(checkpoint / BEST, self.folder)

    def take(self, facts: dict[str, Any]) -> None:
        """The model as it is now is the best. ``facts`` say of what step (of the run: ``step``)."""
        part = self.folder.with_name(f".{self.folder.name}.part")
        if ranks.first():
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        if self.tuned.method == "full":
            self.tuned.write_weights(part / WHOLE)
        write_result(self.tuned, part, half=True)
        if ranks.first():
            sizes = {path.name: path.stat().st_size for path in part.iterdir() if path.name != WHOLE}
            told = {**facts, "run_id": self.run_id, "files": sizes}
            (part / BEST_FACTS).write_text(json.dumps(told), encoding="utf-8")
            sync(part)
            self._replace(part)

    def _replace(self, part: Path) -> None:
        """At every moment one of the two is whole under one of the names that ``jobs.rescue`` looks at."""
        aside = put_aside(self.folder)
        shutil.rmtree(aside, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(aside)
        part.rename(self.folder)
        shutil.rmtree(aside, ignore_errors=True)

    def put_back(self) -> None:
        """Make it the model."""
        ranks.wait()
        if self.tuned.method == "full":
            self.tuned.put_back(self.folder / WHOLE)
            return
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        set_peft_model_state_dict(self.tuned.model, load_file(self.folder / WEIGHTS), adapter_name="default")
