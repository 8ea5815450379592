"""Which columns of each weight matter, learnt from the training data: llama.cpp's "imatrix", without its binary.

``llama-imatrix`` watches a 16-bit GGUF file at work and sums the squares of what each weight is multiplied with. The
same sums come here from transformers and the 16-bit base, which are at hand, so no file is needed for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cloudft.errors import DataError
from local.progress import Progress
from local.quantizing.ggml import Imatrix
from local.quantizing.lora import Lora
from local.quantizing.reference import batches, predictions

TOKENS = 2048  # of training text; the sums have settled long before llama.cpp's usual 50,000 for one narrow task
BATCH = 1024


def importances(
    converter: Any,
    model: Path,
    lora: Lora | None,
    tokenizer: Path,
    template: str | None,
    conversations: list[list[dict[str, str]]],
    progress: Progress,
) -> Imatrix:
    """Mean square of each linear layer's inputs, by the name of its weight in the GGUF file.

    The output layer is left out, as upstream does; so are experts that are no linear layers of their own.

    Raises:
        DataError: there is no training text.
    """
    import numpy as np

    rows = _rows(tokenizer, template, conversations)
    if not rows:
        raise DataError("there is no training text to learn the importances from", effect="nothing was written")
    sums: dict[str, Any] = {}
    counts: dict[str, int] = {}

    def hear(name: str, x: Any) -> None:
        squares = (x.float() ** 2).sum(0).numpy()
        sums[name] = sums[name] + squares if name in sums else squares
        counts[name] = counts.get(name, 0) + len(x)

    for batch in batches(rows, BATCH):
        predictions(model, lora, batch, progress=_renamed(progress), on_input=hear)
    found = {}
    for name, values in sums.items():
        try:
            key = converter.map_tensor_name(f"{name}.weight")
        except ValueError:
            continue  # a layer that the file does not have
        if counts[name]:
            found[key] = np.ascontiguousarray(values / counts[name], dtype=np.float32)
    return found


def _rows(tokenizer: Path, template: str | None, conversations: list[list[dict[str, str]]]) -> list[list[int]]:
    from transformers import AutoTokenizer

    trained: Any = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    rows: list[list[int]] = []
    left = TOKENS
    for messages in conversations:
        text = trained.apply_chat_template(messages, chat_template=template, tokenize=False)
        ids = list(trained(text, add_special_tokens=False)["input_ids"])[: min(left, BATCH)]
        if ids:
            rows.append(ids)
            left -= len(ids)
        if left <= 0:
            break
    return rows


def _renamed(progress: Progress) -> Progress:
    def tell(what: str, done: float = 0, total: float | None = None, unit: str = "", note: str = "") -> None:
        progress("imatrix", done, total, unit, "learn which weights matter" if what else note)

    return tell
