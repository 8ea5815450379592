"""How far one model's predictions are from another's, how far is too far, and what to try then."""

from __future__ import annotations

from typing import Any

# What quantising costs, in nats per token: upstream's table for Llama 3 8B (tools/perplexity/README.md of the pinned
# sources), a model that takes it harder than most. Of types that are not here it costs 0.08 and more.
TYPICAL = {
    "F32": 0.0,
    "F16": 0.0,
    "BF16": 0.0,
    "Q8_0": 0.0014,
    "Q6_K": 0.0055,
    "Q5_K_M": 0.0108,
    "Q5_K_S": 0.0166,
    "Q5_1": 0.018,
    "Q5_0": 0.0222,
    "Q4_K_M": 0.0313,
    "Q4_K_S": 0.0431,
    "IQ4_NL": 0.0357,
    "IQ4_XS": 0.0363,
}
# A file may lose five times that: small models lose more, and a few rows scatter. Above, something went wrong.
FACTOR = 5
FLOOR = 0.02  # below, nobody could tell the models apart
# Of whatever type, a file that loses more is another model: every fifth of its most likely tokens is another one.
MOST = 0.3
FINER = ("Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16")


def limit_of(kind: str, own: float | None = None) -> float:
    """The divergence that a file of a type may have, in nats per token. ``own``: a limit that the user set."""
    return own if own is not None else round(max(FLOOR, min(MOST, FACTOR * TYPICAL.get(kind, MOST))), 2)


def steps_up(kind: str) -> list[str]:
    """The finer types to try in turn, none of 16 bits."""
    better = finer(kind)
    return [better, *steps_up(better)] if better is not None and better != "F16" else []


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
