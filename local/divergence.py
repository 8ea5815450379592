"""How far one model's predictions are from another's, how far is too far, and what to try then."""

from __future__ import annotations

from typing import Any

# Nats per token that a file may lose against the 16-bit merge; above, something went wrong, or the type is too coarse
# for this model. Quantising alone costs real models 0.01 to 0.1 at Q4_K_M, and next to nothing from Q8_0 up.
LIMITS = {"F32": 0.02, "BF16": 0.03, "F16": 0.02, "Q8_0": 0.05, "Q6_K": 0.1, "Q5_K_M": 0.2, "Q5_K_S": 0.2}
LIMIT = 0.3  # of all coarser types
FINER = ("Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16")


def limit_of(kind: str) -> float:
    """The divergence that a file of a type may have, in nats per token."""
    return LIMITS.get(kind, LIMIT)


def finer(kind: str) -> str | None:
    """The next type with more bits; None: there is none."""
    if kind in FINER:
        rest = FINER[FINER.index(kind) + 1 :]
        return rest[0] if rest else None
    return None if kind in ("F32", "BF16") else "Q5_K_M" if kind.startswith("Q5") else FINER[0]


def compare(ours: Any, theirs: Any) -> tuple[float, float]:
    """Mean KL divergence of ``ours`` from ``theirs`` in nats, and the share of equal most likely tokens.

    Both are logits (tokens, vocabulary); a file may pad its vocabulary, and that part is left out.
    """
    import numpy as np

    width = min(ours.shape[1], theirs.shape[1])
    divergence = 0.0
    agreed = 0
    for p_row, q_row in zip(theirs[:, :width], ours[:, :width], strict=True):
        p_log, q_log = log_softmax(p_row.astype(np.float64)), log_softmax(q_row.astype(np.float64))
        divergence += float((np.exp(p_log) * (p_log - q_log)).sum())
        agreed += int(p_row.argmax() == q_row.argmax())
    return divergence / len(ours), agreed / len(ours)


def log_softmax(row: Any) -> Any:
    """Logarithms of the probabilities that logits stand for."""
    import numpy as np

    shifted = row - row.max()
    return shifted - np.log(np.exp(shifted).sum())
