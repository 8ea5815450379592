"""Every hyperparameter is decided, and says where it came from."""

from __future__ import annotations

from typing import Any

import pytest

from cloudft.errors import ConfigError
from jobs.spec import FileRef, Stage
from local.planning.hyperparameters import FROM_CONFIG, StageFacts, resolve_stages
from local.train_config import TrainConfig

# What a stage is, not how it is trained.
GIVEN = {"kind", "data", "rows", "origins"}
NAMES = set(Stage.model_fields) - GIVEN - {"beta"}
FILE = FileRef(path="stage-1-cpt.jsonl", sha256="a" * 64, bytes=1000)


def resolve(train: TrainConfig, rows: int = 800, parameters: int | None = None, **facts: Any) -> Stage:
    """The only stage of a run."""
    (stage,) = resolve_stages(train, [StageFacts(rows, **facts)], parameters)
    return stage


def staged(kind: str, rows: int = 800, parameters: int | None = None, method: str = "lora", **own: Any) -> Stage:
    """A stage of that kind, after one of sft."""
    data = {} if kind == "sft" else {"data": "x.jsonl"}
    train = TrainConfig.model_validate({"method": method, "stages": [{"kind": "sft"}, {"kind": kind, **data, **own}]})
    facts = [StageFacts(800), StageFacts(rows, 4000, rows * 2000, None if kind == "sft" else FILE)]
    return resolve_stages(train, facts, parameters)[1]


def test_every_default_has_its_reason() -> None:
    stage = resolve(TrainConfig())
    assert set(stage.origins) == NAMES
    assert all(origin and origin != FROM_CONFIG for origin in stage.origins.values())
    assert (stage.batch_size, stage.gradient_accumulation, stage.max_steps) == (4, 4, 150)
    assert (stage.learning_rate, stage.scheduler, stage.warmup, stage.weight_decay) == (2e-4, "cosine", 0.05, 0.0)
    assert (stage.lora_r, stage.lora_alpha, stage.lora_dropout) == (16, 32, 0.05)
    assert (stage.max_length, stage.dtype, stage.packing, stage.gate) == (1024, "auto", False, True)
    assert stage.activation_checkpointing is None
    assert stage.origins["max_steps"].startswith("3 epochs of 800 rows, 16 a step")


OWN: dict[str, Any] = {
    "method": "dora",
    "max_steps": 11,
    "batch_size": 3,
    "gradient_accumulation": 7,
    "learning_rate": 1e-3,
    "scheduler": "linear",
    "warmup": 0.2,
    "weight_decay": 0.1,
    "max_length": 99,
    "packing": True,
    "activation_checkpointing": False,
    "gate": False,
    "patience": 2,
    "lora_r": 5,
    "lora_alpha": 9,
    "lora_dropout": 0.3,
    "dtype": "float32",
}


def test_what_the_user_sets_is_taken_and_said_so() -> None:
    assert set(OWN) == NAMES
    stage = resolve(TrainConfig(**OWN), longest=100_000)
    for name, value in OWN.items():
        assert getattr(stage, name) == value
        assert stage.origins[name] == FROM_CONFIG


def test_zero_is_a_value_of_the_user_too() -> None:
    stage = resolve(TrainConfig(warmup=0, lora_dropout=0, weight_decay=0), 100)
    assert (stage.warmup, stage.lora_dropout) == (0, 0)
    assert {stage.origins[n] for n in ("warmup", "lora_dropout", "weight_decay")} == {FROM_CONFIG}


@pytest.mark.parametrize(
    ("own", "rows", "steps"),
    [
        ({}, 1, 1),
        ({}, 16, 3),
        ({}, 17, 4),
        ({}, 16_000, 2000),
        ({}, 160_000, 10_000),
        ({"epochs": 1}, 160, 10),
        ({"epochs": 0.5}, 160, 5),
        ({"epochs": 2, "batch_size": 32}, 160, 10),
        ({"batch_size": 2, "gradient_accumulation": 1}, 100, 150),
    ],
)
def test_steps_follow_from_epochs_and_rows(own: dict[str, Any], rows: int, steps: int) -> None:
    assert resolve(TrainConfig(**own), rows).max_steps == steps


def test_the_rows_of_a_step_stay_about_the_same() -> None:
    for size in (1, 2, 4, 8, 16, 32):
        stage = resolve(TrainConfig(batch_size=size))
        assert stage.batch_size * stage.gradient_accumulation == max(16, size)
        assert f"batch_size {size}" in stage.origins["gradient_accumulation"]


@pytest.mark.parametrize(("length", "size"), [(256, 16), (512, 8), (1024, 4), (2048, 2), (4096, 1), (9000, 1)])
def test_the_tokens_on_the_device_stay_about_the_same(length: int, size: int) -> None:
    stage = resolve(TrainConfig(max_length=length))
    assert (stage.batch_size, stage.batch_size * stage.gradient_accumulation) == (size, 16)


def test_steps_and_epochs_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match=r"train\.max_steps \(10\) and train\.epochs \(2\)"):
        resolve(TrainConfig(max_steps=10, epochs=2), 100)


def test_no_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match="no rows"):
        resolve(TrainConfig(), 0)


@pytest.mark.parametrize(("longest", "length"), [(10, 512), (1000, 768), (3000, 1792), (1_000_000, 4096)])
def test_the_length_follows_from_the_longest_row(longest: int, length: int) -> None:
    stage = resolve(TrainConfig(), 100, longest=longest)
    assert stage.max_length == length
    assert str(longest) in stage.origins["max_length"]
    assert ("memory" in stage.origins["max_length"]) == (length == 4096)


def test_alpha_follows_the_rank_and_dropout_the_rows() -> None:
    assert resolve(TrainConfig(lora_r=64), 100).lora_alpha == 128
    assert resolve(TrainConfig(), 999).lora_dropout == 0.05
    assert resolve(TrainConfig(), 1000).lora_dropout == 0.0


@pytest.mark.parametrize(
    ("method", "kind", "parameters", "rate"),
    [
        ("lora", "sft", None, 2e-4),
        ("lora", "sft", 8_000_000_000, 2e-4),
        ("qlora", "sft", 500_000_000, 2e-4),
        ("dora", "sft", 14_000_000_000, 1e-4),
        ("lora", "sft", 135_000_000, 5e-4),
        ("rslora", "sft", 1_400_000, 2e-3),
        ("full", "sft", 1_500_000_000, 2e-5),
        ("full", "sft", 14_000_000_000, 1e-5),
        ("lora", "cpt", 8_000_000_000, 1e-4),
        ("full", "cpt", 8_000_000_000, 1e-5),
        ("lora", "dpo", 8_000_000_000, 5e-6),
        ("full", "dpo", 8_000_000_000, 5e-7),
    ],
)
def test_the_learning_rate_follows_size_method_and_kind(
    method: str, kind: str, parameters: int | None, rate: float
) -> None:
    stage = staged(kind, parameters=parameters, method=method)
    assert stage.learning_rate == pytest.approx(rate)
    assert ("for all weights" in stage.origins["learning_rate"]) == (method == "full")
    assert ("preferences" in stage.origins["learning_rate"]) == (kind == "dpo")


def test_a_full_fine_tune_has_no_rank() -> None:
    stage = resolve(TrainConfig(method="full"))
    assert (stage.lora_r, stage.lora_alpha, stage.lora_dropout) == (None, None, None)
    assert set(stage.origins) == NAMES - {"lora_r", "lora_alpha", "lora_dropout"}
    assert stage.weight_decay == 0.01


def test_raw_text_and_rslora_get_a_higher_rank_in_all_stages() -> None:
    train = TrainConfig.model_validate({"stages": [{"kind": "cpt", "data": "x.txt"}, {"kind": "sft"}]})
    stages = resolve_stages(train, [StageFacts(100, 900, 40_000, FILE), StageFacts(800)])
    assert [(stage.lora_r, stage.lora_alpha) for stage in stages] == [(64, 128)] * 2
    rslora = resolve(TrainConfig(method="rslora"))
    # rsLoRA divides alpha by the root of the rank.
    assert rslora.lora_r is not None
    assert rslora.lora_alpha is not None
    assert rslora.lora_alpha / rslora.lora_r**0.5 == 2


def test_dpo_is_one_gentle_pass() -> None:
    stage = staged("dpo", 160)
    assert (stage.beta, stage.warmup, stage.packing) == (0.1, 0.1, False)
    assert stage.max_steps == 10
    assert (stage.data, stage.rows) == (FILE, 160)
    # Two answers a pair: half as many at once.
    assert stage.batch_size * stage.max_length * 2 <= 4096 + stage.max_length * 2
    assert staged("dpo", beta=0.3).beta == 0.3
    with pytest.raises(ConfigError, match="cannot be packed"):
        staged("dpo", packing=True)


def test_many_short_rows_are_packed_and_still_sixteen_a_step() -> None:
    few, many = (resolve(TrainConfig(), rows, longest=700, characters=rows * 300) for rows in (900, 9000))
    assert (few.packing, many.packing) == (False, True)
    assert "900 rows" in few.origins["packing"]
    # 300 characters are about 86 tokens, and 32 for the template: 4 of these rows fill a block of 512.
    blocks = many.batch_size * many.gradient_accumulation
    assert many.max_length == 512
    assert 12 <= blocks * 512 / 118 <= 20
    assert 3 * 9000 / 20 <= many.max_steps <= 3 * 9000 / 12
    assert not resolve(TrainConfig(max_length=512), 9000, longest=1700, characters=9000 * 1500).packing
    assert not resolve(TrainConfig(), 9000).packing


def test_raw_text_is_packed_and_its_steps_follow_from_its_size() -> None:
    short = staged("cpt", 4000)  # 2,000 characters each: 3.6 of them fill 2,048 tokens
    assert (short.packing, short.max_length) == (True, 2048)
    tokens = short.max_steps * short.batch_size * short.gradient_accumulation * 2048
    assert 0.8 <= tokens / (4000 * 2000 / 3.5) <= 1.25
    long = resolve_stages(
        TrainConfig.model_validate({"stages": [{"kind": "cpt", "data": "x.txt"}]}),
        [StageFacts(10, 10_000_000, 70_000_000, FILE)],
    )[0]
    tokens = long.max_steps * long.batch_size * long.gradient_accumulation * 2048
    assert 0.9 <= tokens / (70_000_000 / 3.5) <= 1.1


def test_what_stands_beside_the_stages_holds_for_those_that_say_nothing_else() -> None:
    train = TrainConfig.model_validate(
        {"warmup": 0.3, "stages": [{"kind": "sft"}, {"kind": "dpo", "data": "x", "warmup": 0.2}]}
    )
    stages = resolve_stages(train, [StageFacts(100), StageFacts(100, file=FILE)])
    assert [stage.warmup for stage in stages] == [0.3, 0.2]


@pytest.mark.parametrize("gpus", [1, 2, 3, 5, 6, 8])
@pytest.mark.parametrize("own", [{}, {"batch_size": 3}, {"gradient_accumulation": 5}, {"max_length": 4096}])
def test_the_rows_of_a_step_can_be_shared_out_among_the_gpus(own: dict[str, int], gpus: int) -> None:
    (alone,), (stage,) = (resolve_stages(TrainConfig(**own), [StageFacts(800)], gpus=n) for n in (1, gpus))
    rows, before = (s.batch_size * s.gradient_accumulation for s in (stage, alone))
    assert rows % gpus == 0
    assert before <= rows < before + gpus * max(stage.batch_size, stage.gradient_accumulation)
    for name, value in own.items():
        assert (getattr(stage, name), stage.origins[name]) == (value, FROM_CONFIG)
    # What a pass over the data takes follows from it.
    assert stage.max_steps == -(-3 * 800 // rows)
    if rows != before:
        assert f"{gpus} GPUs share" in stage.origins["batch_size"] + stage.origins["gradient_accumulation"]


def test_rows_a_step_that_were_set_and_cannot_be_shared_out_are_refused() -> None:
    own = TrainConfig(batch_size=5, gradient_accumulation=3)
    assert resolve_stages(own, [StageFacts(800)], gpus=3)
    with pytest.raises(ConfigError, match="4 GPUs cannot share 15 rows a step evenly") as info:
        resolve_stages(own, [StageFacts(800)], gpus=4)
    assert info.value.effect == "nothing was started"
    assert "a multiple of 4" in info.value.hint


def test_unsloth_gets_no_packed_rows_but_as_many_steps() -> None:
    train = {"stages": [{"kind": "cpt", "data": "x.txt"}], "backend": "unsloth"}
    fact = StageFacts(800, 4000, 800 * 2000, FILE)
    (stage,) = resolve_stages(TrainConfig.model_validate(train), [fact])
    assert not stage.packing
    assert stage.origins["packing"].startswith("backend unsloth")
    rows = stage.max_steps * stage.batch_size * stage.gradient_accumulation
    assert 800 <= rows < 800 + stage.batch_size * stage.gradient_accumulation
