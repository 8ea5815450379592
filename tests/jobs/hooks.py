"""What is done to a trainer before it begins, in its own process: memory that runs out, or a kill, for real."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

# No machine has so many bytes: the allocator is the real one, and so is its refusal.
TOO_MUCH = 1 << 60


def short_of_memory_forward() -> None:
    """Three rows at once are too many."""
    _limit(rows=2)


def short_of_memory_backward() -> None:
    """So are the gradients of 250 tokens, which the micro-batches of four rows have, and only they."""
    _limit(tokens=250)


def short_of_memory_later() -> None:
    """Three rows at once are too many, but for the first twelve layers that are trained through."""
    _limit(rows=2, spared=12)


def no_memory() -> None:
    """One row is too much."""
    _limit(rows=0)


def killed_between_two_bests() -> None:
    """At the worst moment: the first best weights have lost their name, and the second have none yet."""
    named = [0]

    def look(event: str, args: tuple[Any, ...]) -> None:
        if event == "os.rename" and str(args[1]).endswith("/best"):
            named[0] += 1
            if named[0] == 2:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


def killed_as_a_stage_begins() -> None:
    """While the checkpoint before its first step is made, ten steps into the run."""

    def look(event: str, args: tuple[Any, ...]) -> None:
        if event == "os.mkdir" and str(args[0]).endswith("/checkpoint-10"):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)


def _limit(rows: int = TOO_MUCH, tokens: int = TOO_MUCH, spared: int = 0) -> None:
    """Forward passes over more than so many rows run out of memory; backward ones, over more than so many tokens.

    ``spared``: of the layers that are trained through, so many are let be.
    """
    import torch
    from torch.nn.modules.module import register_module_forward_hook

    trained = [0]

    def refuse(*_: Any) -> None:
        torch.empty(TOO_MUCH, dtype=torch.uint8)

    def forward(module: Any, args: Any, output: Any) -> None:
        if type(module).__name__ != "Qwen2MLP":
            return
        (hidden,) = args
        trained[0] += output.requires_grad
        if hidden.shape[0] > rows and trained[0] > spared:
            refuse()
        if output.requires_grad and hidden.shape[0] * hidden.shape[1] > tokens:
            output.register_hook(refuse)

    register_module_forward_hook(forward)
