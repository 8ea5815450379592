"""What ``cloudft.yaml`` leaves open is decided here, from the data, and each decision comes with its reason.

The defaults are LoRA's usual ones for a model of up to some billion parameters; the reasons stand in the spec,
in the trainer's log and in the report, so that a person can disagree with them.
"""

from __future__ import annotations

import math
from typing import Any, Final

from cloudft.errors import ConfigError
from jobs.spec import Stage
from local.config import TrainConfig

FROM_CONFIG: Final = "cloudft.yaml"
EPOCHS: Final = 3.0
ROWS_PER_STEP: Final = 16
ROWS_AT_ONCE: Final = 4
FEW_ROWS: Final = 1000
# Text has 3 to 4 characters a token in most languages and tokenizers; 2 is on the safe side.
CHARACTERS_PER_TOKEN: Final = 2
TEMPLATE_TOKENS: Final = 64
LEAST_LENGTH: Final = 512
MOST_LENGTH: Final = 4096
LENGTH_STEP: Final = 256
USUAL_LENGTH: Final = 1024


class _Choices:
    """Values and their origins, filled one by one."""

    def __init__(self, train: TrainConfig) -> None:
        self.train = train
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}

    def pick(self, name: str, default: Any, reason: str) -> Any:
        """The user's value, or else the default with its reason."""
        own = getattr(self.train, name)
        self.values[name] = default if own is None else own
        self.origins[name] = reason if own is None else FROM_CONFIG
        return self.values[name]


def resolve_stage(train: TrainConfig, rows: int, *, longest: int | None = None) -> Stage:
    """Every hyperparameter of the SFT stage, and where it came from.

    Args:
        train: the ``train`` section.
        rows: training examples (answers; a row with two answers counts twice).
        longest: characters of the longest row, where known: ``max_length`` follows from it.

    Raises:
        ConfigError: ``max_steps`` and ``epochs`` contradict each other, or there are no rows.
    """
    if rows < 1:
        raise ConfigError("there are no rows to train on", effect="nothing was started")
    choices = _Choices(train)
    choices.origins["method"] = FROM_CONFIG if "method" in train.model_fields_set else "the only method yet"
    _batch(choices)
    _steps(choices, rows)
    _optimiser(choices)
    _length(choices, longest)
    _adapter(choices, rows)
    choices.pick("dtype", "auto", "bfloat16 where the GPU computes in it, else float32")
    return Stage(method=train.method, origins=choices.origins, **choices.values)


def _batch(choices: _Choices) -> None:
    size = choices.pick(
        "batch_size", ROWS_AT_ONCE, f"{ROWS_AT_ONCE} rows at once fit a card of 24 GB up to some 8 billion parameters"
    )
    together = max(1, round(ROWS_PER_STEP / size))
    choices.pick(
        "gradient_accumulation",
        together,
        f"with batch_size {size}, about {ROWS_PER_STEP} rows a step: steady, and still many steps",
    )


def _steps(choices: _Choices, rows: int) -> None:
    train, values = choices.train, choices.values
    if train.max_steps is not None and train.epochs is not None:
        raise ConfigError(
            f"train.max_steps ({train.max_steps}) and train.epochs ({train.epochs:g}) both say how long to train",
            effect="nothing was started",
            hint="leave one of them out of cloudft.yaml",
        )
    per_step = values["batch_size"] * values["gradient_accumulation"]
    epochs = EPOCHS if train.epochs is None else train.epochs
    steps = max(1, math.ceil(epochs * rows / per_step))
    source = "cloudft.yaml" if train.epochs is not None else "enough to learn a task, few enough not to learn by heart"
    choices.pick("max_steps", steps, f"{epochs:g} epochs of {rows} rows, {per_step} a step ({source})")


def _optimiser(choices: _Choices) -> None:
    choices.pick("learning_rate", 2e-4, "the usual one for LoRA; ten times that of full fine-tuning")
    choices.pick("scheduler", "cosine", "ends gently, so the last steps do not undo each other")
    choices.pick("warmup", 0.05, "the first twentieth of the steps, while the optimiser has no averages yet")
    choices.pick("weight_decay", 0.0, "an adapter is small; its rank bounds it already")


def _length(choices: _Choices, longest: int | None) -> None:
    if longest is None:
        choices.pick("max_length", USUAL_LENGTH, "room for most tasks; longer rows would be cut, and the log says so")
        return
    needed = longest / CHARACTERS_PER_TOKEN + TEMPLATE_TOKENS
    length = min(max(math.ceil(needed / LENGTH_STEP) * LENGTH_STEP, LEAST_LENGTH), MOST_LENGTH)
    reason = f"the longest row has {longest} characters, at {CHARACTERS_PER_TOKEN} a token or more"
    if length == MOST_LENGTH:
        reason += f"; no more than {MOST_LENGTH}, for the memory's sake"
    choices.pick("max_length", length, reason)


def _adapter(choices: _Choices, rows: int) -> None:
    rank = choices.pick("lora_r", 16, "enough for a format or a style; a higher rank learns little more")
    choices.pick("lora_alpha", 2 * rank, "twice the rank, so that the rank can change without the learning rate")
    if rows < FEW_ROWS:
        choices.pick("lora_dropout", 0.05, f"{rows} rows are few: a little dropout against learning by heart")
    else:
        choices.pick("lora_dropout", 0.0, f"{rows} rows are enough to do without")
