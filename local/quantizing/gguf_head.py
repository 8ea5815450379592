"""The head of a GGUF file: metadata and the list of tensors, as upstream's writer packs them; where contents belong.

Uses the converter's own ``gguf``: only for the child process of ``local.quantizing.worker``.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Head:
    """All of a file but the tensors' contents."""

    metadata: dict[str, Any]
    architecture: str
    shapes: dict[str, Any]
    types: dict[str, Any]

    def write(self, path: Path) -> int:
        """Write it to a file of its own; returns where the contents begin, or would."""
        import gguf

        own = gguf.GGUFWriter(path=None, arch=self.architecture)
        own.kv_data = [self.metadata]
        for name, shape in self.shapes.items():
            type_ = self.types[name]
            own.add_tensor_info(name, shape, _any_dtype(), size(shape, type_), raw_dtype=type_)
        own.write_header_to_file(path=path)
        own.write_kv_data_to_file()
        own.write_ti_data_to_file()
        (out,) = own.fout
        own.write_padding(out, out.tell())
        begin: int = out.tell()
        own.close()
        return begin

    def layout(self) -> tuple[dict[str, int], int]:
        """Where each tensor belongs, and the file's size; so that quantising need not wait for the head."""
        import gguf

        at = 24  # magic, version, two counts
        for key, value in self.metadata.items():
            at += 12 + len(key.encode()) + _value_bytes(value.value, value.type, value.sub_type)
        at += sum(24 + len(name.encode()) + 8 * len(shape) for name, shape in self.shapes.items())
        offsets = {}
        at = gguf.GGUFWriter.ggml_pad(at, gguf.GGUF_DEFAULT_ALIGNMENT)
        for name, shape in self.shapes.items():
            offsets[name] = at
            at += gguf.GGUFWriter.ggml_pad(size(shape, self.types[name]), gguf.GGUF_DEFAULT_ALIGNMENT)
        return offsets, at


def _value_bytes(value: Any, type_: Any, inner: Any = None) -> int:
    """How long a value of the metadata is in a file."""
    import gguf

    types = gguf.GGUFValueType
    if type_ == types.STRING:
        return 8 + len(value.encode() if isinstance(value, str) else value)
    if type_ != types.ARRAY:
        return struct.calcsize(gguf.GGUFWriter._simple_value_packing[type_])
    if isinstance(value, bytes):
        return 12 + len(value)
    first = inner if inner is not None else types.get_type(value[0])
    if first in (types.STRING, types.ARRAY):
        return 12 + sum(_value_bytes(item, first) for item in value)
    return 12 + len(value) * struct.calcsize(gguf.GGUFWriter._simple_value_packing[first])


def _any_dtype() -> Any:
    """gguf asks for numpy's type and then takes ours."""
    import numpy as np

    return np.dtype(np.float32)


def size(shape: tuple[int, ...], type_: Any) -> int:
    """Bytes of a tensor of a type."""
    import gguf

    block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(type_)]
    return math.prod(int(n) for n in shape) // int(block) * int(block_bytes)
