"""The GPUs that people rent by name: memory, and what each provider calls them.

Numbers are the vendors' data sheets (GB of memory; dense bf16 TFLOP/s, fp16 where a card computes in no bf16; GB/s of
memory bandwidth; float32 TFLOP/s without TF32). Prices are never kept here: a table of prices grows stale, and a cap on
a stale price is fiction.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cloudft.errors import UsageError


@dataclass(frozen=True)
class Gpu:
    """One card. ``runpod`` and ``modal`` are the providers' own names, None where they have none.

    ``bf16``: it computes in bfloat16; elsewhere the trainer takes float32, twice the memory.
    """

    name: str
    memory_gb: int
    bf16_tflops: float
    bandwidth_gbs: float
    float32_tflops: float
    runpod: str | None = None
    modal: str | None = None
    aliases: tuple[str, ...] = ()
    bf16: bool = True


GPUS: tuple[Gpu, ...] = (
    Gpu("T4", 16, 65, 320, 8, modal="T4", bf16=False),
    Gpu("RTX-A4000", 16, 76, 448, 19, runpod="NVIDIA RTX A4000", aliases=("A4000",)),
    Gpu("RTX-A5000", 24, 111, 768, 28, runpod="NVIDIA RTX A5000", aliases=("A5000",)),
    Gpu("A10G", 24, 70, 600, 31, modal="A10G", aliases=("A10",)),
    Gpu("L4", 24, 121, 300, 30, runpod="NVIDIA L4", modal="L4"),
    Gpu("RTX-3090", 24, 71, 936, 36, runpod="NVIDIA GeForce RTX 3090", aliases=("3090", "RTX3090")),
    Gpu("RTX-4090", 24, 165, 1008, 83, runpod="NVIDIA GeForce RTX 4090", aliases=("4090", "RTX4090")),
    Gpu("A40", 48, 150, 696, 37, runpod="NVIDIA A40"),
    Gpu("RTX-A6000", 48, 155, 768, 39, runpod="NVIDIA RTX A6000", aliases=("A6000",)),
    Gpu("L40S", 48, 362, 864, 92, runpod="NVIDIA L40S", modal="L40S"),
    Gpu("A100-40", 40, 312, 1555, 19.5, modal="A100-40GB", aliases=("A100-40GB",)),
    Gpu(
        "A100-80",
        80,
        312,
        1935,
        19.5,
        runpod="NVIDIA A100 80GB PCIe",
        modal="A100-80GB",
        aliases=("A100", "A100-80GB", "A100-PCIE"),
    ),
    Gpu("A100-SXM", 80, 312, 2039, 19.5, runpod="NVIDIA A100-SXM4-80GB", aliases=("A100-80-SXM",)),
    Gpu("H100-PCIE", 80, 756, 2000, 51, runpod="NVIDIA H100 PCIe"),
    Gpu("H100", 80, 989, 3350, 67, runpod="NVIDIA H100 80GB HBM3", modal="H100", aliases=("H100-SXM",)),
    Gpu("H200", 141, 989, 4800, 67, runpod="NVIDIA H200", modal="H200"),
    Gpu("B200", 180, 2250, 8000, 75, runpod="NVIDIA B200", modal="B200"),
)


@dataclass(frozen=True)
class Wish:
    """What ``--gpu`` asks for: a card, or any card with at least ``memory_gb``; ``count`` of them."""

    text: str
    gpu: Gpu | None
    memory_gb: int
    count: int


def parse_wish(text: str) -> Wish:
    """``A10G``, ``24GB``, ``A100-80GB``, ``H100:2``.

    Raises:
        UsageError: no card is called so; the nearest names are given.
    """
    name, _, number = text.strip().partition(":")
    if number and not (number.isdigit() and 1 <= int(number) <= 8):
        raise UsageError(f"--gpu {text}: a count is 1 to 8, as in H100:2", effect="nothing was rented")
    count = int(number or 1)
    if memory := re.fullmatch(r"(\d+)\s*GB", name, re.IGNORECASE):
        return Wish(text, None, int(memory.group(1)), count)
    gpu = find_gpu(name)
    if gpu is None:
        raise UsageError(f"--gpu {text}: no GPU of that name is known", effect="nothing was rented", hint=_meant(text))
    return Wish(text, gpu, gpu.memory_gb, count)


def _meant(text: str) -> str:
    """What was probably meant by a wish that is none."""
    if "," in text:
        return "one card for each --gpu, the best first:  " + " ".join(
            f"--gpu {part.strip()}" for part in text.split(",") if part.strip()
        )
    if re.fullmatch(r"\d+\s*(G|GIB)?", text.strip(), re.IGNORECASE):
        return f"memory is asked for with its unit:  --gpu {re.sub('[^0-9]', '', text)}GB"
    return f"known: {', '.join(g.name for g in GPUS)}; or ask by memory: 24GB"


def find_gpu(name: str) -> Gpu | None:
    """The card that is called ``name`` by people or by a provider; case, blanks and underscores do not matter."""
    wanted = _plain(name)
    for gpu in GPUS:
        names = (gpu.name, *gpu.aliases, gpu.runpod or "", gpu.modal or "")
        if wanted in {_plain(n) for n in names if n}:
            return gpu
    return None


def _plain(name: str) -> str:
    return re.sub(r"[\s_]+", "-", name.strip()).upper()
