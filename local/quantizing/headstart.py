"""Quantises the largest tensors while the libraries are still being imported, which takes seconds and one core.

Embedding and output layer are a third of a small model, and mostly go into the file as they are in the base. Their
types are guessed here; what the plan says decides whether a block that was made early is taken. A wrong guess costs
nothing but the time that would have passed anyway.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from local.quantizing import ggml
from local.quantizing.adapter import base_tensors
from local.quantizing.lora import Lora
from local.quantizing.names import EMBEDDING, OUTPUT

CHUNK = 1 << 18  # numbers in a block: large enough that Python's share is small, small enough for the cache
MOST = 192 * 2**20  # bytes of blocks kept, of all files together

# (embedding, output layer or tied embedding), as ggml numbers its types
GUESSES = {"Q4_K_M": (12, 14), "Q5_K_M": (13, 14), "Q6_K": (14, 14), "Q8_0": (8, 8), "F16": (1, 1)}
NARROW = {12: 6, 13: 7, 14: 8}  # for rows that are no multiple of 256
BLOCK_BYTES = {12: (256, 144), 13: (256, 176), 14: (256, 210), 6: (32, 22), 7: (32, 24), 8: (32, 34), 1: (1, 2)}


class HeadStart:
    """Blocks of rows that were quantised early, by (file, offset of the tensor, first row, type)."""

    def __init__(self, folder: Path, lora: Lora | None, kinds: list[str]) -> None:
        self._blocks: dict[tuple[str, int, int, int], Any] = {}
        self._enough = threading.Event()
        self._kept = 0
        work = _guess(folder, lora, kinds)
        self._thread = threading.Thread(target=self._run, args=(work,), name="head start", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """From here on nothing is added: the whole work begins."""
        self._enough.set()
        self._thread.join()

    def take(self, file: str, offset: int, start: int, type_: int) -> Any:
        """A block, once; None when it was not made."""
        return self._blocks.pop((file, offset, start, type_), None)

    def _run(self, work: list[tuple[Path, int, str, tuple[int, int], set[int]]]) -> None:
        import numpy as np

        for path, offset, dtype, (total, columns), types in work:
            raw = np.memmap(path, np.uint16, "r", offset, (total, columns))
            rows = max(1, CHUNK // columns)
            for start in range(0, total, rows):
                if self._enough.is_set() or self._kept > MOST:
                    return
                block = raw[start : start + rows]
                numbers = (
                    block.view(np.float16).astype(np.float32)
                    if dtype == "F16"
                    else (block.astype(np.uint32) << 16).view(np.float32)
                )
                for type_ in types:
                    count, size = BLOCK_BYTES[type_]
                    out = np.empty(numbers.size // count * size, np.uint8)
                    try:
                        ggml.refuse_infinite(numbers)
                        ggml.quantize_rows(type_, numbers, out)
                    except Exception:  # said when the tensor's turn comes
                        return
                    self._blocks[str(path.resolve()), offset, start, type_] = out
                    self._kept += out.nbytes


def _guess(folder: Path, lora: Lora | None, kinds: list[str]) -> list[tuple[Path, int, str, tuple[int, int], set[int]]]:
    """What is worth starting with: file, offset, type of the numbers, shape, types to make."""
    kinds = [kind for kind in kinds if kind in GUESSES]
    if not kinds:
        return []
    tensors = base_tensors(folder)
    tied = OUTPUT not in tensors
    changed = lora.changed() if lora is not None else set()
    found: list[tuple[Path, int, str, tuple[int, int], set[int]]] = []
    for name, tensor in tensors.items():
        if not (name == OUTPUT or EMBEDDING.search(name)) or name in changed:
            continue
        if tensor.dtype not in ("BF16", "F16") or len(tensor.shape) != 2 or tensor.shape[1] % 32:
            continue
        types = {GUESSES[kind][tied or name == OUTPUT] for kind in kinds}
        if tensor.shape[1] % 256:
            types = {NARROW.get(type_, type_) for type_ in types}
        found.append((tensor.file, tensor.begin, tensor.dtype, (tensor.shape[0], tensor.shape[1]), types))
    return found
