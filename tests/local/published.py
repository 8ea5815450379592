"""What others measured and published, in our words: the estimates are held against it. Facts only, with their sources.

T4: github.com/Anassbzdd/fitcheck, data/measurements/final-t4-20260921.json (MIT), the six rows with SDPA: bytes of the
whole process. QLoRA on q, k, v, o with rank 16, one row of 1024 tokens, fp16, NF4 without double quantisation, the
unquantised rest in float32, all logits.

QWEN: github.com/QwenLM/Qwen, README.md, "Profiling of Memory and Speed": one A100-SXM4-80G, flash attention 2, LoRA of
rank 64 on every linear layer, batch 1, 8 accumulated passes; GB and seconds for 8 passes. Its Q-LoRA is GPTQ, so only
its LoRA rows count here, but the speeds of both do.

FACTORY: github.com/hiyouga/LLaMA-Factory/wiki/Performance-comparison: LLaMA2-7B, rank 8 on every linear layer. First
4 rows of 1024 tokens; then one row of n tokens, NF4, flash attention 2, on an A100 of 40 GB. GB and tokens/s.
"""

from __future__ import annotations

from dataclasses import dataclass

from infra.gpus import Gpu, find_gpu
from local.planning.shape import Shape
from local.planning.vram import Setup


def _gpu(name: str) -> Gpu:
    found = find_gpu(name)
    assert found is not None
    return found


A100 = _gpu("A100-SXM")


@dataclass(frozen=True)
class Case:
    """A published training. ``bytes`` or ``seconds`` (for one pass) are None where it was not told."""

    name: str
    shape: Shape
    setup: Setup
    bytes: float | None = None
    seconds: float | None = None
    gpu: Gpu = A100

    def __str__(self) -> str:
        return self.name


MIB = 1 << 20
QWEN25_7B = Shape(28, 3584, 18944, 3584, 512, 152064, tied=False)
MISTRAL_7B = Shape(32, 4096, 14336, 4096, 1024, 32768, tied=False)
DEEPSEEK_13B = Shape(24, 2048, 5504, 2048, 2048, 32256, tied=False)
QWEN25_15B = Shape(28, 1536, 8960, 1536, 256, 151936, tied=True)
LLAMA32_3B = Shape(28, 3072, 8192, 3072, 1024, 128256, tied=True)
LLAMA32_1B = Shape(16, 2048, 8192, 2048, 512, 128256, tied=True)
LLAMA2_7B = Shape(32, 4096, 11008, 4096, 4096, 32000, tied=False)
QWEN1_18B = Shape(24, 2048, 5504, 2048, 2048, 151936, tied=False)
QWEN1_7B = Shape(32, 4096, 11008, 4096, 4096, 151936, tied=False)
QWEN1_14B = Shape(40, 5120, 13696, 5120, 5120, 152064, tied=False)

T4 = [
    Case(
        f"T4 QLoRA {name}",
        shape,
        Setup("qlora", 1, 1024, 16, all_logits=True, upcast=True, single_scales=True, attention_only=True),
        bytes=mib * MIB,
    )
    for name, shape, mib in (
        ("Qwen2.5-7B", QWEN25_7B, 12020.9),
        ("Mistral-7B", MISTRAL_7B, 6540.9),
        ("deepseek-coder-1.3B", DEEPSEEK_13B, 2312.9),
        ("Qwen2.5-1.5B", QWEN25_15B, 5352.9),
        ("Llama-3.2-3B", LLAMA32_3B, 6408.9),
        ("Llama-3.2-1B", LLAMA32_1B, 4166.9),
    )
]

LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
QWEN = [
    Case(
        f"A100 LoRA Qwen-{name} {length}",
        shape,
        Setup("lora", 1, length, 64, all_logits=True),
        bytes=gigabytes * 1e9,
        seconds=seconds / 8,
    )
    for name, shape, row in (
        ("1.8B", QWEN1_18B, ((6.7, 1.0), (7.4, 1.0), (8.4, 1.1), (11.0, 1.7), (16.2, 3.3), (21.8, 6.8))),
        ("7B", QWEN1_7B, ((20.1, 1.2), (20.4, 1.5), (21.5, 2.8), (23.8, 5.2), (29.7, 10.1), (36.6, 21.3))),
        ("14B", QWEN1_14B, ((34.6, 1.6), (35.1, 2.4), (35.3, 4.4), (37.4, 8.4), (42.5, 17.0), (55.2, 36.0))),
    )
    for length, (gigabytes, seconds) in zip(LENGTHS, row, strict=True)
]
QWEN_QUANTISED = [
    Case(f"A100 Q-LoRA Qwen-{name} {length}", shape, Setup("qlora", 1, length, 64), seconds=seconds / 8)
    for name, shape, row in (
        ("1.8B", QWEN1_18B, (1.4, 1.4, 1.4, 2.0, 3.4, 6.5)),
        ("7B", QWEN1_7B, (3.0, 3.0, 3.5, 7.0, 11.6, 22.3)),
        ("14B", QWEN1_14B, (5.3, 6.3, 8.2, 11.8, 20.1, 38.3)),
    )
    for length, seconds in zip(LENGTHS, row, strict=True)
]

FACTORY = [
    Case(
        f"A100 {method} LLaMA2-7B 4 x 1024",
        LLAMA2_7B,
        Setup(method, 4, 1024, 8, all_logits=True),
        bytes=gigabytes * 1e9,
        seconds=4096 / rate,
        gpu=_gpu("A100-40"),
    )
    for method, gigabytes, rate in (("lora", 18, 2392), ("lora", 17, 2954), ("qlora", 9, 2415))
] + [
    Case(
        f"A100 QLoRA LLaMA2-7B {length}",
        LLAMA2_7B,
        Setup("qlora", 1, length, 8, all_logits=True),
        bytes=gigabytes * 1e9,
        seconds=length / rate,
        gpu=_gpu("A100-40"),
    )
    for length, gigabytes, rate in ((1024, 6, 2295), (2048, 7, 2741), (4096, 9, 2926), (8192, 12, 3128))
]

MEMORY = [*T4, *QWEN, *FACTORY]
SPEED = [*QWEN, *QWEN_QUANTISED, *FACTORY]
