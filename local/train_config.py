"""The ``train`` section of ``cloudft.yaml``: the method, the stages, and what each of them is told."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from jobs.backends import Backend, refusal
from jobs.trackers import TrackerName
from local.section import Section


class Hyperparameters(Section):
    """What a stage can be told. Leave one out and it is chosen from the data, with the reason logged."""

    max_steps: int | None = Field(default=None, gt=0, description="Optimiser steps; default: from epochs.")
    epochs: float | None = Field(
        default=None, gt=0, le=10_000, description="Passes over the data; default 3 for sft, else 1."
    )
    batch_size: int | None = Field(default=None, gt=0, description="Rows per step on the device.")
    gradient_accumulation: int | None = Field(default=None, gt=0)
    learning_rate: float | None = Field(default=None, gt=0)
    scheduler: Literal["cosine", "linear", "constant"] | None = None
    warmup: float | None = Field(default=None, ge=0, lt=1, description="Share of the steps.")
    weight_decay: float | None = Field(default=None, ge=0)
    max_length: int | None = Field(default=None, gt=0, description="Tokens per row; with packing, per block.")
    packing: bool | None = Field(default=None, description="Fill blocks of max_length tokens with whole short rows.")
    activation_checkpointing: bool | None = Field(
        default=None, description="Compute activations twice to save memory; default: where memory is short."
    )
    gate: bool | None = Field(
        default=None, description="Keep a stage out that makes things worse on the validation rows; default true."
    )
    patience: int | None = Field(
        default=None,
        ge=0,
        description="End a stage after so many evaluations in a row without a lower loss; 0: never; default 5.",
    )


class StageConfig(Hyperparameters):
    """One stage. What it leaves out is taken from ``train``, or chosen."""

    kind: Literal["cpt", "sft", "dpo"] = Field(
        description="cpt: read on in raw text; sft: learn the answers of data.path; dpo: prefer answers to others."
    )
    data: str | None = Field(
        default=None,
        description="File of a cpt stage (.txt, or JSON lines of text) or a dpo stage (prompt, chosen, rejected).",
    )
    beta: float | None = Field(default=None, gt=0, description="dpo: how strongly to hold on to where it began; 0.1.")

    @model_validator(mode="after")
    def _data_where_it_belongs(self) -> StageConfig:
        if self.kind == "sft" and self.data is not None:
            raise ValueError("an sft stage trains on data.path; leave its data out")
        if self.kind != "sft" and self.data is None:
            raise ValueError(f"a {self.kind} stage needs data: a file of its own")
        if self.kind != "dpo" and self.beta is not None:
            raise ValueError("beta belongs to a dpo stage")
        return self


class ReplayConfig(Section):
    """General rows among the training rows, so that the model forgets less of what it could before."""

    path: str = Field(description="File of general conversations, in the formats of data.path.")
    share: float = Field(default=0.1, gt=0, lt=1, description="Share of the rows that are trained on.")


class TrainConfig(Hyperparameters):
    """How to train. Leave a hyperparameter out and it is chosen from the data, with the reason logged."""

    backend: Backend = Field(
        default="trl",
        description="Who computes the training: trl, or unsloth, which has an image of its own (cloudft build) and "
        "trains lora, qlora and rslora adapters on one NVIDIA GPU.",
    )
    method: Literal["lora", "qlora", "dora", "rslora", "full"] = Field(
        default="lora", description="What is trained, in all stages: an adapter of one of four kinds, or all weights."
    )
    stages: list[StageConfig] | None = Field(
        default=None, min_length=1, max_length=9, description="What to do in turn; default: one sft stage."
    )
    lora_r: int | None = Field(default=None, gt=0)
    lora_alpha: int | None = Field(default=None, gt=0)
    lora_dropout: float | None = Field(default=None, ge=0, lt=1)
    dtype: Literal["auto", "float32", "bfloat16"] | None = None
    replay: ReplayConfig | None = None
    general: str | None = Field(
        default=None,
        description="File of general conversations that are measured before and after; default: rows left of replay.",
    )
    template: str | None = Field(default=None, description="File with a Jinja chat template; default: the base's.")
    report_to: list[TrackerName] = Field(default=[], description="Trackers; metrics.jsonl is written always.")
    report_environment: dict[str, str] = Field(default={}, description="The trackers' own settings. Never a key.")
    seed: int = Field(default=42, ge=0, lt=2**32, description="Seed of the training.")

    @model_validator(mode="after")
    def _each_in_its_place(self) -> TrainConfig:
        if self.stages is not None:
            for name in ("learning_rate", "max_steps", "epochs"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} differs between stages: say it in the stages, not beside them")
        if self.method == "full":
            for name in ("lora_r", "lora_alpha", "lora_dropout"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} belongs to an adapter, but method is full")
        stages = self.resolved_stages()
        if why := refusal(self.backend, self.method, [s.kind for s in stages], [s.packing for s in stages]):
            raise ValueError(f"{why}; backend trl does")
        return self

    def resolved_stages(self) -> list[StageConfig]:
        """The stages in turn; what one leaves out stands as ``train`` has it."""
        shared = {name: getattr(self, name) for name in Hyperparameters.model_fields}
        stages = self.stages or [StageConfig(kind="sft")]
        own = [stage.model_dump(exclude_none=True) for stage in stages]
        return [StageConfig(**{name: value for name, value in (shared | o).items() if value is not None}) for o in own]
