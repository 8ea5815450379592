"""How long a training will take, as a range with its basis: arithmetic from the spec, not a promise.

FLOPs per token ≈ 6 × parameters with activation checkpointing (Kaplan et al., "Scaling Laws", 2020, for 2N forward
and 4N backward; the frozen base saves part of the backward). The share of a card's peak that LoRA reaches was seen
between 0.25 and 0.45 in bf16.
"""

from __future__ import annotations

import contextlib
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

from infra.gpus import Gpu
from jobs.spec import Base, RunSpec
from local.base import base_folder

FLOPS_PER_PARAMETER = 6
REACHED = (0.25, 0.45)
CHARACTERS_PER_TOKEN = 4
# Boot, image pull, download and load, before the first step: seen between two and twelve minutes.
OVERHEAD_SECONDS = (120.0, 720.0)


@dataclass(frozen=True)
class Estimate:
    """Seconds from creation to the end, least and most, and what they rest on."""

    least_seconds: float
    most_seconds: float
    basis: str


def estimate(spec: RunSpec, gpu: Gpu | None, count: int) -> Estimate | None:
    """A range, or None when the card or the size of the base is not known."""
    parameters = spec.base.parameters
    if gpu is None or parameters is None:
        return None
    stage = spec.stages[0]
    rows = stage.max_steps * stage.batch_size * stage.gradient_accumulation
    tokens = rows * min(spec.data.train.bytes / spec.data.train_rows / CHARACTERS_PER_TOKEN, stage.max_length)
    flops = FLOPS_PER_PARAMETER * parameters * tokens
    seconds = [flops / (gpu.bf16_tflops * 1e12 * count * share) for share in REACHED]
    basis = f"{parameters / 1e9:.2g}B parameters, about {tokens / 1e6:.2g}M tokens, {gpu.name} not measured yet"
    return Estimate(seconds[1] + OVERHEAD_SECONDS[0], seconds[0] + OVERHEAD_SECONDS[1], basis)


def count_parameters(base: Base, project_root: Path) -> int | None:
    """How many weights the base has, from the headers of its files or from the hub's own count; None if unknown."""
    if base.source == "folder":
        folder = base_folder(base.id, project_root)
        return sum(_weights_in(folder / f.path) for f in base.files if f.path.endswith(".safetensors")) or None
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    with contextlib.suppress(HfHubHTTPError, OSError, ValueError):
        found = HfApi().model_info(base.id, revision=base.revision, expand=["safetensors"]).safetensors
        return found.total if found else None
    return None


def _weights_in(path: Path) -> int:
    """The file begins with the length of its JSON header, 8 bytes, little-endian (safetensors format)."""
    with path.open("rb") as src:
        (length,) = struct.unpack("<Q", src.read(8))
        header = json.loads(src.read(length))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
