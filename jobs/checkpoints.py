"""Checkpoints on this machine's disk: folders ``checkpoint-<step>``, each valid once its seal is written.

Standard library only: the trainer writes them, the supervisor packs, uploads and fetches them. A checkpoint holds what
transformers' Trainer needs to go on (optimizer, scheduler, random state, step), the metrics up to its step, and the
adapter as it would go home, so that a run that goes no further still leaves that one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from jobs.transfer import sha256_file

FOLDER = "checkpoints"
PREFIX = "checkpoint-"
SEAL = "sealed.json"
METRICS = "metrics.jsonl"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "tekken.json",
)
WEIGHTS = "adapter_model.safetensors"
TEMPLATE = "chat_template.jinja"
ADAPTER_FILES = (WEIGHTS, "adapter_config.json")
# A full fine-tune, in one file or in shards.
MODEL_WEIGHTS = "model*.safetensors"
# In a result and a checkpoint: a folder for each stage that was kept out, with its adapter.
REJECTED = "rejected"
MODEL_INDEX = "model.safetensors.index.json"
# Beside the checkpoints, and in each: a folder with the best weights of the stage so far, and a file in it that says of
# what step.
BEST, BEST_FACTS = "best", "best.json"
RESULT_FILES = (*ADAPTER_FILES, MODEL_INDEX, "config.json", "generation_config.json", TEMPLATE, *TOKENIZER_FILES)


@dataclass(frozen=True)
class Checkpoint:
    """A sealed checkpoint: the state after ``step`` optimiser steps. ``at`` is the epoch second of its seal."""

    path: Path
    step: int
    at: float
    files: dict[str, str]

    def damage(self) -> str:
        """What is wrong with it; empty for one whose every file has its sha256."""
        for name, sha256 in self.files.items():
            path = self.path / name
            if not path.is_file():
                return f"{name} is missing"
            if sha256_file(path) != sha256:
                return f"the sha256 of {name} differs"
        return ""


def seal(path: Path, step: int, spec_sha256: str, at: float) -> None:
    """Make the folder a checkpoint: every file on the disk first, the seal last, in one rename."""
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name != SEAL)
    for file in files:
        _sync(file)
    content = {
        "step": step,
        "at": at,
        "spec_sha256": spec_sha256,
        "files": {file.relative_to(path).as_posix(): sha256_file(file) for file in files},
    }
    part = path / f".{SEAL}.part"
    part.write_text(json.dumps(content, indent=1), encoding="utf-8")
    _sync(part)
    part.replace(path / SEAL)
    _sync(path)


def sealed(folder: Path, spec_sha256: str | None = None) -> list[Checkpoint]:
    """The checkpoints in ``folder``, newest first; with ``spec_sha256`` only those of that spec."""
    found = []
    for path in folder.glob(f"{PREFIX}*") if folder.is_dir() else ():
        try:
            content = json.loads((path / SEAL).read_text(encoding="utf-8"))
            checkpoint = Checkpoint(path, int(content["step"]), float(content["at"]), dict(content["files"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if spec_sha256 in (None, content.get("spec_sha256")):
            found.append(checkpoint)
    return sorted(found, key=lambda c: c.step, reverse=True)


def sweep(folder: Path, keep: Sequence[Checkpoint]) -> None:
    """Remove what is no checkpoint to keep: ones that a sudden end left half-written, or that are damaged."""
    kept = {checkpoint.path for checkpoint in keep}
    for path in folder.iterdir() if folder.is_dir() else ():
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


def put_aside(folder: Path) -> Path:
    """Where what was at ``folder`` lies while something newer takes its place."""
    return folder.with_name(f".{folder.name}.old")


def weight_files(folder: Path) -> list[Path]:
    """The weights of a result or a checkpoint, of an adapter or of a whole model; none where there is no such thing."""
    if not folder.is_dir():
        return []
    return sorted([p for p in (folder / WEIGHTS,) if p.is_file()] + list(folder.glob(MODEL_WEIGHTS)))


def result_of(checkpoint: Checkpoint, target: Path) -> None:
    """Put what would go home of a checkpoint at ``target``, which must not be there yet: whole or not at all.

    The best weights of its stage so far, where it holds such, or else those of its own step.
    """
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    best = _best(checkpoint)
    for name in checkpoint.files:
        wanted = name in RESULT_FILES or fnmatch(name, MODEL_WEIGHTS) or name.startswith(f"{REJECTED}/")
        if wanted and not (best and has_weights(name)):
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkpoint.path / name, part / name)
    for name in best:
        shutil.copyfile(checkpoint.path / BEST / name, part / name)
    part.rename(target)


def result_step(checkpoint: Checkpoint) -> int:
    """The step of the run that ``result_of`` takes the weights from."""
    try:
        if _best(checkpoint):
            return int(json.loads((checkpoint.path / BEST / BEST_FACTS).read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return checkpoint.step


def _best(checkpoint: Checkpoint) -> list[str]:
    """The files of the best weights as they go home, by their names in its folder of them; none where it has none."""
    names = [name.removeprefix(f"{BEST}/") for name in checkpoint.files if name.startswith(f"{BEST}/")]
    return [name for name in names if has_weights(name)]


def has_weights(name: str) -> bool:
    """Whether a file of that name holds weights as they go home, or says which file has which."""
    return name in (WEIGHTS, MODEL_INDEX) or fnmatch(name, MODEL_WEIGHTS)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
