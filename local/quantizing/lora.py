"""A LoRA adapter that is added to the weights one tensor at a time, as peft adds it to a whole model.

``local.quantizing.adapter`` reads one from disk and says what can be merged so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloudft.errors import IntegrityError
from local.safetensors_file import Tensor

COMPARE = "was the run trained on this base? compare its spec.json with cloudft.yaml"


@dataclass(frozen=True)
class Pair:
    """What changes one weight: ``W + scale · B @ A``, by the names of the factors in the adapter's file.

    ``shape`` is the weight's. With ``magnitude`` (a DoRA) every row is then given that length. ``embedding``: the
    product is added transposed, since an embedding is stored that way.
    """

    a: str
    b: str
    rank: int
    scale: float
    shape: tuple[int, int]
    magnitude: str = ""
    embedding: bool = False


@dataclass(frozen=True)
class Rows:
    """Rows of an embedding that were trained themselves: they take the place of the base's. ``values`` by name."""

    values: str
    indices: tuple[int, ...]


@dataclass
class Lora:
    """An adapter that can be merged tensor by tensor.

    ``pairs`` and ``rows`` by the name of the module in the base. ``whole``: tensors that take the place of the base's
    (or join them) as they are, by their name in the base. ``vocabulary``: rows of the embeddings, where that differs
    from the base's configuration. ``untied``: input and output layer are two from now on.
    """

    path: Path
    pairs: dict[str, Pair]
    rows: dict[str, Rows] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)
    vocabulary: int | None = None
    untied: bool = False
    consumed: set[str] = field(default_factory=set)
    _file: Any = None

    def said(self) -> str:
        """What it is, in a few words, beyond plain factors."""
        tokens = {index for rows in self.rows.values() for index in rows.indices}
        parts = [
            "DoRA" if any(pair.magnitude for pair in self.pairs.values()) else "",
            _count(len(self.whole), "whole tensor"),
            _count(len(tokens), "trained token"),
            "a tuned embedding" if any(pair.embedding for pair in self.pairs.values()) else "",
        ]
        return ", ".join(part for part in parts if part)

    def changed(self) -> set[str]:
        """Names of the base's tensors that are not as the base has them."""
        return {f"{module}.weight" for module in (*self.pairs, *self.rows)} | set(self.whole)

    def adds_to(self, name: str) -> bool:
        """Whether something must be computed for a tensor, beyond taking it from where it is."""
        module = name.removesuffix(".weight")
        return module in self.pairs or module in self.rows

    def tensor(self, name: str) -> Any:
        """A tensor of the adapter's file in float32."""
        from safetensors import safe_open

        if self._file is None:
            self._file = safe_open(self.path, framework="pt")
        return self._file.get_tensor(name).float()

    def factors(self, module: str) -> tuple[Any, Any, float]:
        """A (rank, in) and B (out, rank) in float32, and the scale."""
        pair = self.pairs[module]
        return self.tensor(pair.a), self.tensor(pair.b), pair.scale

    def merged(self, name: str, weight: Any) -> Any:
        """The base's tensor ``name`` as it is with the adapter in it, in float32.

        Whole: in blocks of rows, the last bits of a product would differ.
        """
        import torch

        self.consumed.add(name)
        module = name.removesuffix(".weight")
        if module in self.rows:  # what factors are there are added to the trained rows, too
            weight = weight.to(torch.float32, copy=True)
            weight[list(self.rows[module].indices)] = self.tensor(self.rows[module].values)
        if module not in self.pairs:
            return weight.float()
        pair = self.pairs[module]
        a, b, scale = self.factors(module)
        if pair.embedding:
            delta = (b @ a).T * scale
        elif math.frexp(scale)[0] == 0.5:  # a power of two: exact wherever it is multiplied, so where it is cheap
            delta = (b * scale) @ a
        else:
            delta = b @ a
            delta *= scale
        delta += weight  # in float32: torch widens 16-bit numbers exactly
        return self.scaled(module, delta) if pair.magnitude else delta

    def scaled(self, module: str, weight: Any) -> Any:
        """The rows of a DoRA's summed weight, given the lengths that were trained."""
        import torch

        factor = self.tensor(self.pairs[module].magnitude) / torch.linalg.norm(weight, dim=1)
        weight *= factor.view(-1, 1)
        return weight

    def refuse_unconsumed(self) -> None:
        """Raise ``IntegrityError`` for a tensor that no tensor of the file took up: the loss would be silent."""
        if left := [self._brings(name) for name in sorted(self.changed() - self.consumed)]:
            raise IntegrityError(
                f"the adapter does not fit the base: {left[0]}{and_more(left)} was not taken up by the conversion",
                hint=COMPARE,
            )

    def _brings(self, name: str) -> str:
        """What the adapter's file calls the change to a tensor of the base."""
        module = name.removesuffix(".weight")
        if module in self.pairs:
            return self.pairs[module].a
        return self.rows[module].values if module in self.rows else name


def and_more(names: list[str]) -> str:
    """ "(and 3 more)" for a list of which the first is named."""
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _count(number: int, what: str) -> str:
    """ "2 things"; empty for none."""
    return f"{number} {what}{'s' * (number > 1)}" if number else ""
