"""Every hyperparameter is decided, and says where it came from."""

from __future__ import annotations

from typing import Any

import pytest

from cloudft.errors import ConfigError
from jobs.spec import Stage
from local.config import TrainConfig
from local.hyperparameters import FROM_CONFIG, resolve_stage

NAMES = set(Stage.model_fields) - {"kind", "origins"}


def test_every_default_has_its_reason() -> None:
    stage = resolve_stage(TrainConfig(), 800)
    assert set(stage.origins) == NAMES
    assert all(origin and origin != FROM_CONFIG for origin in stage.origins.values())
    assert (stage.batch_size, stage.gradient_accumulation, stage.max_steps) == (4, 4, 150)
    assert (stage.learning_rate, stage.scheduler, stage.warmup, stage.weight_decay) == (2e-4, "cosine", 0.05, 0.0)
    assert (stage.lora_r, stage.lora_alpha, stage.lora_dropout) == (16, 32, 0.05)
    assert (stage.max_length, stage.dtype) == (1024, "auto")
    assert stage.origins["max_steps"].startswith("3 epochs of 800 rows, 16 a step")


OWN: dict[str, Any] = {
    "method": "lora",
    "max_steps": 11,
    "batch_size": 3,
    "gradient_accumulation": 7,
    "learning_rate": 1e-3,
    "scheduler": "linear",
    "warmup": 0.2,
    "weight_decay": 0.1,
    "max_length": 99,
    "lora_r": 5,
    "lora_alpha": 9,
    "lora_dropout": 0.3,
    "dtype": "float32",
}


def test_what_the_user_sets_is_taken_and_said_so() -> None:
    assert set(OWN) == NAMES
    stage = resolve_stage(TrainConfig(**OWN), 800, longest=100_000)
    for name, value in OWN.items():
        assert getattr(stage, name) == value
        assert stage.origins[name] == FROM_CONFIG


def test_zero_is_a_value_of_the_user_too() -> None:
    stage = resolve_stage(TrainConfig(warmup=0, lora_dropout=0, weight_decay=0), 100)
    assert (stage.warmup, stage.lora_dropout) == (0, 0)
    assert {stage.origins[n] for n in ("warmup", "lora_dropout", "weight_decay")} == {FROM_CONFIG}


@pytest.mark.parametrize(
    ("own", "rows", "steps"),
    [
        ({}, 1, 1),
        ({}, 16, 3),
        ({}, 17, 4),
        ({"epochs": 1}, 160, 10),
        ({"epochs": 0.5}, 160, 5),
        ({"epochs": 2, "batch_size": 32}, 160, 10),
        ({"batch_size": 2, "gradient_accumulation": 1}, 100, 150),
    ],
)
def test_steps_follow_from_epochs_and_rows(own: dict[str, Any], rows: int, steps: int) -> None:
    assert resolve_stage(TrainConfig(**own), rows).max_steps == steps


def test_the_rows_of_a_step_stay_about_the_same() -> None:
    for size in (1, 2, 4, 8, 16, 32):
        stage = resolve_stage(TrainConfig(batch_size=size), 800)
        assert stage.batch_size * stage.gradient_accumulation == max(16, size)
        assert f"batch_size {size}" in stage.origins["gradient_accumulation"]


def test_steps_and_epochs_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match=r"train\.max_steps \(10\) and train\.epochs \(2\)"):
        resolve_stage(TrainConfig(max_steps=10, epochs=2), 100)


def test_no_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match="no rows"):
        resolve_stage(TrainConfig(), 0)


@pytest.mark.parametrize(("longest", "length"), [(10, 512), (1000, 768), (3000, 1792), (1_000_000, 4096)])
def test_the_length_follows_from_the_longest_row(longest: int, length: int) -> None:
    stage = resolve_stage(TrainConfig(), 100, longest=longest)
    assert stage.max_length == length
    assert str(longest) in stage.origins["max_length"]
    assert ("memory" in stage.origins["max_length"]) == (length == 4096)


def test_alpha_follows_the_rank_and_dropout_the_rows() -> None:
    assert resolve_stage(TrainConfig(lora_r=64), 100).lora_alpha == 128
    assert resolve_stage(TrainConfig(), 999).lora_dropout == 0.05
    assert resolve_stage(TrainConfig(), 1000).lora_dropout == 0.0
