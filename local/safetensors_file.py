"""safetensors files without any library: what is in one, read from its header, and a new one put together of others.

The form: the header's length (8 bytes, little-endian), the header (JSON: name → dtype, shape, place), the contents.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PIECE = 1 << 24  # bytes copied at a time
CODES: dict[int, Literal["B", "H", "I", "Q"]] = {
    1: "B",
    2: "H",
    4: "I",
    8: "Q",
}  # of memoryviews, by the bytes of a number
UNREADABLE = (ValueError, KeyError, TypeError, OSError, struct.error)


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file: ``dtype`` by the format's name (BF16), ``begin`` and ``end`` in bytes of the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name.

    Raises:
        ValueError, KeyError, TypeError, OSError, struct.error: it is no such file (``UNREADABLE``).
    """
    with path.open("rb") as src:
        (length,) = struct.unpack("<Q", src.read(8))
        if length > path.stat().st_size:
            raise ValueError("the header is cut short")
        header = json.loads(src.read(length))
    header.pop("__metadata__", None)
    start = 8 + length
    return {
        name: Tensor(
            path,
            entry["dtype"],
            tuple(entry["shape"]),
            start + entry["data_offsets"][0],
            start + entry["data_offsets"][1],
        )
        for name, entry in header.items()
    }


def write_copies(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A file of tensors that lie in other files; their bytes are copied piece by piece, and synced."""
    header, at = {}, 0
    for name, tensor in tensors.items():
        size = tensor.end - tensor.begin
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            with tensor.file.open("rb") as src:
                src.seek(tensor.begin)
                left = tensor.end - tensor.begin
                while left:
                    piece = src.read(min(PIECE, left))
                    if not piece:
                        raise ValueError(f"{tensor.file} is cut short")
                    out.write(piece)
                    left -= len(piece)
        out.flush()
        os.fsync(out.fileno())


def equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same type, shape and bytes."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with one.file.open("rb") as a, other.file.open("rb") as b:
        a.seek(one.begin)
        b.seek(other.begin)
        left = one.end - one.begin
        while left:
            size = min(PIECE, left)
            if a.read(size) != b.read(size):
                return False
            left -= size
    return True


def equal_transposed(one: Tensor, other: Tensor) -> bool:
    """Whether a matrix is another one with rows and columns exchanged. Both are read whole."""
    size = (one.end - one.begin) // max(1, one.shape[0] * one.shape[-1])
    if len(one.shape) != 2 or one.dtype != other.dtype or one.shape != other.shape[::-1] or size not in CODES:
        return False
    a, b = (memoryview(_bytes(tensor)).cast(CODES[size]) for tensor in (one, other))
    rows, columns = one.shape
    return all(a[row * columns : (row + 1) * columns].tobytes() == b[row::rows].tobytes() for row in range(rows))


def _bytes(tensor: Tensor) -> bytes:
    with tensor.file.open("rb") as src:
        src.seek(tensor.begin)
        return src.read(tensor.end - tensor.begin)
