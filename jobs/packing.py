"""Several short examples in one block, without padding, and without letting them see each other."""

from __future__ import annotations

from typing import Any

# Of the logits' own spread: rounding moves them by far less, a neighbour that is seen by far more.
TOLERANCE = 1e-3
PROBE = 12  # tokens of each document of the probe


def pack(dataset: Any, length: int) -> Any:
    """Best-fit decreasing: whole examples of ``input_ids`` and ``labels`` in blocks of at most ``length`` tokens."""
    from trl import pack_dataset

    return pack_dataset(dataset, length, "bfd")


def keeps_apart(model: Any) -> str:
    """How it was found that the model keeps packed documents apart; empty if it does not, or if it can't be told.

    Two blocks that differ in the first document only are read: whatever the second document's logits differ by, it
    saw of the first.
    """
    import torch

    vocabulary = model.get_input_embeddings().weight.shape[0]
    first, other, second = (torch.arange(PROBE) * factor % min(vocabulary, 1009) for factor in (7, 11, 13))
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            one, two = (_logits(model, torch.cat((document, second))) for document in (first, other))
    except Exception as exc:  # a model that takes no positions has its own way to say so
        if isinstance(exc, torch.OutOfMemoryError):
            raise
        return ""
    finally:
        model.train(was_training)
    difference = ((one - two).abs().max() / one.std()).item()
    return f"probed: a neighbour moves logits by {difference:.0e}" if difference < TOLERANCE else ""


def _logits(model: Any, block: Any) -> Any:
    """Of the second document in a block of two, in float32; as trl's collator hands blocks over."""
    import torch

    device = next(model.parameters()).device
    positions = torch.arange(PROBE).repeat(2)
    bounds = torch.tensor([0, PROBE, 2 * PROBE], dtype=torch.int32, device=device)
    found = model(
        input_ids=block[None].to(device),
        position_ids=positions[None].to(device),
        cu_seq_lens_q=bounds,
        cu_seq_lens_k=bounds,
        max_length_q=PROBE,
        max_length_k=PROBE,
        use_cache=False,
    )
    return found.logits[0, PROBE:].float()
