"""One function builds every trl config.

Whatever a training rests on is said here, also where it is the default of the installed version: defaults have changed
before (``bf16`` became true, ``max_length`` 1024, the learning rates the library's own), and a test compares every
field with what trl then has.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from jobs.hardware import Machine
from jobs.spec import Stage

MAX_GRAD_NORM = 1.0
# Up to transformers 5.17, which Unsloth holds on to, these fields have older names.
OLDER_NAMES = {
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
}

# The same for every stage and machine.
OURS: dict[str, Any] = {
    # Every step is told to our own callbacks; checkpoints come when they say so.
    "logging_strategy": "steps",
    "logging_steps": 1,
    "logging_first_step": False,
    "logging_nan_inf_filter": False,
    "disable_tqdm": True,
    "report_to": "none",
    "save_strategy": "no",
    "eval_strategy": "no",
    "load_best_model_at_end": False,
    "push_to_hub": False,
}


def trl_config(stage: Stage, machine: Machine, seed: int, scratch: Path, *, checkpointing: bool = False) -> Any:
    """``SFTConfig`` for a cpt or sft stage, ``DPOConfig`` for a dpo one. The rows are encoded already.

    Args:
        scratch: where the library writes its checkpoints.
        checkpointing: compute activations twice instead of keeping them.
    """
    from trl import DPOConfig, SFTConfig

    common = _common(stage, machine, seed, scratch, checkpointing)
    if stage.kind == "dpo":
        return DPOConfig(**_named(common, DPOConfig), **_dpo(stage))
    return SFTConfig(**_named(common, SFTConfig), **_sft(stage))


def _named(settings: dict[str, Any], config: Any) -> dict[str, Any]:
    """The settings by the names that the installed library has for them."""
    known = {field.name for field in fields(config)}
    return {name if name in known else OLDER_NAMES.get(name, name): value for name, value in settings.items()}


def _common(stage: Stage, machine: Machine, seed: int, scratch: Path, checkpointing: bool) -> dict[str, Any]:
    return {
        "output_dir": str(scratch),
        **OURS,
        # how long, and with what
        "max_steps": stage.max_steps,
        "per_device_train_batch_size": stage.batch_size,
        "gradient_accumulation_steps": stage.gradient_accumulation,
        "optim": "adamw_torch_fused" if machine.gpu else "adamw_torch",
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "learning_rate": stage.learning_rate,
        "lr_scheduler_type": stage.scheduler,
        "warmup_steps": stage.warmup,  # below 1 it is a share
        "weight_decay": stage.weight_decay,
        "max_grad_norm": MAX_GRAD_NORM,
        "average_tokens_across_devices": True,
        # the machine
        "bf16": machine.bf16,
        "fp16": False,
        "use_cpu": not machine.gpu,
        "use_liger_kernel": machine.liger,
        "activation_checkpointing": checkpointing,
        "activation_checkpointing_kwargs": {"use_reentrant": False} if checkpointing else None,
        "dataloader_pin_memory": machine.gpu,
        "dataloader_num_workers": 0,
        "ddp_find_unused_parameters": False,  # every trained weight is used in every step
        "remove_unused_columns": True,
        # the same again
        "seed": seed,
        "data_seed": seed,
        # Rows are cut when they are encoded, where it is counted and said. With packing it is the length of a block.
        "max_length": stage.max_length if stage.packing else None,
    }


def _sft(stage: Stage) -> dict[str, Any]:
    return {
        "dataset_kwargs": {"skip_prepare_dataset": True},
        # Labels say what counts: of an answer its tokens, of a document all.
        "completion_only_loss": None,
        "assistant_only_loss": False,
        "loss_type": "nll",
        # "wrapped" would let documents see each other. bfd packs whole ones, and their positions keep them apart.
        "packing": stage.packing,
        "packing_strategy": "bfd",
        "padding_free": False,
    }


def _dpo(stage: Stage) -> dict[str, Any]:
    return {
        "beta": stage.beta,
        "loss_type": ["sigmoid"],
        "label_smoothing": 0.0,
        "disable_dropout": True,  # or the policy would differ from its reference by chance alone
        # A full fine-tune's reference is a second model: what it says is computed once, before the first step. An
        # adapter's is a frozen copy of itself.
        "precompute_ref_log_probs": stage.method == "full",
        "sync_ref_model": False,
    }
