"""How much memory a training needs on the card: arithmetic over the model's shape, as a range with its parts.

What is kept for the whole step is exact arithmetic: weights, adapter, gradients, optimiser states. What comes and goes
(activations, the loss) follows from what autograd keeps for the backward pass, and what the CUDA context and the
allocator's gaps add was read off published measurements; the range spans both. `tests/local/planning/test_vram.py`
holds it against such measurements, and names them.

    peak = weights + adapter and its states + checkpoints of every layer + the larger of (one live layer, the loss)
           + context + gaps
"""

from __future__ import annotations

from dataclasses import dataclass

from local.planning.shape import Shape

# Bytes for a weight. NF4: half a byte, and a scale for each 64, itself quantised with a scale for each 256 (QLoRA,
# Dettmers et al. 2023, section 3: 0.127 bits for a parameter); without double quantisation a scale has 4 bytes.
NF4, SCALES, PLAIN_SCALES = 0.5, 0.127 / 8, 4 / 64
# Bytes for a trained weight: itself, its gradient and AdamW's two averages, all in float32. Autocast keeps a 16-bit
# copy of a trained matrix from its first use in a pass on.
TRAINED, COPY = 16, 2
# Elements that autograd keeps of one layer for its backward pass, for a token, in widths of (hidden, query, keys,
# feed-forward): least as counted for attention-only adapters, most with casts of an adapter on every matrix.
KEPT_LEAST, KEPT_MOST = (10, 3, 1, 3), (18, 6, 2, 6)
# The fused loss of trl works on tiles of (tokens, vocabulary); one that builds all logits keeps about three copies of
# them in float32 and the 16-bit original (measured: 3.4 to 4.1).
TILE_TOKENS, TILE_VOCABULARY = 4096, 32768
LOGITS_LEAST, LOGITS_MOST = 2.5, 4.1
# The CUDA context with its libraries, and the allocator's gaps as a share of what comes and goes and of all.
CONTEXT_LEAST, CONTEXT_MOST = 0.15e9, 1.1e9
GAPS_LEAST, GAPS_MOST = 0.03, 0.3
ROUGH = 0.03


@dataclass(frozen=True)
class Setup:
    """What of a training decides its memory.

    ``rows`` of ``length`` tokens are on the card at once (a DPO pair is two rows); ``rank`` of the adapter, 0 for a
    full fine-tune. ``wide``: computed in float32, for want of bfloat16. ``cards`` share the states of a full fine-tune.
    ``reference``: DPO's, a second adapter that is not trained.
    The rest describes trainers that are not ours, whose published measurements are compared with: ``all_logits`` builds
    the logits of every token at once, ``upcast`` keeps what a quantised base leaves unquantised in float32,
    ``single_scales`` is NF4 without double quantisation, ``attention_only`` adapts no feed-forward layer.
    """

    method: str
    rows: int
    length: int
    rank: int = 0
    wide: bool = False
    checkpointing: bool = True
    trained_share: float = 1.0
    cards: int = 1
    reference: bool = False
    all_logits: bool = False
    upcast: bool = False
    single_scales: bool = False
    attention_only: bool = False

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    @property
    def element(self) -> int:
        """Bytes of an element that is computed with."""
        return 4 if self.wide else 2


@dataclass(frozen=True)
class Memory:
    """Bytes on one card at the highest point, from least to most; ``parts`` are those of the likely middle."""

    least: float
    most: float
    parts: dict[str, float]

    @property
    def middle(self) -> float:
        return (self.least + self.most) / 2


def memory(shape: Shape, setup: Setup, parameters: int | None = None) -> Memory:
    """What the training needs.

    Args:
        parameters: weights of the base as its files tell, where known: they count experts and odd layers exactly.
    """
    weights = _weights(shape, setup, parameters)
    trained = _trained(shape, setup)
    kept = weights + trained
    coming = [_coming(shape, setup, *bound) for bound in ((KEPT_LEAST, LOGITS_LEAST), (KEPT_MOST, LOGITS_MOST))]
    copies = 0.0 if setup.wide else COPY * _trained_weights(shape, setup) / setup.cards
    least = kept * (1 - ROUGH) + coming[0] * (1 + GAPS_LEAST) + CONTEXT_LEAST
    most = kept * (1 + ROUGH) + coming[1] * (1 + GAPS_MOST) + CONTEXT_MOST + copies
    middle = (least + most) / 2
    parts = {"weights": weights, "trained weights and their states": trained, "activations": sum(coming) / 2}
    return Memory(least, most, {**parts, "context and gaps": max(middle - sum(parts.values()), 0.0)})


def adapter_weights(shape: Shape, setup: Setup) -> int:
    """Weights of an adapter on every linear layer (but the output layer): rank × (in + out) of each."""
    pairs = shape.linears[:4] if setup.attention_only else shape.linears
    magnitudes = sum(out for _, out in pairs) if setup.method == "dora" else 0
    return shape.layers * (setup.rank * sum(a + b for a, b in pairs) + magnitudes)


def _weights(shape: Shape, setup: Setup, parameters: int | None) -> float:
    total = parameters or shape.parameters
    if setup.method == "full":
        return 0.0  # they are trained: see there
    if setup.method != "qlora":
        return float(total * setup.element)
    scales = PLAIN_SCALES if setup.single_scales else SCALES
    other = min(shape.other_weights, total)
    return (total - other) * (NF4 + scales) + other * (4 if setup.upcast else setup.element)


def _trained(shape: Shape, setup: Setup) -> float:
    """The weights that are trained, with gradients and optimiser states."""
    reference = 4 * adapter_weights(shape, setup) if setup.reference and setup.method != "full" else 0
    return TRAINED * _trained_weights(shape, setup) / setup.cards + reference


def _trained_weights(shape: Shape, setup: Setup) -> int:
    return shape.parameters if setup.method == "full" else adapter_weights(shape, setup)


def _coming(shape: Shape, setup: Setup, kept: tuple[int, int, int, int], logits: float) -> float:
    """Bytes that come and go in a step, at their highest."""
    widths = (shape.hidden, shape.query, shape.keys, shape.inner * shape.active)
    layer = sum(count * width for count, width in zip(kept, widths, strict=True)) * setup.tokens * setup.element
    if setup.method == "dora":
        # The norm of base plus update is taken anew in each pass: a whole matrix, and its dequantised original.
        layer += 3 * 4 * max(a * b for a, b in shape.linears)
    if setup.method == "qlora":
        layer += 2 * max(a * b for a, b in shape.linears)  # the matrix that is just dequantised
    loss = _loss(shape, setup, logits)
    full = setup.method == "full"
    # What a layer begins with is kept for each, in the type of the weights that add to it.
    stream = shape.layers * setup.tokens * shape.hidden * (4 if setup.upcast or full else setup.element)
    return stream + max(layer, loss) if setup.checkpointing else shape.layers * layer + loss


def _loss(shape: Shape, setup: Setup, logits: float) -> float:
    if setup.all_logits:
        return logits * 4 * setup.tokens * shape.vocabulary
    trained = max(1, round(setup.tokens * setup.trained_share))
    tile = min(trained, TILE_TOKENS) * min(shape.vocabulary, TILE_VOCABULARY) * setup.element
    gradients = shape.embedding * 8 if setup.method == "full" else 0
    return tile + trained * shape.hidden * 8 + gradients
