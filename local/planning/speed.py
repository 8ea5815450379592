"""How long one pass over the rows on a card takes: arithmetic over the model's shape, as a range.

FLOPs: twice the weights forward, as much to compute the activations anew where they are not kept, as much again for
the gradients of the activations, and for a full fine-tune once more for those of the weights (Kaplan et al., "Scaling
Laws", 2020); attention besides. The share of a card's peak that is reached, and what a layer costs however short the
rows, were read off published speeds; `tests/local/planning/test_speed.py` names them.
"""

from __future__ import annotations

from dataclasses import dataclass

from infra.gpus import Gpu
from local.planning.shape import Shape
from local.planning.vram import Setup

# Shares of the data sheet's dense bf16 peak: most with long rows and flash attention, least with eager kernels.
REACHED_LEAST, REACHED_MOST = 0.22, 0.6
# Seconds for a layer in one pass forward, again, and backward: what Python and the kernels' launches take. A quantised
# base, and DoRA's norm, have more kernels.
LAUNCH_LEAST, LAUNCH_MOST = 1.0e-3, 6.0e-3
SLOWER = {"qlora": 2.2, "dora": 2.0}
# A quantised matrix is written out in 16 bits before each use: bytes that are read and written for a weight.
DEQUANTISED = 0.5 + 2 + 2


@dataclass(frozen=True)
class Pace:
    """Seconds for one pass (forward and backward) over the rows on one card, least and most."""

    least: float
    most: float

    @property
    def middle(self) -> float:
        """The likely one: times are off by factors, so the geometric middle."""
        return float((self.least * self.most) ** 0.5)


def pace(shape: Shape, setup: Setup, gpu: Gpu, tokens: tuple[float, float]) -> Pace:
    """How long a pass takes.

    Args:
        tokens: of all rows on the card together, padding included; least and most.
    """
    peak = (gpu.float32_tflops if setup.wide else gpu.bf16_tflops) * 1e12
    launches = shape.layers * SLOWER.get(setup.method, 1.0)
    unpacked = _dequantised_bytes(shape, setup) / (gpu.bandwidth_gbs * 1e9)
    least = max(flops(shape, setup, tokens[0]) / (peak * REACHED_MOST) + unpacked, launches * LAUNCH_LEAST)
    most = flops(shape, setup, tokens[1]) / (peak * REACHED_LEAST) + 2 * unpacked + launches * LAUNCH_MOST
    return Pace(least, most)


def flops(shape: Shape, setup: Setup, tokens: float) -> float:
    """Floating-point operations of a pass over ``tokens``, in rows of ``setup.length`` at most."""
    # DPO's reference reads the same rows once more, forward only.
    passes = 2 + setup.checkpointing + (setup.method == "full") + setup.reference
    # Causal: a token looks at half of the row on average, once for the scores and once for the values.
    attention = 2 * min(setup.length, tokens) * shape.query * shape.layers
    return tokens * (passes * 2 * shape.used_weights + (3 + setup.checkpointing + setup.reference) * attention)


def _dequantised_bytes(shape: Shape, setup: Setup) -> float:
    if setup.method != "qlora":
        return 0.0
    return (2 + setup.checkpointing) * DEQUANTISED * shape.linear_weights
