"""The result's folder: what the trainer leaves behind, and all that goes home.

For an adapter its weights and configuration, for a full fine-tune a 16-bit model; with either the base's own tokenizer
files and the chat template that was trained with.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import ranks, sharding
from jobs.checkpoints import ADAPTER_FILES, MODEL_INDEX, REJECTED, TEMPLATE, TOKENIZER_FILES, weight_files
from jobs.delivery import CANDIDATE, RESULT
from jobs.spec import Base
from jobs.transfer import sha256_files

if TYPE_CHECKING:
    from jobs.model import Tuned

# A file of a full fine-tune must go through one request of every store (S3's limit is 5 GB), and through FAT's.
SHARD = "4GB"
CONFIG_FILES = ("config.json", "generation_config.json")


def save_result(tuned: Tuned, target: Path, rejected: Path) -> str:
    """Write ``target`` beside its place, then rename it; returns the sha256 of the weights.

    All ranks call it, and the first one writes.

    Args:
        rejected: a folder with the adapters of stages that were kept out; they go along as ``rejected/<stage>``.
    """
    part = target.with_name(f".{target.name}.part")
    if ranks.first():
        shutil.rmtree(part, ignore_errors=True)
    write_result(tuned, part, half=True)
    if not ranks.first():
        return ""
    if rejected.is_dir():
        shutil.copytree(rejected, part / REJECTED)
    sync(part)
    part.rename(target)
    return sha256_files(weight_files(target))


def sync(folder: Path) -> None:
    """Every file in it is on the disk, before its name says that it is whole."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as written:
                os.fsync(written.fileno())


def withdraw(candidate: Path) -> None:
    """What the gate keeps out must not pass for a result, not even half of it: ``jobs.rescue`` takes what is there."""
    if ranks.first() and candidate.exists():
        gone = candidate.with_name(f".{candidate.name}.gone")
        shutil.rmtree(gone, ignore_errors=True)
        candidate.rename(gone)
        shutil.rmtree(gone)


def final_result(tuned: Tuned, out: Path, rejected: Path, *, saved: bool, kept: bool) -> str:
    """The result in its place: the candidate if it was ``saved`` and ``kept``, else as ``save_result``; its sha256."""
    candidate, target = out / CANDIDATE, out / RESULT
    if not (saved and kept):
        withdraw(candidate)
        return save_result(tuned, target, rejected)
    if not ranks.first():
        return ""
    candidate.rename(target)
    return sha256_files(weight_files(target))


def write_result(tuned: Tuned, target: Path, *, half: bool = False) -> None:
    """Write the result's files into the folder ``target``, one by one. All ranks call it, and the first one writes.

    Args:
        half: a full fine-tune in 16 bits, as a base is; without it in the 32 bits that training goes on from.
    """
    if ranks.first():  # from another it could come between the first's removing the folder and making it anew
        target.mkdir(parents=True, exist_ok=True)
    if tuned.method == "full":
        write_model(tuned, target, half)
    if not ranks.first():
        return
    if tuned.method != "full":
        write_adapter(tuned.model, tuned.base, target)
    for path in tuned.files:
        shutil.copyfile(path, target / path.name)
    (target / TEMPLATE).write_text(tuned.template, encoding="utf-8", newline="")
    for path in target.iterdir():
        path.chmod(0o644)


def keep_rejected(tuned: Tuned, folder: Path) -> None:
    """The adapter of a stage that was kept out: what was trained is never lost. Not a whole model, for its size."""
    if tuned.method != "full" and ranks.first():
        part = folder.parent.with_name(f".{folder.name}.part")  # not beside it: all that lies there goes home
        for old in (part, folder):
            shutil.rmtree(old, ignore_errors=True)
        write_adapter(tuned.model, tuned.base, part)
        folder.parent.mkdir(parents=True, exist_ok=True)
        part.rename(folder)


def write_adapter(model: Any, base: Base, target: Path) -> None:
    """The two files of an adapter."""
    peft = target / "peft"
    config = model.peft_config["default"]
    # The base's name, not the folder of a machine that is soon gone.
    config.base_model_name_or_path = base.id
    config.revision = base.revision if base.source == "hub" else None
    # "auto" would ask the hub whether the base's vocabulary grew; this trainer never grows it. dpo's reference is a
    # second adapter, which stays here.
    model.save_pretrained(str(peft), save_embedding_layers=False, selected_adapters=["default"])
    for name in ADAPTER_FILES:
        (peft / name).rename(target / name)
    shutil.rmtree(peft)  # a model card that says nothing
    settings = json.loads((target / "adapter_config.json").read_text(encoding="utf-8"))
    settings["target_modules"] = sorted(settings["target_modules"])  # a set: in another order every time
    (target / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    for name in ADAPTER_FILES:
        (target / name).chmod(0o644)


def write_model(tuned: Tuned, target: Path, half: bool) -> None:
    """The weights by the library, which knows what it renamed when it read them; all else as the base has it."""
    whole = target / "model"
    if sharding.sharded(tuned.model):
        _gather_model(tuned, whole, half)
    elif ranks.first():
        tuned.model.save_pretrained(str(whole), max_shard_size=SHARD, state_dict=_halved(tuned.model) if half else None)
    if not ranks.first():
        return
    for path in (*weight_files(whole), whole / MODEL_INDEX):
        if path.is_file():
            path.rename(target / path.name)
    shutil.rmtree(whole)


def _gather_model(tuned: Tuned, target: Path, half: bool) -> None:
    """The weights of a model that is shared out among the ranks; the library puts it together as it writes it."""
    from safetensors.torch import load_file, save_file

    tuned.model.save_pretrained(str(target), max_shard_size=SHARD, is_main_process=ranks.first())
    if not half or not ranks.first():
        return
    tied, size = _tied(tuned.model), 0
    for path in weight_files(target):
        kept = {name: tensor for name, tensor in _half_of(load_file(path)).items() if name not in tied}
        size += sum(tensor.nbytes for tensor in kept.values())
        save_file(kept, path, metadata={"format": "pt"})
    if (index := target / MODEL_INDEX).is_file():
        listed = json.loads(index.read_text(encoding="utf-8"))
        listed["metadata"]["total_size"] = size
        listed["weight_map"] = {name: file for name, file in listed["weight_map"].items() if name not in tied}
        index.write_text(json.dumps(listed, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _tied(model: Any) -> frozenset[str]:
    """Names of weights that are another's by definition. Gathered from the ranks, they no longer look the same."""
    return frozenset(model._tied_weights_keys or ()) if model.config.tie_word_embeddings else frozenset()


def _half_of(tensors: dict[str, Any]) -> dict[str, Any]:
    import torch

    return {name: t.to(torch.bfloat16) if t.is_floating_point() else t for name, t in tensors.items()}


def _halved(model: Any) -> dict[str, Any]:
    """The weights in 16 bits. Two names of one tensor, as of tied embeddings, stay one."""
    import torch

    made: dict[int, Any] = {}

    def half(tensor: Any) -> Any:
        if not tensor.is_floating_point():
            return tensor
        return made.setdefault(tensor.data_ptr(), tensor.detach().to("cpu", torch.bfloat16))

    return {name: half(tensor) for name, tensor in model.state_dict().items()}


def files_of_base(base: Base, folder: Path | None, method: str) -> list[Path]:
    """The base's own files that go with the result: written again by a library they come out changed."""
    names: Sequence[str] = TOKENIZER_FILES if method != "full" else (*TOKENIZER_FILES, *CONFIG_FILES)
    if folder is None:
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(base.id, revision=base.revision, allow_patterns=list(names)))
    return [folder / name for name in names if (folder / name).is_file()]
