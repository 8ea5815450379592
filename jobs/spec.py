"""The run spec: all that defines a run, frozen at submit, and the only thing the machine side knows.

A spec is data. It names its inputs by sha256, its base by commit, its image by digest, and carries
every hyperparameter with the reason for its value, so that a run can be repeated from it alone.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION: Literal[1] = 1

SHA256 = r"^[0-9a-f]{64}$"


class Frozen(BaseModel):
    """A value that cannot be changed and that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRef(Frozen):
    """One file by content. ``path`` is relative, with forward slashes."""

    path: str
    sha256: str = Field(pattern=SHA256)
    bytes: int = Field(ge=0)


class Base(Frozen):
    """The 16-bit model that is tuned.

    ``hub``: ``id`` is a repository of the model hub, ``revision`` a commit sha.
    ``folder``: ``id`` is the folder as the user wrote it, ``revision`` the sha256 over the list of its
    files, and ``files`` that list, paths relative to the folder: they travel with the ticket.
    """

    source: Literal["hub", "folder"]
    id: str
    revision: str
    files: tuple[FileRef, ...] = ()
    parameters: int | None = Field(default=None, gt=0, description="Weights, if known; estimates rest on it.")


class Data(Frozen):
    """Training rows, as JSON lines of ``{"messages": [{"role", "content"}, …]}``, and the frozen hold-out.

    The hold-out never travels: only its hash does, so that a report can prove what was held out.
    """

    train: FileRef
    train_rows: int = Field(gt=0)
    holdout_sha256: str = Field(pattern=SHA256)
    holdout_rows: int = Field(ge=0)
    split_seed: int


class Stage(Frozen):
    """One stage of training, every hyperparameter resolved.

    Units: ``learning_rate`` per step; ``warmup`` a share of the steps; ``max_length`` tokens;
    ``max_steps`` optimiser steps (of ``batch_size × gradient_accumulation`` rows each).
    ``origins`` says for each of these names where its value came from.
    """

    kind: Literal["sft"] = "sft"
    method: Literal["lora"] = "lora"
    max_steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    gradient_accumulation: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    scheduler: Literal["cosine", "linear", "constant"]
    warmup: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    max_length: int = Field(gt=0)
    lora_r: int = Field(gt=0)
    lora_alpha: int = Field(gt=0)
    lora_dropout: float = Field(ge=0, lt=1)
    dtype: Literal["auto", "float32", "bfloat16"]
    origins: dict[str, str]


class MachineSpec(Frozen):
    """What a rented machine must have besides its GPU. ``secrets``: environment name to the provider's secret."""

    disk_gb: int = Field(default=20, gt=0)
    data_centers: tuple[str, ...] = ()
    registry: str | None = None
    secrets: dict[str, str] = {}


class RunSpec(Frozen):
    """Everything that defines a run. Unknown keys and unknown versions are refused, never ignored."""

    schema_version: Literal[1] = SCHEMA_VERSION
    run_id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{2,62}$")
    project: str
    base: Base
    data: Data
    template: str | None = Field(
        default=None, description="Jinja chat template; None: the one that the base's tokenizer brings."
    )
    stages: tuple[Stage, ...] = Field(min_length=1, max_length=1)
    image: str | None = Field(default=None, description="Training image by digest; None: this machine's Python.")
    machine: MachineSpec = MachineSpec()
    budget_usd: float | None = Field(default=None, gt=0)
    max_hours: float = Field(gt=0)
    seed: int

    def canonical(self) -> bytes:
        """The spec as canonical JSON (sorted keys, no blanks): the bytes that its hash is taken over."""
        data: dict[str, Any] = self.model_dump(mode="json")
        return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    def sha256(self) -> str:
        """Identity of the run's definition."""
        return hashlib.sha256(self.canonical()).hexdigest()
