"""What an adapter's tensors are called, by peft and in the base that they belong to."""

from __future__ import annotations

import re
from typing import Any

from cloudft.errors import IntegrityError
from local.quantizing.lora import COMPARE, and_more

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
FACTOR = re.compile(r"\.lora_([AB])\.weight$|\.lora_embedding_([AB])$|\.lora_magnitude_vector$")
TOKENS = ".token_adapter.trainable_tokens_delta"
WRAPPED = re.compile(r"(\.token_adapter)?\.base_layer\.")  # what peft puts into the name of a layer that it wrapped
AGAIN = re.compile(r"\.(modules_to_save|original_module)\.(?=bias$)")  # in the name of a bias that stands there plainly
OUTPUT = "lm_head.weight"
HEAD = OUTPUT.removesuffix(".weight")
# What architectures call their input layer, and the output layer of one that is renamed while it is loaded.
EMBEDDING = re.compile(r"(^|\.)(embed_tokens|word_embeddings|wte|embed_in|embeddings?)\.weight$")
OTHER_OUTPUT = "embed_out.weight"
# Stored, and never a layer of the model in memory, so no adapter can have a part for it: the layers that predict
# several tokens at once, and the experts of a mixture one by one, which transformers joins while loading.
STORED_ONLY = re.compile(r"(^|\.)mtp\.")
EXPERT = re.compile(r"\.experts\.\d+\.")


def is_table(name: str) -> bool:
    """Whether a tensor has a row for each token."""
    return name == OUTPUT or EMBEDDING.search(name) is not None


def matches(targets: str | list[str], module: str) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(module == target or module.endswith(f".{target}") for target in targets)


def unfit(names: list[str], what: str) -> IntegrityError:
    return IntegrityError(f"the adapter does not fit the base: {names[0]}{and_more(names)} {what}", hint=COMPARE)


def pattern_value(pattern: dict[str, Any] | None, module: str, default: Any) -> Any:
    """peft's rule for ``rank_pattern`` and ``alpha_pattern``: the first key that matches the end of the name."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default
