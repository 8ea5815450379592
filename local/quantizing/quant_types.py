"""Which quantisations there are, asked of the installed llama.cpp itself so that none of its tables is restated here.

Its quantiser is given the head of a tiny model, with a hole where the weights would be, and says for each type of file
what it would do: whether it can make such a file at all, of which blocks, and whether it insists on importances.
"""

from __future__ import annotations

import functools
import re
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cloudft.errors import UsageError, VerifyError
from local.quantizing import ggml

# What people ask for first stands first.
USUAL = ("Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16")
# Short names that llama-quantize takes too. They are not in the library's enum.
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

NEEDS_IMATRIX = "will require an imatrix"  # in what a dry run says
BITS = re.compile(r"quant size .*\((\d+\.\d+) BPW\)")
# No importances are collected for these, and llama.cpp does not ask for them.
EXEMPT = ("token_embd.weight", "per_layer_token_embd.weight", "output.weight")


@dataclass(frozen=True)
class QuantType:
    """A type of file that can be made.

    ``bits`` per weight of the tiny model; ``careful`` are the types of tensor (in capitals, as ggml names them) that in
    such a file may not be made without importances.
    """

    name: str
    bits: float
    needs_imatrix: bool
    careful: frozenset[str]

    def lacking(self, planned: dict[str, str], importances: ggml.Imatrix) -> list[str]:
        """The tensors of a plan (name → type) that need importances and have none."""
        return sorted(
            name
            for name, type_ in planned.items()
            if type_ in self.careful and name not in importances and name not in EXEMPT
        )


@functools.cache
def offered() -> dict[str, QuantType]:
    """Every type of file that llama.cpp can make from 16-bit weights, by name; the usual ones first."""
    names = dict.fromkeys((*USUAL, *ggml.file_types()))
    with tempfile.TemporaryDirectory(prefix="cloudft-types-") as folder:
        header = Path(folder) / "tiny.gguf"
        write_tiny(header)
        asked = {name: _ask(header, name) for name in names}
    said = {name: answer for name, answer in asked.items() if answer is not None}
    blocks = {name: (_block(pure), NEEDS_IMATRIX in pure) for name, (_, pure) in said.items()}
    easy = {block for block, needs in blocks.values() if not needs}
    always = {block for block, needs in blocks.values() if needs} - easy
    found = {}
    for name, (mixed, _) in said.items():
        block, needs = blocks[name]
        bits = float(BITS.findall(mixed)[0])
        found[name] = QuantType(name, bits, NEEDS_IMATRIX in mixed, frozenset(always | ({block} if needs else set())))
    return found


def known_types(kinds: Sequence[str]) -> list[str]:
    """The types by llama.cpp's spelling, each once.

    Raises:
        UsageError: there is no such type.
    """
    found = []
    for kind in kinds:
        name = ALIASES.get(kind.upper(), kind.upper())
        if name not in offered():
            raise UsageError(
                f"llama.cpp makes no files of type {kind!r}",
                effect="nothing was changed",
                hint=f"choose one of {', '.join(offered())}",
            )
        found.append(name)
    return list(dict.fromkeys(found))


def _ask(header: Path, name: str) -> tuple[str, str] | None:
    """What it says of a type, mixed and pure; None when it can't make such a file."""
    try:
        return ggml.dry_run(header, name), ggml.dry_run(header, name, pure=True)
    except VerifyError:
        return None


def _block(said: str) -> str:
    """The type of the one tensor that no rule treats otherwise."""
    return ggml.types_in(said)["blk.0.ffn_gate.weight"]


def write_tiny(path: Path) -> None:
    """The smallest model that llama.cpp's rules apply to: one layer of Llama with 256 columns, all zeros."""
    wide, numbers = 256, {"block_count": 1, "context_length": 256, "feed_forward_length": 256, "vocab_size": 256}
    numbers |= {"embedding_length": wide, "attention.head_count": 4}
    keys = [_text("general.architecture") + struct.pack("<I", 8) + _text("llama")]
    keys += [_text(f"llama.{key}") + struct.pack("<II", 4, value) for key, value in numbers.items()]
    keys.append(_text("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, 1e-5))
    matrices = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes = {"token_embd": (wide, wide), "output": (wide, wide), "output_norm": (wide,)}
    shapes |= {f"blk.0.{name}": (wide, wide) for name in matrices}
    shapes |= {f"blk.0.{name}": (wide,) for name in ("attn_norm", "ffn_norm")}
    tensors, at = [], 0
    for name, shape in shapes.items():
        where = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, ggml.FLOAT32, at)
        tensors.append(_text(f"{name}.weight") + where)
        at += 4 * wide ** len(shape)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys + tensors)
    head += b"\0" * (-len(head) % 32)
    with path.open("wb") as out:
        out.write(head)
        out.truncate(len(head) + at)


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()
