"""The run spec: all that defines a run, frozen at submit, and the only thing the machine side knows.

A spec is data. It names its inputs by sha256, its base by commit, its image by digest, and carries
every hyperparameter with the reason for its value, so that a run can be repeated from it alone.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from jobs.backends import Backend, refusal
from jobs.trackers import Tracking

SCHEMA_VERSION: Literal[1] = 1

Kind = Literal["cpt", "sft", "dpo"]
Method = Literal["lora", "qlora", "dora", "rslora", "full"]
# One adapter goes through all stages, so these cannot differ between them.
SHARED = ("method", "lora_r", "lora_alpha", "lora_dropout", "dtype")

# Tokens. Longer rows are left out of a gate's measurement: a row of any length would fit no bound on time.
LONGEST_MEASURED = 4096

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

    The hold-out never travels: only its hash does, so that a report can prove what was held out. ``validation`` is a
    part of the training rows that travels but is never trained on: each stage is measured on it (``Gate``).
    ``replay``: general rows of the same form that are mixed into the training against forgetting; ``general``: such
    rows that are only measured, before and after.
    """

    train: FileRef
    train_rows: int = Field(gt=0)
    holdout_sha256: str = Field(pattern=SHA256)
    holdout_rows: int = Field(ge=0)
    split_seed: int
    validation: FileRef | None = None
    validation_rows: int = Field(default=0, ge=0)
    replay: FileRef | None = None
    replay_rows: int = Field(default=0, ge=0)
    general: FileRef | None = None
    general_rows: int = Field(default=0, ge=0)


class Gate(Frozen):
    """How a stage is measured, before and after, on the validation rows; one that makes things worse is kept out.

    ``json``: answers are generated greedily, at most ``max_tokens`` each, and scored as the task says (valid by
    ``json_schema``, equal in ``keys``); ``loss``: the mean loss of the answers' tokens. No more than ``rows`` rows, no
    longer than ``seconds``, and after a stage no longer than ``share`` of the time that it trained, or ten seconds.
    """

    kind: Literal["json", "loss"]
    json_schema: dict[str, Any] | None = None
    keys: tuple[str, ...] = ()
    max_tokens: int = Field(default=256, gt=0)
    rows: int = Field(default=64, gt=0)
    seconds: float = Field(default=60, gt=0)
    share: float = Field(default=0.05, gt=0, le=1)


class Stage(Frozen):
    """One stage of training, every hyperparameter resolved.

    ``cpt`` reads on in raw text (``{"text"}``), ``sft`` learns the answers of the training rows, ``dpo`` prefers one
    answer to another (``{"prompt", "chosen", "rejected"}``). ``data`` is the file of a cpt or dpo stage, ``rows`` its
    documents or pairs; an sft stage trains on ``Data.train``.

    Units: ``learning_rate`` per step; ``warmup`` a share of the steps; ``max_length`` tokens;
    ``max_steps`` optimiser steps (of ``batch_size × gradient_accumulation`` rows each; with ``packing`` a row is a
    block of ``max_length`` tokens, filled with whole examples). ``beta``: how strongly dpo holds on to where it
    began. ``activation_checkpointing``: None is for the machine to decide. ``gate``: whether the stage is kept out if
    it makes things worse. ``patience``: so many evaluations in a row without a lower loss end the stage; 0: none does.
    ``lora_*`` are None for a full fine-tune.
    ``origins`` says for each of these names where its value came from.
    """

    kind: Kind = "sft"
    method: Method = "lora"
    data: FileRef | None = None
    rows: int = Field(default=0, ge=0)
    max_steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    gradient_accumulation: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    scheduler: Literal["cosine", "linear", "constant"]
    warmup: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    max_length: int = Field(gt=0)
    packing: bool = False
    activation_checkpointing: bool | None = None
    beta: float | None = Field(default=None, gt=0)
    gate: bool = True
    patience: int = Field(default=0, ge=0)
    lora_r: int | None = Field(default=None, gt=0)
    lora_alpha: int | None = Field(default=None, gt=0)
    lora_dropout: float | None = Field(default=None, ge=0, lt=1)
    dtype: Literal["auto", "float32", "bfloat16"]
    origins: dict[str, str]

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Stage:
        if (self.data is None) != (self.kind == "sft"):
            raise ValueError(
                f"a stage of kind {self.kind} {'needs' if self.data is None else 'has no'} data of its own"
            )
        if (self.beta is None) != (self.kind != "dpo"):
            raise ValueError("beta belongs to a dpo stage, and only there")
        lora = (self.lora_r, self.lora_alpha, self.lora_dropout)
        if any((value is None) != (self.method == "full") for value in lora):
            raise ValueError("lora_r, lora_alpha and lora_dropout belong to every method but full, and only there")
        return self


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
    backend: Backend = Field(default="trl", description="Who computes the training; the image must hold it.")
    stages: tuple[Stage, ...] = Field(min_length=1, max_length=9)
    gate: Gate | None = Field(default=None, description="None: no stage is measured.")
    image: str | None = Field(
        default=None,
        description="Training image by digest, or the id of one that its provider built; None: this machine's Python.",
    )
    machine: MachineSpec = MachineSpec()
    tracking: Tracking = Tracking()
    budget_usd: float | None = Field(default=None, gt=0)
    max_hours: float = Field(gt=0)
    seed: int

    @model_validator(mode="after")
    def _one_adapter(self) -> RunSpec:
        first = self.stages[0]
        for name in SHARED:
            if any(getattr(stage, name) != getattr(first, name) for stage in self.stages):
                raise ValueError(f"all stages train the same weights, so {name} must be the same for all")
        stages = self.stages
        if why := refusal(self.backend, first.method, [s.kind for s in stages], [s.packing for s in stages]):
            raise ValueError(why)
        return self

    @property
    def method(self) -> Method:
        """How the weights are trained, in all stages."""
        return self.stages[0].method

    def data_files(self) -> tuple[FileRef, ...]:
        """The data files that travel to the machine: what is trained on, and what each stage is measured on."""
        data = self.data
        train = data.train if any(stage.kind == "sft" for stage in self.stages) else None
        files = (train, data.validation, data.replay, data.general, *(stage.data for stage in self.stages))
        return tuple(file for file in files if file is not None)

    def canonical(self) -> bytes:
        """The spec as canonical JSON (sorted keys, no blanks): the bytes that its hash is taken over."""
        data: dict[str, Any] = self.model_dump(mode="json")
        return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    def sha256(self) -> str:
        """Identity of the run's definition."""
        return hashlib.sha256(self.canonical()).hexdigest()
