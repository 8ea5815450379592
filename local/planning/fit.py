"""Whether a training fits a card, and what would fit where it does not: said before anything is rented."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cloudft.errors import ConfigError
from infra.gpus import GPUS, Gpu, find_gpu
from local.planning.estimate import Work, gigabytes, needed, on_card
from local.planning.vram import Memory

USUAL_RANK = 16


@dataclass(frozen=True)
class Card:
    """An offer's name of its cards, the memory of one in GB, and how many they are."""

    name: str
    memory_gb: int
    count: int


def fits(need: Memory, memory_gb: int) -> bool:
    """Whether it can be that a training fits: its least need is within what the card is named for."""
    return need.least <= memory_gb * 1e9


@dataclass(frozen=True)
class Way:
    """A change that makes a training fit, in the words of ``cloudft.yaml`` or the command line."""

    text: str
    need: Memory


def ways_to_fit(work: Work, gpu: Gpu | None, memory_gb: int, cards: int) -> tuple[Way, ...]:
    """What would fit: other settings on this card, then the smallest card that takes the run as it is."""
    tries: list[tuple[str, dict[str, object]]] = []
    first = work.stages[0]
    smaller = [rows for rows in (first.batch_size // 2, 1) if 0 < rows < first.batch_size]
    for rows in dict.fromkeys(smaller):
        together = first.batch_size * first.gradient_accumulation // rows
        change: dict[str, object] = {"batch_size": rows, "gradient_accumulation": together}
        tries.append((f"train.batch_size: {rows} with train.gradient_accumulation: {together}", change))
    if first.activation_checkpointing is False:
        tries.append(("train.activation_checkpointing: true", {"activation_checkpointing": True}))
    if first.method != "qlora":
        quantised: dict[str, object] = {"method": "qlora", "lora_r": first.lora_r or USUAL_RANK}
        tries.append(("train.method: qlora", quantised))
        tries.append(("train.method: qlora with train.batch_size: 1", {**quantised, "batch_size": 1}))
    if first.max_length > 1024 and first.batch_size == 1:
        tries.append(("train.max_length: 1024", {"max_length": 1024}))
    found: list[Way] = []
    for text, change in tries:
        stages = tuple(stage.model_copy(update=change) for stage in work.stages)
        need = needed(replace(work, stages=stages), gpu, cards)
        if need is not None and need.middle <= memory_gb * 1e9:
            found.append(Way(text, need))
    return (*found[:2], *_bigger(work, memory_gb, cards))


def _bigger(work: Work, memory_gb: int, cards: int) -> list[Way]:
    for card in sorted(GPUS, key=lambda g: (g.memory_gb, g.bf16_tflops)):
        need = needed(work, card, cards)
        if card.memory_gb > memory_gb and need is not None and need.middle <= card.memory_gb * 1e9:
            count = f":{cards}" if cards > 1 else ""
            return [Way(f"--gpu {card.name}{count}", need)]
    return []


def too_small(work: Work, cards: Sequence[Card]) -> ConfigError:
    """The error for a training that fits none of the cards: which is the largest, and what would fit."""
    largest = max(cards, key=lambda card: card.memory_gb)
    gpu = find_gpu(largest.name.partition(":")[0])
    need = needed(work, gpu, largest.count)
    assert need is not None
    others = f" (the largest of {len(cards)} that match)" if len(cards) > 1 else ""
    ways = ways_to_fit(work, gpu, largest.memory_gb, largest.count)
    told = "\n".join(f"  {way.text}  needs {gigabytes(way.need)}" for way in ways)
    return ConfigError(
        f"{_training(work)} needs {gigabytes(need)} on each card, and {largest.name}{others} has {largest.memory_gb} GB"
        + (f"; what would fit:\n{told}" if told else "; no card that is known has as much"),
        effect="nothing was rented",
        hint="change cloudft.yaml or --gpu, then:  cloudft offers" if told else "choose a smaller base in cloudft.yaml",
    )


def _training(work: Work) -> str:
    """``lora of Qwen/Qwen2.5-7B with 4 rows of up to 2048 tokens``."""
    stage = work.stages[0]
    length = on_card(stage, work.tokens[0]).longest[1]
    return f"{stage.method} of {work.base} with {stage.batch_size} rows of up to {length} tokens"
