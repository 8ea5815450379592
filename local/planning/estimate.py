"""What a run needs on a card, and how long it takes: ranges with their basis, never a single figure, and no promise.

Everything follows from the spec, the base's ``config.json`` and the rows: ``local.planning.vram`` and
``local.planning.speed`` do the arithmetic, ``local.planning.measured`` corrects it by what earlier runs measured on
that card.
"""

from __future__ import annotations

import contextlib
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cloudft.errors import CloudftError
from infra.gpus import Gpu
from jobs.spec import Base, RunSpec, Stage
from local.base import base_folder
from local.planning.measured import Speed, relevant
from local.planning.shape import Shape
from local.planning.speed import Pace, pace
from local.planning.vram import Memory, Setup, memory

# Characters of a token where no tokenizer could be asked: few in code, tables and most languages but English.
CHARACTERS_LEAST, CHARACTERS_MOST = 2.5, 5.0
# Boot, image pull, download and load, before the first step: seen between two and twelve minutes.
BEFORE_LEAST, BEFORE_MOST = 120.0, 720.0
# A measurement of the gate ends early on a GPU: this share of its bound is the least.
MEASURING_LEAST = 0.03
# Blocks are filled to this share at least; rows that lie together are padded to so many times their mean at most.
FILLED, PADDED = 0.85, 1.5
# How far a run may be from one that was measured on the same card: with the same base and method, and with another.
SAME, OTHER = (0.85, 1.25), (0.65, 1.6)
# A measured peak of the very same training repeats closely; the allocator's gaps vary.
PEAK_SAME = (0.95, 1.1)


@dataclass(frozen=True)
class Tokens:
    """How long the rows are, in tokens, template included: ``mean`` and ``longest``, each from least to most.

    ``trained``: the share of them that counts in the loss.
    """

    mean: tuple[float, float]
    longest: tuple[int, int]
    trained: float = 1.0

    def cut(self, length: int) -> Tokens:
        """No row longer than ``length``."""
        least, most = (min(value, float(length)) for value in self.mean)
        shortest, tallest = (min(value, length) for value in self.longest)
        return replace(self, mean=(least, most), longest=(shortest, tallest))


def tokens_from_characters(mean: float, longest: int, template: int = 16) -> Tokens:
    """An estimate of the rows' lengths where no tokenizer was there to count; ``template`` tokens come on top."""
    most, least = (mean / n + template for n in (CHARACTERS_LEAST, CHARACTERS_MOST))
    tallest, shortest = (math.ceil(longest / n) + template for n in (CHARACTERS_LEAST, CHARACTERS_MOST))
    return Tokens((least, most), (shortest, tallest))


@dataclass(frozen=True)
class Work:
    """All of a run that its estimates rest on. ``shape`` is None for a base whose configuration tells too little.

    ``tokens``: of the rows of each stage. ``measuring``: most seconds that the gate takes at once, 0 without one.
    """

    base: str
    shape: Shape | None
    parameters: int | None
    stages: tuple[Stage, ...]
    tokens: tuple[Tokens, ...]
    speeds: tuple[Speed, ...] = ()
    measuring: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """Seconds from creation to the end, least and most, and what they rest on."""

    least_seconds: float
    most_seconds: float
    basis: str


def work_of(spec: RunSpec, shape: Shape | None, tokens: Sequence[Tokens], speeds: Sequence[Speed]) -> Work:
    """Args: ``tokens``: of the rows of each stage."""
    measuring = spec.gate.seconds if spec.gate else 0.0
    return Work(spec.base.id, shape, spec.base.parameters, spec.stages, tuple(tokens), tuple(speeds), measuring)


def on_card(stage: Stage, tokens: Tokens) -> Tokens:
    """The rows as they lie on the card: cut, or packed into blocks."""
    if stage.packing:
        length = stage.max_length
        return replace(tokens, mean=(FILLED * length, float(length)), longest=(length, length))
    return tokens.cut(stage.max_length)


def setup_of(stage: Stage, tokens: Tokens, gpu: Gpu | None, cards: int) -> tuple[Setup, Setup]:
    """What decides a stage's memory and speed, once as the least that it may be, and once as the most."""
    wide = stage.dtype == "float32" or (gpu is not None and not gpu.bf16)
    pairs = stage.kind == "dpo"
    shared = Setup(
        method=stage.method,
        rows=stage.batch_size * (2 if pairs else 1),
        length=0,
        rank=stage.lora_r or 0,
        wide=wide,
        # Where the machine is to decide, it keeps activations only if there is room for them.
        checkpointing=stage.activation_checkpointing is not False,
        trained_share=tokens.trained,
        cards=cards if stage.method == "full" else 1,
        reference=pairs,
    )
    least, most = on_card(stage, tokens).longest
    return replace(shared, length=least), replace(shared, length=most)


def needed(work: Work, gpu: Gpu | None, cards: int) -> Memory | None:
    """Memory on each card, that of the hungriest stage; None for a base of unknown shape."""
    if work.shape is None:
        return None
    pairs = zip(work.stages, work.tokens, strict=True)
    return max((_stage_memory(work, work.shape, s, t, gpu, cards) for s, t in pairs), key=lambda need: need.most)


def _stage_memory(work: Work, shape: Shape, stage: Stage, tokens: Tokens, gpu: Gpu | None, cards: int) -> Memory:
    low, high = setup_of(stage, tokens, gpu, cards)
    least, most = (memory(shape, setup, work.parameters) for setup in (low, high))
    peaks = [s.peak_bytes for s in work.speeds if s.peak_bytes and _same_setup(s, work.base, high)]
    if not peaks or stage.activation_checkpointing is None:
        # Where the machine keeps activations because it has room, a measured peak tells nothing of what is needed.
        return Memory(least.least, most.most, most.parts)
    return Memory(min(peaks) * PEAK_SAME[0], max(peaks) * PEAK_SAME[1], most.parts)


def _same_setup(speed: Speed, base: str, setup: Setup) -> bool:
    have = (speed.base, speed.method, speed.rank, speed.rows, speed.wide, speed.checkpointing)
    want = (base, setup.method, setup.rank, setup.rows, setup.wide, setup.checkpointing)
    return have == want and speed.length >= setup.length


def estimate(work: Work, gpu: Gpu | None, cards: int) -> Estimate | None:
    """How long the run takes on such a card, or None when the card or the base's shape is not known."""
    if gpu is None or work.shape is None:
        return None
    measured = relevant(work.speeds, gpu.name, cards)
    least = most = 0.0
    for stage, tokens in zip(work.stages, work.tokens, strict=True):
        passes = stage.max_steps * stage.gradient_accumulation
        one = corrected(stage_pace(work.shape, stage, tokens, gpu, cards), work, stage, gpu, measured)
        least, most = least + passes * one.least, most + passes * one.most
    before = _before(measured)
    measuring = (len(work.stages) + 1) * work.measuring
    basis = f"{_model(work)}, {_rows(work)}, {_from(work, gpu, measured)}"
    return Estimate(least + before[0] + measuring * MEASURING_LEAST, most + before[1] + measuring, basis)


def stage_pace(shape: Shape, stage: Stage, tokens: Tokens, gpu: Gpu, cards: int) -> Pace:
    """Seconds of one pass of a stage, before any measured run corrects it."""
    _, setup = setup_of(stage, tokens, gpu, cards)
    lying = on_card(stage, tokens)
    # Rows on the card together are padded to the longest of them: at most to the longest of all.
    alone = setup.rows == 1 or stage.packing
    padded = lying.mean[1] if alone else min(lying.mean[1] * PADDED, lying.longest[1])
    counts = (setup.rows * lying.mean[0], setup.rows * max(padded, lying.mean[0]))
    if stage.activation_checkpointing is not None:
        return pace(shape, setup, gpu, counts)
    kept = pace(shape, replace(setup, checkpointing=False), gpu, counts)
    return Pace(kept.least, pace(shape, setup, gpu, counts).most)


def corrected(modelled: Pace, work: Work, stage: Stage, gpu: Gpu, measured: Sequence[Speed]) -> Pace:
    """The pace as measured runs on this card suggest; the modelled one if there are none."""
    same = [s for s in measured if (s.base, s.method) == (work.base, stage.method)]
    used = (same or list(measured))[:5]
    if not used:
        return modelled
    ratios = [math.log(s.seconds / _modelled(s, gpu)) for s in used]
    centre = modelled.middle * math.exp(math.fsum(ratios) / len(ratios))
    least, most = SAME if same else OTHER
    return Pace(centre * least, centre * most)


def _modelled(speed: Speed, gpu: Gpu) -> float:
    """What would have been said of a measured run before it was measured."""
    setup = Setup(speed.method, speed.rows, speed.length, speed.rank, speed.wide, bool(speed.checkpointing))
    tokens = (speed.tokens, speed.tokens)
    if speed.checkpointing is not None:
        return pace(speed.shape, setup, gpu, tokens).middle
    most = pace(speed.shape, replace(setup, checkpointing=True), gpu, tokens).most
    return Pace(pace(speed.shape, setup, gpu, tokens).least, most).middle


def _before(measured: Sequence[Speed]) -> tuple[float, float]:
    """Seconds before the first step, as seen on this card or by default."""
    seen = [s.before for s in measured if s.before is not None]
    return (min(seen) * 0.8, max(seen) * 1.5) if seen else (BEFORE_LEAST, BEFORE_MOST)


def _model(work: Work) -> str:
    assert work.shape is not None
    methods = ", ".join(dict.fromkeys(stage.method for stage in work.stages))
    return f"{methods} of {(work.parameters or work.shape.parameters) / 1e9:.2g}B parameters"


def _rows(work: Work) -> str:
    low = high = 0.0
    for stage, tokens in zip(work.stages, work.tokens, strict=True):
        rows = stage.max_steps * stage.gradient_accumulation * stage.batch_size * (2 if stage.kind == "dpo" else 1)
        low, high = (
            total + rows * mean / 1e6 for total, mean in zip((low, high), on_card(stage, tokens).mean, strict=True)
        )
    return f"{low:.2g}M tokens" if high < 1.05 * low else f"{low:.2g}M to {high:.2g}M tokens"


def _from(work: Work, gpu: Gpu, measured: Sequence[Speed]) -> str:
    if not measured:
        return f"{gpu.name} not measured yet"
    near = [s for s in measured if s.base == work.base and s.method == work.stages[0].method]
    best = (near or list(measured))[0]
    whose = "" if near else f" of {best.base} ({best.method})"
    return f"{gpu.name} measured in run {best.run_id}{whose}: {best.tokens_per_second:,.0f} tokens/s"


def gigabytes(need: Memory) -> str:
    """``9.8 to 12.4 GB``."""
    return f"{need.least / 1e9:.1f} to {need.most / 1e9:.1f} GB"


def count_parameters(base: Base, project_root: Path) -> int | None:
    """How many weights the base has, from the headers of its files or from the hub's own count; None if unknown."""
    if base.source == "folder":
        folder = base_folder(base.id, project_root)
        return sum(_weights_in(folder / f.path) for f in base.files if f.path.endswith(".safetensors")) or None
    from local.hub import weights_of

    with contextlib.suppress(CloudftError):
        return weights_of(base)
    return None


def _weights_in(path: Path) -> int:
    """The file begins with the length of its JSON header, 8 bytes, little-endian (safetensors format)."""
    with path.open("rb") as src:
        (length,) = struct.unpack("<Q", src.read(8))
        header = json.loads(src.read(length))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
