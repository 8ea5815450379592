"""The shape of a model, from its ``config.json`` alone: the widths and counts that memory and time rest on.

Nothing is loaded, and neither torch nor transformers is needed. A configuration that does not name what is needed gives
no shape: an estimate of something unknown would be a guess with digits.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloudft.errors import CloudftError
from jobs.spec import Base
from local.base import base_folder, read_json

# These have two matrices in a feed-forward layer; all others gate, and have three.
UNGATED = ("bloom", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "mpt", "opt", "phi", "starcoder2")
# Where config.json is silent, these tie the output layer to the embeddings; the others do not.
TIED = ("bloom", "falcon", "gemma", "gpt2", "gpt_bigcode", "mpt", "opt", "t5gemma")


@dataclass(frozen=True)
class Shape:
    """Widths in elements, counts as they are. ``query`` and ``keys``: all heads together.

    ``experts`` feed-forward layers stand side by side in each layer, of which a token uses ``active``; 1 and 1 for a
    dense model. ``inner`` is the width of one of them, ``shared`` of the one that every token uses besides; 0 for none.
    """

    layers: int
    hidden: int
    inner: int
    query: int
    keys: int
    vocabulary: int
    tied: bool
    gated: bool = True
    experts: int = 1
    active: int = 1
    shared: int = 0

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """(in, out) of each matrix of one layer that a token goes through, one expert's where there are several."""
        attention = ((self.hidden, self.query), (self.hidden, self.keys), (self.hidden, self.keys))
        up = ((self.hidden, self.inner),) * (2 if self.gated else 1)
        return (*attention, (self.query, self.hidden), *up, (self.inner, self.hidden))

    @property
    def linear_weights(self) -> int:
        """Weights of all matrices of all layers, those of every expert included."""
        attention, inner, shared = self._one_layer()
        return self.layers * (attention + self.experts * inner + shared)

    @property
    def used_weights(self) -> int:
        """Weights that a token is multiplied with: the active experts' and the output layer's too."""
        attention, inner, shared = self._one_layer()
        return self.layers * (attention + self.active * inner + shared) + self.embedding

    @property
    def embedding(self) -> int:
        """Weights of the embeddings; the output layer, where it is not tied, has as many."""
        return self.vocabulary * self.hidden

    @property
    def other_weights(self) -> int:
        """Embeddings, output layer and norms: what is never quantised."""
        return self.embedding * (1 if self.tied else 2) + (2 * self.layers + 1) * self.hidden

    @property
    def parameters(self) -> int:
        return self.linear_weights + self.other_weights

    def _one_layer(self) -> tuple[int, int, int]:
        """Weights of attention, of one expert, and of the shared one."""
        attention = sum(a * b for a, b in self.linears[:4])
        one = sum(a * b for a, b in self.linears[4:])
        return attention, one, one * self.shared // self.inner


def shape_of(config: dict[str, Any]) -> Shape | None:
    """The shape that a ``config.json`` tells, or None where it does not tell enough."""
    text = config.get("text_config")
    plain = {**config, **text} if isinstance(text, dict) else config
    layers = _number(plain, "num_hidden_layers", "n_layer")
    hidden = _number(plain, "hidden_size", "n_embd")
    heads = _number(plain, "num_attention_heads", "n_head")
    vocabulary = _number(plain, "vocab_size")
    if not (layers and hidden and heads and vocabulary):
        return None
    head = _number(plain, "head_dim") or hidden // heads
    experts = _number(plain, "num_local_experts", "num_experts", "n_routed_experts") or 1
    inner = _number(plain, "ffn_hidden_size", "intermediate_size", "n_inner") or 4 * hidden
    kind = str(plain.get("model_type", ""))
    tied = plain.get("tie_word_embeddings")
    return Shape(
        layers=layers,
        hidden=hidden,
        inner=(_number(plain, "moe_intermediate_size") or inner) if experts > 1 else inner,
        query=heads * head,
        keys=(_number(plain, "num_key_value_heads", "num_kv_heads") or heads) * head,
        vocabulary=vocabulary,
        tied=kind.startswith(TIED) if tied is None else bool(tied),
        gated=kind not in UNGATED,
        experts=experts,
        active=min(_number(plain, "num_experts_per_tok") or 1, experts),
        shared=_number(plain, "shared_expert_intermediate_size") if experts > 1 else 0,
    )


def base_shape(base: Base, project_root: Path) -> Shape | None:
    """The shape of a locked base; None where its configuration is not to be had, or tells too little."""
    with contextlib.suppress(CloudftError):
        if base.source == "folder":
            return shape_of(read_json(base_folder(base.id, project_root) / "config.json"))
        from local.hub import small_file

        path = small_file(base, "config.json")
        return shape_of(read_json(path)) if path else None
    return None


def _number(config: dict[str, Any], *names: str) -> int:
    """The first of these that is a whole number above 0; else 0."""
    values = (config.get(name) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), 0)
