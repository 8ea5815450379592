"""Who computes a training: trl on transformers and peft, or the same with Unsloth's kernels. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Backend = Literal["trl", "unsloth"]
# What is left out of it has not been seen to be right with Unsloth: see docs/training.md.
UNSLOTH_METHODS = ("lora", "qlora", "rslora")
UNSLOTH_KINDS = ("cpt", "sft")


def refusal(backend: Backend, method: str, kinds: Sequence[str], packing: Sequence[bool | None]) -> str:
    """Why a backend cannot train so; empty if it can.

    Args:
        kinds, packing: of each stage.
    """
    if backend == "trl":
        return ""
    if method == "dora":
        return "backend unsloth does not train dora: its kernels pass such layers by, so nothing would be gained"
    if method not in UNSLOTH_METHODS:
        return f"backend unsloth trains adapters ({', '.join(UNSLOTH_METHODS)}) on one GPU, not method {method}"
    if others := [kind for kind in kinds if kind not in UNSLOTH_KINDS]:
        return f"backend unsloth trains cpt and sft, not {others[0]}: there Unsloth puts a trainer of its own in place"
    if any(packing):
        return "backend unsloth does not pack: whether its attention keeps packed rows apart cannot be told beforehand"
    return ""
