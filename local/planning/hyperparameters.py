"""What ``cloudft.yaml`` leaves open is decided here, from data, model, method and kind of stage; each with its reason.

The reasons stand in the spec, in the trainer's log and in the report, so that a person can disagree with them. Where
the numbers come from:

- Learning rates for LoRA: 2e-4 up to 13 billion parameters, 1e-4 beyond (Dettmers et al., "QLoRA", 2023, table 9). All
  weights: a tenth of that (Biderman et al., "LoRA Learns Less and Forgets Less", 2024; Schulman et al., "LoRA Without
  Regret", 2025, found ten times as well). Small models bear more, as the best rate falls with the size (Kaplan et al.,
  "Scaling Laws", 2020, appendix D.6).
- DPO: 5e-6 for adapters, 5e-7 for all weights, one pass, a tenth of warm-up (Tunstall et al., "Zephyr", 2023, and its
  recipes); β 0.1 (Rafailov et al., "Direct Preference Optimization", 2023).
- Rank: a small one holds what a few thousand examples say; raw text says more (both LoRA papers above). rsLoRA makes
  high ranks train as well as low ones, with alpha as it is for those (Kalajdzievski, "rsLoRA", 2023).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

from cloudft.errors import ConfigError
from jobs.backends import Backend
from jobs.spec import FileRef, Kind, Stage
from local.train_config import StageConfig, TrainConfig

FROM_CONFIG: Final = "cloudft.yaml"
# Rows for one optimiser step, and tokens that are on the device at once.
ROWS_PER_STEP: Final = 16
# A step of raw text has at least so many blocks, if that leaves so many steps.
TEXT_BLOCKS: Final = 4
TEXT_STEPS: Final = 20
TOKENS_AT_ONCE: Final = 4096
EPOCHS: Final[dict[Kind, float]] = {"cpt": 1.0, "sft": 3.0, "dpo": 1.0}
# With so many rows two passes say it all, and with ten times as many one.
MANY_ROWS: Final = 10_000
FEW_ROWS: Final = 1000
# (parameters from which it holds, LoRA's rate for answers)
LORA_RATES: Final = ((13e9, 1e-4), (3e8, 2e-4), (3e7, 5e-4), (0, 2e-3))
FULL_SHARE: Final = 0.1
# A stage has 20 evaluations at most. Fewer without a lower loss are common while the learning rate is still high.
PATIENCE: Final = 5
KIND_SHARE: Final[dict[Kind, float]] = {"cpt": 0.5, "sft": 1.0, "dpo": 0.025}
# Text has 3 to 4 characters a token in most languages and tokenizers; 2 is on the safe side.
CHARACTERS_PER_TOKEN: Final = 2
USUAL_CHARACTERS_PER_TOKEN: Final = 3.5
TEMPLATE_TOKENS: Final = 64
LEAST_LENGTH: Final = 512
MOST_LENGTH: Final = 4096
LENGTH_STEP: Final = 256
USUAL_LENGTH: Final = 1024
TEXT_LENGTH: Final = 2048
# Packing is worth it when so many rows fit into a block; with few rows its steps would be too few.
ROWS_PER_BLOCK: Final = 2.0


@dataclass(frozen=True)
class StageFacts:
    """What is known of a stage's data: ``rows`` are answers, documents or pairs; sizes are characters.

    ``file`` is the stage's own, for cpt and dpo.
    """

    rows: int
    longest: int | None = None
    characters: int | None = None
    file: FileRef | None = None


class _Choices:
    """Values and their origins, filled one by one."""

    def __init__(self, own: StageConfig | TrainConfig, earlier: _Choices | None = None) -> None:
        self.own = own
        self.values: dict[str, Any] = dict(earlier.values) if earlier else {}
        self.origins: dict[str, str] = dict(earlier.origins) if earlier else {}

    def pick(self, name: str, default: Any, reason: str) -> Any:
        """The user's value, or else the default with its reason."""
        own = getattr(self.own, name)
        self.values[name] = default if own is None else own
        self.origins[name] = reason if own is None else FROM_CONFIG
        return self.values[name]


def resolve_stages(
    train: TrainConfig, facts: list[StageFacts], parameters: int | None = None, gpus: int = 1
) -> tuple[Stage, ...]:
    """Every hyperparameter of every stage, and where it came from.

    Args:
        train: the ``train`` section.
        facts: of the data of each stage, in turn.
        parameters: weights of the base, where known.
        gpus: the rows of a step are to be shared out evenly among so many.

    Raises:
        ConfigError: ``max_steps`` and ``epochs`` contradict each other, a stage has no rows, or what is set for its
            steps cannot be shared out.
    """
    wanted = train.resolved_stages()
    shared = _shared(train, [stage.kind for stage in wanted], max(fact.rows for fact in facts))
    return tuple(_stage(train, own, fact, shared, parameters, gpus) for own, fact in zip(wanted, facts, strict=True))


def _shared(train: TrainConfig, kinds: list[Kind], rows: int) -> _Choices:
    """What all stages have in common, since they train the same weights."""
    choices = _Choices(train)
    given = "method" in train.model_fields_set
    choices.values["method"] = train.method
    choices.origins["method"] = FROM_CONFIG if given else "adapters learn a task as well as all weights, for less"
    if train.method != "full":
        _adapter(choices, train.method, kinds, rows)
    choices.pick("dtype", "auto", "bfloat16 where the GPU computes in it, else float32")
    return choices


def _stage(
    train: TrainConfig, own: StageConfig, facts: StageFacts, shared: _Choices, parameters: int | None, gpus: int
) -> Stage:
    if facts.rows < 1:
        raise ConfigError("there are no rows to train on", effect="nothing was started")
    choices = _Choices(own, shared)
    _length(choices, own.kind, facts.longest)
    block = _packing(choices, own.kind, facts, train.backend)
    _batch(choices, own.kind, facts.rows, block)
    _evenly(choices, gpus)
    _steps(choices, own, facts.rows, block)
    _optimiser(choices, own.kind, train.method, parameters)
    choices.values["activation_checkpointing"] = own.activation_checkpointing
    if own.activation_checkpointing is not None:
        choices.origins["activation_checkpointing"] = FROM_CONFIG
    else:
        choices.origins["activation_checkpointing"] = "the machine decides, by its memory"
    if own.kind == "dpo":
        choices.pick("beta", 0.1, "the usual one: holds on to where the stage began, and still moves")
    choices.pick("gate", True, "a stage that makes things worse on the validation rows is kept out")
    choices.pick("patience", PATIENCE, "evaluations in a row without a lower loss: a quarter of a stage or more")
    return Stage(
        kind=own.kind,
        data=facts.file,
        rows=0 if facts.file is None else facts.rows,
        origins=choices.origins,
        **choices.values,
    )


def _length(choices: _Choices, kind: Kind, longest: int | None) -> None:
    if kind == "cpt":
        choices.pick("max_length", TEXT_LENGTH, "long documents are read in pieces of this many tokens")
        return
    if longest is None:
        choices.pick("max_length", USUAL_LENGTH, "room for most tasks; longer rows would be cut, and the log says so")
        return
    needed = longest / CHARACTERS_PER_TOKEN + TEMPLATE_TOKENS
    length = min(max(math.ceil(needed / LENGTH_STEP) * LENGTH_STEP, LEAST_LENGTH), MOST_LENGTH)
    reason = f"the longest row has {longest} characters, at {CHARACTERS_PER_TOKEN} a token or more"
    if length == MOST_LENGTH:
        reason += f"; no more than {MOST_LENGTH}, for the memory's sake"
    choices.pick("max_length", length, reason)


def _packing(choices: _Choices, kind: Kind, facts: StageFacts, backend: Backend) -> float:
    """Decides on packing; returns how many rows a block holds, about: 1 without packing, less if rows are split."""
    length = choices.values["max_length"]
    if kind == "dpo":
        if choices.own.packing:
            raise ConfigError(
                "packing: the pairs of a dpo stage cannot be packed",
                effect="nothing was started",
                hint="leave packing out of that stage",
            )
        choices.values["packing"], choices.origins["packing"] = False, "pairs of answers cannot be packed"
        return 1.0
    if facts.characters is None:
        fits = 1.0
    else:
        # A chat's template adds some tokens to each row, a document's end one.
        each = facts.characters / facts.rows / USUAL_CHARACTERS_PER_TOKEN + (
            TEMPLATE_TOKENS / 2 if kind == "sft" else 1
        )
        fits = length / each
    if backend == "unsloth":
        choices.pick("packing", False, "backend unsloth: whether it keeps packed rows apart cannot be told beforehand")
        return min(fits, 1.0)
    if kind == "cpt":
        packed = choices.pick("packing", True, "documents fill blocks of max_length tokens, and do not see each other")
        return fits if packed else min(fits, 1.0)
    worth = fits >= ROWS_PER_BLOCK and facts.rows >= FEW_ROWS
    about = f"about {fits:.1f} rows fit into max_length"
    if worth:
        reason = f"{about}, and {facts.rows} rows are enough: no padding, and rows do not see each other"
    else:
        reason = f"{about}, of {facts.rows} rows" if facts.characters else "for that the rows' size must be known"
    return fits if choices.pick("packing", worth, reason) else 1.0


def _batch(choices: _Choices, kind: Kind, rows: int, block: float) -> None:
    wanted = ROWS_PER_STEP / max(block, 1.0)
    if kind == "cpt":
        wanted = max(wanted, min(TEXT_BLOCKS, rows / block / TEXT_STEPS))
    length = choices.values["max_length"] * (2 if kind == "dpo" else 1)  # two answers a pair
    at_once = max(1, min(TOKENS_AT_ONCE // length, math.ceil(wanted)))
    what = "blocks" if choices.values["packing"] else "rows"
    size = choices.pick(
        "batch_size",
        at_once,
        f"{at_once} {what} of {length} tokens at once fit a card of 24 GB up to some 8 billion parameters",
    )
    together = max(1, round(wanted / size))
    choices.pick(
        "gradient_accumulation",
        together,
        f"with batch_size {size}, about {ROWS_PER_STEP} rows a step: steady, and still many steps",
    )


def _evenly(choices: _Choices, gpus: int) -> None:
    """The rows of a step, rounded up to a multiple of the GPUs, unless both of their factors were set."""
    values, own = choices.values, choices.own
    size, together = values["batch_size"], values["gradient_accumulation"]
    if (size * together) % gpus == 0:
        return
    changed, other = ("gradient_accumulation", size) if own.gradient_accumulation is None else ("batch_size", together)
    if getattr(own, changed) is not None:
        raise ConfigError(
            f"{gpus} GPUs cannot share {size * together} rows a step evenly: train.batch_size is {size}, "
            f"train.gradient_accumulation {together}",
            effect="nothing was started",
            hint=f"make their product a multiple of {gpus}, or leave one of them out of cloudft.yaml",
        )
    least = gpus // math.gcd(gpus, other)
    values[changed] = math.ceil(values[changed] / least) * least
    choices.origins[changed] += f"; rounded up, so that {gpus} GPUs share the rows of a step evenly"


def _steps(choices: _Choices, own: StageConfig, rows: int, block: float) -> None:
    values = choices.values
    if own.max_steps is not None and own.epochs is not None:
        raise ConfigError(
            f"train.max_steps ({own.max_steps}) and train.epochs ({own.epochs:g}) both say how long to train",
            effect="nothing was started",
            hint="leave one of them out of cloudft.yaml",
        )
    per_step = values["batch_size"] * values["gradient_accumulation"] * block
    epochs, source = (own.epochs, FROM_CONFIG) if own.epochs is not None else _epochs(own.kind, rows)
    steps = max(1, math.ceil(round(epochs * rows / per_step, 6)))
    about = "" if block == 1.0 else "about "
    choices.pick("max_steps", steps, f"{epochs:g} epochs of {rows} rows, {about}{per_step:.4g} a step ({source})")


def _epochs(kind: Kind, rows: int) -> tuple[float, str]:
    if kind == "cpt":
        return EPOCHS[kind], "raw text read once is hardly learned by heart"
    if kind == "dpo":
        return EPOCHS[kind], "preferences are overdone soon"
    if rows >= 10 * MANY_ROWS:
        return 1.0, "so many rows are seen enough in one pass"
    if rows >= MANY_ROWS:
        return 2.0, "so many rows are seen enough in two passes"
    return EPOCHS[kind], "enough to learn a task, few enough not to learn by heart"


def _optimiser(choices: _Choices, kind: Kind, method: str, parameters: int | None) -> None:
    rate, reason = _learning_rate(kind, method, parameters)
    choices.pick("learning_rate", rate, reason)
    choices.pick("scheduler", "cosine", "ends gently, so the last steps do not undo each other")
    if kind == "dpo":
        choices.pick("warmup", 0.1, "a tenth of the steps: the first ones move away from the reference")
    else:
        choices.pick("warmup", 0.05, "the first twentieth of the steps, while the optimiser has no averages yet")
    if method == "full":
        choices.pick("weight_decay", 0.01, "a little, since nothing else bounds the weights")
    else:
        choices.pick("weight_decay", 0.0, "an adapter is small; its rank bounds it already")


def _learning_rate(kind: Kind, method: str, parameters: int | None) -> tuple[float, str]:
    size = 1e9 if parameters is None else parameters
    least, lora = next((least, rate) for least, rate in LORA_RATES if size >= least)
    rate = lora * KIND_SHARE[kind] * (FULL_SHARE if method == "full" else 1)
    parts = [f"{lora:g} is usual for LoRA{_size(parameters, least)}"]
    if method == "full":
        parts.append("a tenth of it for all weights")
    if kind == "cpt":
        parts.append("half of it for raw text, which is read longer")
    if kind == "dpo":
        parts.append("a fortieth of it for preferences, which are overdone soon")
    return float(f"{rate:.2g}"), ", ".join(parts)


def _size(parameters: int | None, least: float) -> str:
    if parameters is None:
        return " at the usual sizes"
    if least in (13e9, 3e8):
        return f" at {parameters / 1e9:.2g} billion parameters"
    return f" on a model as small as {parameters / 1e6:.2g} million parameters"


def _adapter(choices: _Choices, method: str, kinds: list[Kind], rows: int) -> None:
    if method == "rslora":
        rank = choices.pick("lora_r", 64, "rsLoRA keeps high ranks trainable, and that is what it is for")
        choices.pick("lora_alpha", 16, "divided by the root of the rank: 2 at rank 64, as LoRA's usual scale")
    elif "cpt" in kinds:
        rank = choices.pick("lora_r", 64, "raw text says more than a small rank can hold")
        choices.pick("lora_alpha", 2 * rank, "twice the rank, so that the rank can change without the learning rate")
    else:
        rank = choices.pick("lora_r", 16, "enough for a format or a style; a higher rank learns little more")
        choices.pick("lora_alpha", 2 * rank, "twice the rank, so that the rank can change without the learning rate")
    if rows < FEW_ROWS:
        choices.pick("lora_dropout", 0.05, f"{rows} rows are few: a little dropout against learning by heart")
    else:
        choices.pick("lora_dropout", 0.0, f"{rows} rows are enough to do without")
