"""Base and adapter by Unsloth: its kernels for layers and loss, and its way to keep no activations.

As Unsloth is imported it rewrites parts of transformers, trl and peft, so it comes before them (``begin``). All else
of a run (rows, stages, gate, checkpoints, result) is the same for both backends.

Unsloth is free with what it is given: without being told otherwise it takes another, already quantised copy of the base
from its makers' account, stretches the positions of a base for rows that are too long for it, cuts such rows while it
trains, joins the rows of a batch into one, and counts its users. All of that is switched off here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.hardware import Dtype
from jobs.outcome import TrainError
from jobs.runlog import log
from jobs.spec import LONGEST_MEASURED, RunSpec, Stage

# Read as it is imported, or as a model is loaded.
SETTINGS = {
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "UNSLOTH_DISABLE_AUTO_PADDING_FREE": "1",
}
# In the work folder: the code that it writes, and then imports.
COMPILED = "unsloth"


def begin(work: Path) -> None:
    """Import Unsloth. Nothing of transformers, trl or peft may have been imported before.

    Raises:
        TrainError: it is not installed, or cannot work on this machine.
    """
    os.environ.update(SETTINGS)
    os.environ["UNSLOTH_COMPILE_LOCATION"] = str(work / COMPILED)
    try:
        import unsloth  # noqa: F401
    except ModuleNotFoundError as exc:
        raise TrainError(
            f"the backend is unsloth, but {exc.name} is not installed here: build the image for it (cloudft build), or "
            "set train.backend to trl"
        ) from exc
    except Exception as exc:  # what it says of a machine without a GPU that it knows has many kinds
        raise TrainError(f"Unsloth cannot work on this machine: {exc}; train.backend trl can") from exc


def limit(spec: RunSpec, positions: int) -> int:
    """Tokens that the longest row may have, of those that are trained on and those that are measured on.

    Args:
        positions: that the base knows.

    Raises:
        TrainError: the spec asks for longer rows than the base knows positions; Unsloth would change the model.
    """
    longest = max(stage.max_length for stage in spec.stages)
    if longest > positions:
        raise TrainError(
            f"the base {spec.base.id} knows {positions} positions, and Unsloth would stretch them for rows of "
            f"{longest} tokens, so that another model is trained than is served: lower train.max_length to {positions}"
        )
    measured = LONGEST_MEASURED + spec.gate.max_tokens if spec.gate else 0
    return min(max(longest, measured), positions)


def load_model(spec: RunSpec, source: str, revision: str | None, dtype: Dtype, longest: int) -> Any:
    """The base, with Unsloth's layers in it.

    Args:
        source: a folder, or a repository of the hub with its commit in ``revision``.
        longest: see ``limit``.
    """
    import torch
    from unsloth import FastLanguageModel

    quantised = spec.method == "qlora"
    if quantised:
        log("quantisation", "nf4", f"qlora: 4 bits for each weight of the base, by Unsloth, computing in {dtype}")
    model, _ = FastLanguageModel.from_pretrained(
        model_name=source,
        revision=revision,
        max_seq_length=longest,
        dtype=getattr(torch, dtype),
        load_in_4bit=quantised,
        use_exact_model_name=True,
        use_gradient_checkpointing=_checkpointing(spec.stages[0]),
        random_state=spec.seed,
    )
    return model


def with_adapter(model: Any, stage: Stage, seed: int) -> Any:
    """The model with a fresh adapter, as ``jobs.model.with_adapter`` makes it."""
    from unsloth import FastLanguageModel

    checkpointing = _checkpointing(stage)
    log("lora_target_modules", "all-linear", "fixed: every linear layer but the output layer")
    log("activation_checkpointing", checkpointing, stage.origins.get("activation_checkpointing", "fixed"))
    return FastLanguageModel.get_peft_model(
        model,
        r=stage.lora_r,
        lora_alpha=stage.lora_alpha,
        lora_dropout=stage.lora_dropout,
        use_rslora=stage.method == "rslora",
        target_modules="all-linear",
        bias="none",
        init_lora_weights=True,
        use_gradient_checkpointing=checkpointing,
        random_state=seed,
        max_seq_length=model.max_seq_length,
    )


@contextlib.contextmanager
def inference(model: Any) -> Iterator[None]:
    """Inside, the model answers; behind it, it trains as before."""
    from unsloth import FastLanguageModel

    FastLanguageModel.for_inference(model)
    try:
        yield
    finally:
        FastLanguageModel.for_training(model)


def _checkpointing(stage: Stage) -> str | bool:
    """Unsloth's own way, which moves to the host's memory what it keeps, unless the user wants none."""
    return False if stage.activation_checkpointing is False else "unsloth"
