"""llama.cpp's own quantisation: its kernels by row, and its rules for which tensor gets which type.

Everything goes through the library that ``llama_cpp`` has loaded: ``llama_cpp._ggml`` would map a second copy of it.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cloudft.errors import EnvironmentProblem, VerifyError
from local.progress import Progress

ENUM = re.compile(r"LLAMA_FTYPE_(?:ALL|MOSTLY)_(\w+)")
FLOAT32 = 0  # GGML_TYPE_F32

Imatrix = Mapping[str, Any]  # tensor name in the file → importance of each column, float32

# "[   1/  26] blk.0.attn_q.weight - [ 256, 256, 1, 1], type =    f32, size = 0.2 MiB -> 0.1 MiB (q4_K)"
PLANNED = re.compile(r"\[\s*\d+/\s*\d+\]\s+(\S+)\s+- \[[^\]]*\], type =\s*(\S+), size =[^\n(]*(?:\((\S+)\))?")
COPIED = re.compile(r"\[\s*(\d+)/\s*(\d+)\]\s+(\S+)")


@functools.cache
def file_types() -> dict[str, int]:
    """Name → number of every type of file that llama.cpp's enum has, also of those that it can't make.

    A name is the constant's, without its beginning: ``LLAMA_FTYPE_MOSTLY_Q4_K_M`` is Q4_K_M.
    """
    from llama_cpp import llama_cpp

    constants = ((ENUM.fullmatch(name), value) for name, value in vars(llama_cpp).items())
    return {match[1]: int(value) for match, value in constants if match}


def ftype(kind: str) -> int:
    """llama.cpp's number for a type of file."""
    return file_types()[kind]


def plan_types(header: Path, kind: str, imatrix: Imatrix | None = None) -> dict[str, str]:
    """The type of every tensor that llama.cpp's own rules choose, read from a dry run.

    Args:
        header: a GGUF file with the model's metadata and tensor list; its tensors may be a hole.

    Returns:
        Tensor name → type in capitals, as ``GGMLQuantizationType`` names it.

    Raises:
        VerifyError: llama.cpp refuses the model; says what it said.
    """
    return types_in(dry_run(header, kind, imatrix))


def dry_run(header: Path, kind: str, imatrix: Imatrix | None = None, *, pure: bool = False) -> str:
    """What ``llama_model_quantize`` says that it would do with a file, of which it reads no contents.

    Args:
        pure: every tensor in the type's own block format, without the mixture that makes up a type of file.

    Raises:
        VerifyError: as ``plan_types``.
    """
    out = header.with_suffix(".none")
    return _quantize(header, out, kind, imatrix, dry_run=True, pure=pure, hear=lambda _: None)


def types_in(said: str) -> dict[str, str]:
    """Tensor name → type in capitals, of what a dry run said."""
    return {name: (chosen or stored).upper() for name, stored, chosen in PLANNED.findall(said)}


def quantize(source: Path, out: Path, kind: str, progress: Progress, imatrix: Imatrix | None = None) -> None:
    """Quantise a whole 16- or 32-bit GGUF file the way ``llama-quantize`` does: the yardstick of the one pass.

    Raises:
        EnvironmentProblem: the disk is full.
        VerifyError: llama.cpp refuses; says what it said.
    """

    def hear(line: str) -> None:
        if match := COPIED.match(line):
            progress("quantize", int(match[1]), int(match[2]), "tensors", match[3])

    progress("quantize", 0, None, "tensors", kind)
    _quantize(source, out, kind, imatrix, dry_run=False, hear=hear)
    with out.open("rb") as written:
        os.fsync(written.fileno())


def _quantize(
    source: Path,
    out: Path,
    kind: str,
    imatrix: Imatrix | None,
    *,
    dry_run: bool,
    hear: Callable[[str], None],
    pure: bool = False,
) -> str:
    from llama_cpp import llama_cpp
    from llama_cpp._logger import llama_log_callback as default_listener

    said: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def listen(_level: int, text: bytes, _data: Any) -> None:
        line = text.decode("utf-8", "replace")
        if not dry_run:
            sys.stderr.write(line)
        said.append(line)
        hear(line)

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = ftype(kind)
    params.dry_run = dry_run
    params.pure = pure
    params.nthread = len(os.sched_getaffinity(0))
    kept = _imatrix_argument(imatrix)
    if kept is not None:
        params.imatrix = ctypes.cast(kept, type(params.imatrix))
    llama_cpp.llama_log_set(listen, ctypes.c_void_p())
    try:
        code = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params))
    finally:  # llama.cpp keeps the pointer, and `listen` does not outlive this function
        llama_cpp.llama_log_set(default_listener, ctypes.c_void_p())
    if code != 0:
        _refuse(out, "".join(said))
    return "".join(said)


def _imatrix_argument(imatrix: Imatrix | None) -> Any:
    """An array of llama.cpp's structs that ends with an empty one; None when there is nothing to say."""
    if not imatrix:
        return None
    from llama_cpp import llama_cpp

    entries = (llama_cpp.llama_model_imatrix_data * (len(imatrix) + 1))()
    for entry, (name, values) in zip(entries, imatrix.items(), strict=False):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    return entries


def _refuse(out: Path, said: str) -> None:
    stat = os.statvfs(out.parent)
    if stat.f_bavail * stat.f_frsize < 16 * 2**20:
        raise EnvironmentProblem("the disk is full", hint="free some space, then type the same command again")
    reason = [line for line in said.splitlines() if line.strip()][-1:] or ["it gave no reason"]
    raise VerifyError(f"llama.cpp could not quantise the model: {reason[0].strip()}")


@functools.cache
def _library() -> Any:
    from llama_cpp import llama_cpp

    lib = llama_cpp._lib
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    lib.ggml_validate_row_data.restype = ctypes.c_bool
    lib.ggml_validate_row_data.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    lib.gguf_init_from_file.restype = ctypes.c_void_p
    lib.gguf_init_from_file.argtypes = [ctypes.c_char_p, _InitParams]
    lib.gguf_free.argtypes = [ctypes.c_void_p]
    lib.gguf_get_n_tensors.restype = ctypes.c_int64
    lib.gguf_get_n_tensors.argtypes = [ctypes.c_void_p]
    lib.gguf_get_tensor_name.restype = ctypes.c_char_p
    lib.gguf_get_tensor_name.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    lib.gguf_get_tensor_type.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    lib.ggml_type_name.restype = ctypes.c_char_p
    lib.ggml_type_name.argtypes = [ctypes.c_int]
    lib.ggml_quantize_init.argtypes = [ctypes.c_int]
    lib.ggml_quantize_init.restype = None
    return lib


def tensor_types(path: Path) -> dict[str, str]:
    """Tensor name → type in capitals, of a GGUF file, as ggml reads its head."""
    lib = _library()
    context = lib.gguf_init_from_file(str(path).encode(), _InitParams(True, None))
    if not context:
        raise VerifyError(f"{path} is no GGUF file")
    try:
        return {
            lib.gguf_get_tensor_name(context, i).decode(): lib.ggml_type_name(lib.gguf_get_tensor_type(context, i))
            .decode()
            .upper()
            for i in range(lib.gguf_get_n_tensors(context))
        }
    finally:
        lib.gguf_free(context)


class _InitParams(ctypes.Structure):
    """``gguf_init_params``."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


def prepare(type_number: int) -> None:
    """Build a type's tables now; two threads that build them at once would wait for each other anyway."""
    _library().ggml_quantize_init(type_number)


def quantize_rows(type_number: int, rows: Any, out: Any, importance: Any = None) -> None:
    """Quantise contiguous float32 ``rows`` (rows, columns) into ``out``, uint8 of exactly the quantised size.

    The GIL is released meanwhile.

    Args:
        type_number: a ggml type.
        importance: float32 (columns), or None.

    Raises:
        VerifyError: the rows hold numbers that are not finite.
    """
    lib = _library()
    weights = importance.ctypes.data if importance is not None else None
    written = lib.ggml_quantize_chunk(
        type_number, rows.ctypes.data, out.ctypes.data, 0, rows.shape[0], rows.shape[1], weights
    )
    assert written == out.nbytes, f"{written} bytes were quantised where {out.nbytes} were planned"
    _refuse_infinite(type_number, out)


def refuse_infinite(rows: Any) -> None:
    """Raise ``VerifyError`` for float32 rows that hold NaN or infinity: a kernel may hide them in finite blocks."""
    _refuse_infinite(FLOAT32, rows)


def _refuse_infinite(type_number: int, data: Any) -> None:
    if not _library().ggml_validate_row_data(type_number, data.ctypes.data, data.nbytes):
        raise VerifyError(
            "the merged weights are not finite numbers",
            effect="no version was made",
            hint="did the training diverge? see  cloudft logs",
        )
