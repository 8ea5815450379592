"""Whole tensors that an adapter brings, laid over a model folder: one more weight file, and an index that names it.

So the base's own files stay links, nothing is loaded, and whoever reads the folder finds the model as it was trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from local.base import read_json
from local.files import write_json
from local.quantizing.adapter import base_tensors
from local.quantizing.lora import Lora
from local.safetensors_file import write_copies

# It comes after every other name that weights have: where files hold a tensor of one name, the last one is read.
FILE = "model.whole.safetensors"
INDEX = "model.safetensors.index.json"


def lay_over(model: Path, lora: Lora) -> None:
    """Complete a folder that ``merge.lay_out`` made from the base. An adapter of factors alone changes nothing."""
    if lora.whole:
        where = {name: tensor.file.name for name, tensor in base_tensors(model).items()}
        assert all(name < FILE for name in where.values())
        write_copies(model / FILE, lora.whole)
        write_json(model / INDEX, {"metadata": {}, "weight_map": where | dict.fromkeys(lora.whole, FILE)})
    changes: dict[str, Any] = {}
    if lora.vocabulary is not None:
        changes["vocab_size"] = lora.vocabulary
    if lora.untied:
        changes["tie_word_embeddings"] = False
    if changes:
        config = read_json(model / "config.json")
        inner = config.get("text_config")  # of a model that can see as well
        if inner is None:
            config |= changes
        else:
            config |= {"text_config": inner | changes} | {k: v for k, v in changes.items() if k in config}
        write_json(model / "config.json", config)
