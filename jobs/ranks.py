"""The ranks of a training on several GPUs: who this process is among them, and what they agree on.

``torchrun`` (``jobs.launch``) says it in the environment. A process that was started alone is the first of one, and
asks nobody. This module imports torch only where there are several.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
# What collectives say when a process on the other side has ended.
LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "NCCL",
    "another process of this training",
)


def rank() -> int:
    """This process's number, from 0."""
    return int(os.environ.get("RANK", "0"))


def local() -> int:
    """The number of this process's GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def count() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first() -> bool:
    """Whether this is the one that writes, uploads and logs."""
    return rank() == 0


def agree(values: Sequence[int]) -> list[int]:
    """The greatest of each value over all ranks; every rank must call it at the same point."""
    if count() == 1:
        return list(values)
    import torch
    import torch.distributed as dist

    tensor = torch.tensor(values, dtype=torch.int64, device=_device())
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return [int(value) for value in tensor.tolist()]


def total(values: Sequence[float]) -> list[float]:
    """The sum of each value over all ranks; every rank must call it at the same point."""
    if count() == 1:
        return list(values)
    import torch
    import torch.distributed as dist

    tensor = torch.tensor(values, dtype=torch.float64, device=_device())
    dist.all_reduce(tensor)
    return [float(value) for value in tensor.tolist()]


def wait() -> None:
    """Until all ranks are here."""
    agree([0])


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What fails inside on one rank fails on all of them, so that none waits for one that has given up."""
    problem: OSError | RuntimeError | None = None
    try:
        yield
    except (OSError, RuntimeError) as exc:
        problem = exc
    failed = agree([problem is not None])[0]
    if problem is not None:
        raise problem
    if failed:
        raise OSError("it failed in another process of this training")


def from_first(call: Callable[[], T]) -> T:
    """What the first rank makes of the call, result or error, on all of them; the others wait for it."""
    if count() == 1:
        return call()
    import torch.distributed as dist

    box: list[object] = [None, None]
    if first():
        try:
            box[0] = call()
        except Exception as exc:
            box[1] = exc
    dist.broadcast_object_list(box, src=0)
    if isinstance(box[1], Exception):
        raise box[1]
    return box[0]  # type: ignore[return-value]


def join() -> None:
    """Find the others, and wait until all are here."""
    if count() == 1:
        return
    import torch
    from accelerate import PartialState

    PartialState(cpu=not torch.cuda.is_available())
    wait()


def lost(exc: BaseException) -> bool:
    """Whether the error says no more than that another rank is gone, which will know why."""
    return count() > 1 and any(words in str(exc) for words in LOST)


def leave() -> None:
    """The end: without it the library complains."""
    if count() == 1:
        return
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _device() -> str:
    """NCCL moves what lies on a GPU, gloo what lies in memory."""
    import torch
    import torch.distributed as dist

    return f"cuda:{torch.cuda.current_device()}" if dist.get_backend() == "nccl" else "cpu"
