"""The configs of the installed trl, constructed: every field that a training rests on has the value that we mean."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from jobs.hardware import Machine
from jobs.spec import FileRef, Stage
from jobs.trl_configs import OLDER_NAMES, trl_config

CPU = Machine(gpu=False, bf16=False)
FILE = FileRef(path="x", sha256="a" * 64, bytes=1)
STAGE: dict[str, Any] = {
    "max_steps": 30,
    "batch_size": 3,
    "gradient_accumulation": 5,
    "learning_rate": 3e-4,
    "scheduler": "linear",
    "warmup": 0.07,
    "weight_decay": 0.02,
    "max_length": 321,
    "dtype": "auto",
    "lora_r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "origins": {},
}
FULL = {"method": "full", "lora_r": None, "lora_alpha": None, "lora_dropout": None}


def made(machine: Machine = CPU, checkpointing: bool = False, **changes: Any) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing that is set is deprecated
        config = trl_config(Stage(**{**STAGE, **changes}), machine, 7, Path("/scratch"), checkpointing=checkpointing)
    found = vars(config)
    # A generation that knows the older names only.
    return {**{new: found[old] for new, old in OLDER_NAMES.items() if old in found}, **found}


COMMON: dict[str, Any] = {
    "output_dir": "/scratch",
    "max_steps": 30,
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 5,
    "optim": "adamw_torch",
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "learning_rate": 3e-4,
    "lr_scheduler_type": "linear",
    "lr_scheduler_kwargs": None,
    "warmup_steps": 0.07,
    "weight_decay": 0.02,
    "max_grad_norm": 1.0,
    "average_tokens_across_devices": True,
    "label_smoothing_factor": 0.0,
    "neftune_noise_alpha": None,
    "bf16": False,
    "fp16": False,
    "tf32": None,
    "use_cpu": True,
    "use_liger_kernel": False,
    "activation_checkpointing": False,
    "gradient_checkpointing": False,
    "activation_offloading": False,
    "dataloader_pin_memory": False,
    "dataloader_num_workers": 0,
    "dataloader_drop_last": False,
    "train_sampling_strategy": "random",
    "auto_find_batch_size": False,
    "full_determinism": False,
    "seed": 7,
    "data_seed": 7,
    "max_length": None,
    "pad_to_multiple_of": None,
    "logging_strategy": "steps",
    "logging_steps": 1,
    "logging_first_step": False,
    "logging_nan_inf_filter": False,
    "disable_tqdm": True,
    "report_to": [],
    "save_strategy": "no",
    "eval_strategy": "no",
    "load_best_model_at_end": False,
    "push_to_hub": False,
    "torch_compile": False,
}
SFT: dict[str, Any] = {
    "dataset_kwargs": {"skip_prepare_dataset": True},
    "completion_only_loss": None,
    "assistant_only_loss": False,
    "loss_type": "nll",
    "packing": False,
    "packing_strategy": "bfd",
    "padding_free": False,
    "shuffle_dataset": False,
    "chat_template_path": None,
    "eos_token": None,
}
DPO: dict[str, Any] = {
    "beta": 0.2,
    "loss_type": ["sigmoid"],
    "loss_weights": None,
    "label_smoothing": 0.0,
    "f_divergence_type": "reverse_kl",
    "ld_alpha": None,
    "use_weighting": False,
    "disable_dropout": True,
    "precompute_ref_log_probs": False,
    "sync_ref_model": False,
    "padding_free": False,
    "truncation_mode": "keep_start",
}


@pytest.mark.parametrize(
    ("changes", "own"),
    [
        ({}, SFT),
        ({"kind": "cpt", "data": FILE}, SFT),
        ({"kind": "dpo", "data": FILE, "beta": 0.2}, DPO),
        ({"kind": "dpo", "data": FILE, "beta": 0.2, **FULL}, DPO | {"precompute_ref_log_probs": True}),
        ({"packing": True}, SFT | {"packing": True, "max_length": 321}),
    ],
)
def test_every_field_that_matters(changes: dict[str, Any], own: dict[str, Any]) -> None:
    config = made(**changes)
    wanted = COMMON | own
    assert {name: config[name] for name in wanted} == wanted


def test_the_machine_decides_on_precision_kernels_and_memory() -> None:
    config = made(Machine(gpu=False, bf16=True, liger=True), checkpointing=True)
    assert (config["bf16"], config["use_liger_kernel"], config["activation_checkpointing"]) == (True, True, True)
    # trl looks at the old name when it prepares an adapter for it.
    assert config["gradient_checkpointing"] is True
    assert config["activation_checkpointing_kwargs"] == {"use_reentrant": False}


def test_the_names_of_older_generations_are_gone() -> None:
    """What made us set the values above by these names; if one is back, look at it again."""
    from trl import SFTConfig

    for name in ("warmup_ratio", "max_seq_length", "evaluation_strategy", "group_by_length", "no_cuda"):
        with pytest.raises(TypeError, match=name):
            SFTConfig(output_dir="x", **{name: 1})
