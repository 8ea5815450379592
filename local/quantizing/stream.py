"""The work of the one pass: materialise a tensor, quantise it on all cores, write it to its place, forget it."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local.progress import Progress
from local.quantizing import ggml
from local.quantizing.ggml import Imatrix
from local.quantizing.gguf_head import Head, size
from local.quantizing.headstart import CHUNK, HeadStart

IN_FLIGHT = 128 * 2**20  # bytes of merged tensors that wait for a core, beside the one that is being merged


@dataclass
class Target:
    """A file that is being written, and what goes where. ``types`` by tensor, as ggml numbers."""

    path: Path
    kind: str
    types: dict[str, int]
    offsets: dict[str, int]
    imatrix: Imatrix
    head: Head
    fd: int = -1

    @property
    def part(self) -> Path:
        """What the file is called until it is whole."""
        return self.path.with_name(self.path.name + ".part")


def stream(tensors: dict[str, Any], targets: list[Target], early: HeadStart | None, progress: Progress) -> None:
    """Fill the ``.part`` files of the targets, and sync them. ``tensors`` is emptied on the way: nothing else may
    keep a lazy tensor alive.

    Raises:
        VerifyError: the merged weights are not finite.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the cores are for the pool
    if early is not None:
        early.stop()
    try:
        for target in targets:
            target.fd = os.open(target.part, os.O_WRONLY)
        meter = _Meter(progress, len(tensors), sum(size(info.shape, info.dtype) for info in tensors.values()))
        _work_through(tensors, targets, early, meter)
        progress("quantize", meter.bytes, meter.total, "bytes", "onto the disk")
        for target in targets:
            os.fsync(target.fd)
    finally:
        torch.set_num_threads(threads)
        for target in targets:
            if target.fd >= 0:
                os.close(target.fd)


def _work_through(tensors: dict[str, Any], targets: list[Target], early: HeadStart | None, meter: _Meter) -> None:
    waiting: deque[tuple[int, list[Future[None]]]] = deque()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="quantise") as pool:
        try:
            waiting.append((0, [pool.submit(_write_head, target) for target in targets]))
            for name in list(tensors):
                info = tensors.pop(name)
                while sum(held for held, _ in waiting) > IN_FLIGHT:
                    _settle(waiting.popleft()[1])
                waiting.append(_submit(pool, name, info, targets, early, meter))
                del info
            while waiting:
                _settle(waiting.popleft()[1])
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _settle(futures: list[Future[None]]) -> None:
    for future in futures:
        future.result()


def _submit(
    pool: ThreadPoolExecutor, name: str, info: Any, targets: list[Target], early: HeadStart | None, meter: _Meter
) -> tuple[int, list[Future[None]]]:
    """Split a tensor into blocks of rows, each a piece of work. Returns the bytes that it holds until it is done."""
    import gguf

    nbytes = size(info.shape, info.dtype)
    if info.dtype != gguf.GGMLQuantizationType.F32:
        return nbytes, [pool.submit(_copy, name, info.tensor, targets, meter)]
    columns = int(info.shape[-1])
    rows = max(1, CHUNK // columns)
    total = nbytes // 4 // columns
    # A block of rows stays within one matrix of a stack (of experts): each has importances of its own.
    matrix = total // int(info.shape[0]) if len(info.shape) > 2 else total
    source = _Rows(info.tensor, nbytes, early)
    work = []
    for first in range(0, total, matrix):
        for start in range(first, first + matrix, rows):
            stop = min(start + rows, first + matrix)
            work.append(pool.submit(_block, name, source, start, stop, first // matrix, targets))
    work[-1].add_done_callback(lambda _: meter.tensor(nbytes))
    return source.held, work


class _Rows:
    """The rows of a tensor in float32: from the file, a block at a time, where nothing else happens to them.

    ``held`` are the bytes that it keeps in memory.
    """

    def __init__(self, tensor: Any, nbytes: int, early: HeadStart | None) -> None:
        import numpy as np
        from conversion import LazyTorchTensor
        from gguf import LazyNumpyTensor

        self.columns = int(tensor.shape[-1])
        self.early: HeadStart | None = None
        lazy = tensor
        while isinstance(lazy, LazyNumpyTensor):
            lazy = lazy._args[0]
        if isinstance(lazy, LazyTorchTensor) and "in_rows" in vars(lazy):
            source = lazy.in_rows._args[0]
            if hasattr(source, "data_range"):
                self.early, self.place = early, (str(source.data_range.filename.resolve()), source.data_range.offset)
            vars(lazy).get("taken", lambda: None)()
            mapped = LazyTorchTensor.to_eager(lazy.in_rows)
            self.mapped, self.whole, self.held = mapped.reshape(-1, self.columns), None, 0
        else:
            whole = LazyNumpyTensor.to_eager(tensor)
            self.whole, self.held = np.ascontiguousarray(whole, dtype=np.float32).reshape(-1, self.columns), nbytes

    def read(self, start: int, stop: int) -> Any:
        import torch

        if self.whole is not None:
            return self.whole[start:stop]
        with torch.inference_mode():
            return self.mapped[start:stop].to(torch.float32).contiguous().numpy()

    def quantised(self, start: int, type_: int) -> Any:
        """The block that begins at a row, if it was made in advance."""
        return self.early.take(*self.place, start, type_) if self.early is not None else None


def _block(name: str, source: _Rows, start: int, stop: int, matrix: int, targets: list[Target]) -> None:
    import numpy as np

    rows = None
    for target in targets:
        type_ = target.types[name]
        row_bytes = size((source.columns,), type_)
        importance = target.imatrix.get(name)
        if importance is not None:
            importance = importance.reshape(-1, source.columns)[matrix]
        out = source.quantised(start, type_) if importance is None else None
        if out is None:
            if rows is None:
                rows = source.read(start, stop)
                ggml.refuse_infinite(rows)
            out = np.empty((stop - start) * row_bytes, dtype=np.uint8)
            ggml.quantize_rows(type_, rows, out, importance)
        _write_at(target.fd, out, target.offsets[name] + start * row_bytes)


def _write_head(target: Target) -> None:
    """Write the head into the file that the contents are being written to."""
    path = target.path.with_name(target.path.name + ".head")
    begin = target.head.write(path)
    assert begin == min(target.offsets.values()), "the head of the file is not as long as it was computed"
    _write_at(target.fd, path.read_bytes(), 0)
    path.unlink()


def _copy(name: str, tensor: Any, targets: list[Target], meter: _Meter) -> None:
    """A tensor that the converter has in its final type already."""
    from gguf import LazyNumpyTensor

    data = LazyNumpyTensor.to_eager(tensor)
    for target in targets:
        _write_at(target.fd, data.tobytes(), target.offsets[name])
    meter.tensor(data.nbytes)


def _write_at(fd: int, data: Any, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


class _Meter:
    """Says how far it is: tensors, speed, time left."""

    def __init__(self, progress: Progress, tensors: int, total: int) -> None:
        self.progress, self.tensors, self.total = progress, tensors, total
        self.done = self.bytes = 0
        self.began = time.monotonic()
        self.lock = threading.Lock()
        progress("quantize", 0, total, "bytes", f"0/{tensors} tensors")

    def tensor(self, size_: int) -> None:
        with self.lock:
            self.done += 1
            self.bytes += size_
            spent = max(time.monotonic() - self.began, 1e-6)
            left = (self.total - self.bytes) * spent / self.bytes
            note = f"{self.done}/{self.tensors} tensors, {self.bytes / spent / 1e6:.0f} MB/s, {left:.0f} s left"
            self.progress("quantize", self.bytes, self.total, "bytes", note)
