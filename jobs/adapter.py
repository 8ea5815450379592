"""The adapter's folder: what the trainer leaves behind, and all that goes home."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.checkpoints import ADAPTER_FILES, TEMPLATE, TOKENIZER_FILES, WEIGHTS
from jobs.spec import Base
from jobs.transfer import sha256_file


def save_adapter(model: Any, base: Base, tokenizer: Sequence[Path], template: str, target: Path) -> str:
    """Write ``target`` beside its place, then rename it; returns the sha256 of the weights."""
    part = target.with_name(".adapter.part")
    shutil.rmtree(part, ignore_errors=True)
    write_adapter(model, base, tokenizer, template, part)
    for path in part.iterdir():
        with path.open("rb") as written:
            os.fsync(written.fileno())
    part.rename(target)
    return sha256_file(target / WEIGHTS)


def write_adapter(model: Any, base: Base, tokenizer: Sequence[Path], template: str, target: Path) -> None:
    """Write the adapter's files into the folder ``target``, one by one; ``tokenizer``: the base's own files."""
    peft = target / "peft"
    config = model.peft_config["default"]
    # The base's name, not the folder of a machine that is soon gone.
    config.base_model_name_or_path = base.id
    config.revision = base.revision if base.source == "hub" else None
    # "auto" would ask the hub whether the base's vocabulary grew; this trainer never grows it.
    model.save_pretrained(str(peft), save_embedding_layers=False)
    for name in ADAPTER_FILES:
        (peft / name).rename(target / name)
    shutil.rmtree(peft)  # a model card that says nothing
    settings = json.loads((target / "adapter_config.json").read_text(encoding="utf-8"))
    settings["target_modules"] = sorted(settings["target_modules"])  # a set: in another order every time
    (target / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    for path in tokenizer:
        shutil.copyfile(path, target / path.name)
    (target / TEMPLATE).write_text(template, encoding="utf-8", newline="")
    for path in target.iterdir():
        path.chmod(0o644)


def tokenizer_files(base: Base, folder: Path | None) -> list[Path]:
    """The base's own files: written again by a library they come out changed."""
    if folder is None:
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(base.id, revision=base.revision, allow_patterns=list(TOKENIZER_FILES)))
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
