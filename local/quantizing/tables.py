"""Are input embeddings and output layer those that peft makes of base and adapter?

The predictions that a file is compared with are read from the folder that the file is made of, so a mistake in what an
adapter does to these two (untied, resized, whole, single tokens) would be on both sides. Each of their rows is computed
by itself, so here peft computes some of them in a model that has only those, and hardly a layer.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from cloudft.errors import VerifyError
from local.base import read_json
from local.files import write_json
from local.quantizing.adapter import base_tensors
from local.quantizing.lora import Lora
from local.quantizing.names import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    EMBEDDING,
    FACTOR,
    HEAD,
    OUTPUT,
    PREFIX,
    TOKENS,
    WRAPPED,
)
from local.quantizing.reference import Weights, skeleton, tables_of

SOME = 32  # rows looked at from the beginning, the middle and the end of a table, beside all that were trained
PROBES = 16  # inputs of the output layer


def compare(base: Path, adapter: Path, model: Path, lora: Lora, scratch: Path) -> int:
    """Compare rows of the input embeddings and the output layer in ``model`` with peft's.

    Args:
        base, adapter: as they came; ``model``: the folder that files are made of, with what ``lora`` adds on the way.
        scratch: a folder for an adapter of few rows.

    Returns:
        The rows that were compared; 0 where the adapter leaves both tables alone.

    Raises:
        VerifyError: they differ.
    """
    import torch

    embedding = next((name.removesuffix(".weight") for name in base_tensors(base) if EMBEDDING.search(name)), "")
    changed = {name.rpartition(".")[0] for name in lora.changed()} & {embedding, HEAD}
    if not embedding or not changed:
        return 0
    rows = _rows(lora, lora.vocabulary or base_tensors(base)[f"{embedding}.weight"].shape[0])
    with torch.inference_mode():
        small = _small_model(base, embedding, rows)
        columns = small.get_output_embeddings().weight.shape[1]
        inputs = torch.randn(PROBES, columns, generator=torch.Generator().manual_seed(0))
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            tuned = _tuned(small, adapter, {embedding, HEAD}, rows, Path(folder))
        wanted = tuned.get_input_embeddings()(torch.arange(len(rows))), tuned.get_output_embeddings()(inputs)
        found = tables_of(model, lora, rows, inputs)
    for what, ours, theirs in zip(("input embedding", "output layer"), found, wanted, strict=True):
        if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.std())):
            raise VerifyError(
                f"the merge is not what peft makes of base and adapter: the {what} differs",
                hint="no type would help; report this with the adapter's adapter_config.json",
            )
    return len(rows)


def _rows(lora: Lora, size: int) -> list[int]:
    trained = {index for rows in lora.rows.values() for index in rows.indices}
    parts = [range(begin, begin + SOME) for begin in (0, size // 2, max(0, size - SOME))]
    return sorted(trained.union(*parts) & set(range(size)))


def _small_model(base: Path, embedding: str, rows: list[int]) -> Any:
    """The base with one layer, which is empty, and only some rows of its tables; new ones are zeros."""
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(base, local_files_only=True)
    text = config.get_text_config()
    text.vocab_size, text.num_hidden_layers, text.pad_token_id = len(rows), 1, None
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:1]
    model = skeleton(config)
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    with Weights(base) as weights:
        first.weight = torch.nn.Parameter(_some(weights, f"{embedding}.weight", rows))
        tied = OUTPUT not in weights.where or text.tie_word_embeddings
        last.weight = first.weight if tied else torch.nn.Parameter(_some(weights, OUTPUT, rows))
        if last.bias is not None:
            last.bias = torch.nn.Parameter(_some(weights, f"{HEAD}.bias", rows))
    return model


def _some(weights: Weights, name: str, rows: list[int]) -> Any:
    """Rows of a table in float32; zeros for those that it does not have."""
    import torch

    table = weights.where[name].get_slice(name)
    shape = table.get_shape()
    return torch.stack([table[i].float() if i < shape[0] else torch.zeros(shape[1:]) for i in rows])


def _tuned(small: Any, adapter: Path, modules: set[str], rows: list[int], folder: Path) -> Any:
    """The small model with what the adapter has for these modules, by peft."""
    import torch
    from peft import PeftModel
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as file:
        names = {name: name.removeprefix(PREFIX) for name in file.keys()}  # noqa: SIM118
        kept = {
            name: _of_rows(plain, file.get_tensor(name), rows).float()  # a table may be a gigabyte: its rows first
            for name, plain in names.items()
            if _module(plain) in modules
        }
    targets = {_module(names[name]) for name in kept if FACTOR.search(name)}
    if not targets:  # peft insists on one; it is not computed
        unused, linear = next((n, m) for n, m in small.named_modules() if isinstance(m, torch.nn.Linear) and n != HEAD)
        linear.weight = torch.nn.Parameter(torch.zeros(linear.weight.shape))
        targets = {unused}
    write_json(folder / ADAPTER_CONFIG, _config(read_json(adapter / ADAPTER_CONFIG), targets, modules, rows))
    save_file(kept, folder / ADAPTER_WEIGHTS)
    return PeftModel.from_pretrained(small, folder, autocast_adapter_dtype=False).eval().base_model.model


def _config(config: dict[str, Any], targets: set[str], modules: set[str], rows: list[int]) -> dict[str, Any]:
    """The adapter's configuration for these modules alone, and for tokens by their place in ``rows``."""
    place = {index: at for at, index in enumerate(rows)}
    tokens = config.get("trainable_token_indices")
    if isinstance(tokens, dict):
        tokens = {
            key: [place[index] for index in indices]
            for key, indices in tokens.items()
            if any(module.endswith(key) for module in modules)
        }
    elif tokens:
        tokens = [place[index] for index in tokens]
    whole = [name for name in config.get("modules_to_save") or () if any(module.endswith(name) for module in modules)]
    everywhere = dict.fromkeys(("layers_to_transform", "layers_pattern", "exclude_modules"))
    tables = {
        "target_modules": sorted(targets),
        "modules_to_save": whole or None,
        "trainable_token_indices": tokens or None,
    }
    return config | everywhere | tables


def _module(name: str) -> str:
    """The module that a tensor of the adapter belongs to."""
    if name.endswith(TOKENS):
        return name.removesuffix(TOKENS)
    return FACTOR.sub("", name) if FACTOR.search(name) else WRAPPED.sub(".", name).rpartition(".")[0]


def _of_rows(name: str, tensor: Any, rows: list[int]) -> Any:
    """What of an adapter's tensor belongs to rows of a table."""
    if name.endswith((TOKENS, ".lora_A.weight", ".lora_embedding_B")):
        return tensor
    return tensor[:, rows].contiguous() if name.endswith(".lora_embedding_A") else tensor[rows]
