"""An adapter as it lies on disk: whether it can be merged tensor by tensor, and whether it fits the base.

Most can: factors on linear layers and embeddings, with or without a DoRA's lengths, whole layers, biases, trained
tokens, embeddings of another size. The rest goes through peft (``local.quantizing.merge``), with the whole model in
memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container
from pathlib import Path
from typing import Any

from cloudft.errors import IntegrityError
from local.base import GET_AGAIN, read_json, weight_files
from local.quantizing.lora import COMPARE, Lora, Pair, and_more
from local.quantizing.names import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    AGAIN,
    EXPERT,
    FACTOR,
    OTHER_OUTPUT,
    OUTPUT,
    PREFIX,
    STORED_ONLY,
    TOKENS,
    WRAPPED,
    is_table,
    matches,
    pattern_value,
    unfit,
)
from local.quantizing.tied import refuse_undefined, take_tokens, untie
from local.safetensors_file import Tensor, read_header

# Whatever their value, these change nothing about how the tensors of the file are added to the base.
HARMLESS = (
    *("auto_mapping", "base_model_name_or_path", "revision", "peft_type", "peft_version", "task_type"),
    *("inference_mode", "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core"),
    *("qalora_group_size", "init_lora_weights", "bias", "use_dora", "modules_to_save", "trainable_token_indices"),
    "ensure_weight_tying",
)
# peft's own names, as a person would say them.
SAID = {
    "fan_in_fan_out": "its layers are stored transposed",
    "target_parameters": "it tunes parameters of experts",
    "lora_bias": "its factors have biases",
}


def read_lora(base: Path, adapter: Path) -> Lora | str:
    """The adapter, if it can be merged tensor by tensor; else the reason why peft must do it.

    Reads headers only, but for the embeddings of a tied base of which both sides came along.

    Raises:
        IntegrityError: a tensor has no place in the base, is missing, or is of another shape.
        ConfigError: it does what peft gives no result for.
    """
    config = read_json(adapter / ADAPTER_CONFIG)
    if reason := _not_plain(config):
        return reason
    brought = _brought(adapter / ADAPTER_WEIGHTS)
    stored = base_tensors(base)
    names = {name for name in brought if FACTOR.search(name)}
    modules = {FACTOR.sub("", name) for name in names}
    if reason := _not_layers(brought, names, config) or _stored_otherwise(modules, set(brought) - names, stored):
        return reason
    found = Lora(adapter / ADAPTER_WEIGHTS, {})
    text = text_config(base)
    tied = not {OUTPUT, OTHER_OUTPUT} & stored.keys() or bool(text.get("tie_word_embeddings"))
    _take_whole(found, {name: tensor for name, tensor in brought.items() if name not in names}, stored)
    take_tokens(found, brought, stored, config, tied)
    refuse_undefined(found, modules, brought, tied)
    tuned = set(modules)
    if tied and not untie(found, tuned, brought, stored, config):
        return "it changes one side of tied embeddings in a way that is left to peft"
    shapes = {name: tensor.shape for name, tensor in stored.items()} | {n: t.shape for n, t in found.whole.items()}
    _take_pairs(found, tuned, brought, shapes, config)
    in_memory = {name: shape for name, shape in shapes.items() if _is_in_memory(name, modules, text)}
    if tied and OUTPUT not in brought:  # no file has it, and yet it may be missing
        in_memory.setdefault(OUTPUT, (0, 0))
    _refuse_missing(config, modules, found, in_memory)
    return found


def _brought(path: Path) -> dict[str, Tensor]:
    """The adapter's tensors by what they are called in the base."""
    tensors = read_header(path)
    if strange := sorted(name for name in tensors if not name.startswith(PREFIX)):
        raise IntegrityError(
            f"{path} was not saved by peft: {strange[0]}{and_more(strange)} does not begin with {PREFIX}",
            hint=GET_AGAIN,
        )
    named = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in named.items() if not _is_again(name, named)}


def _is_again(name: str, names: Container[str]) -> bool:
    """Whether peft saved a bias of a whole layer by its own names as well, which it does where it saves all biases."""
    plain = AGAIN.sub(".", name)
    return plain != name and plain in names


def _not_plain(config: dict[str, Any]) -> str:
    if "peft_type" not in config:
        raise IntegrityError(f"{ADAPTER_CONFIG} of the adapter names no peft_type", hint=GET_AGAIN)
    if config["peft_type"] != "LORA":
        return f"it is no LoRA but {config['peft_type']}"
    if config.get("init_lora_weights") not in (None, True, False, "gaussian", "orthogonal"):
        return f"its base was changed when it was set up ({config['init_lora_weights']})"
    for key, value in sorted(config.items()):
        if key not in HARMLESS and value not in (None, False, {}, [], ""):
            return SAID.get(key, f"it uses {key}")
    return ""


def _not_layers(brought: dict[str, Tensor], factors: set[str], config: dict[str, Any]) -> str:
    """Why factors can't be added as a product of two matrices; empty if they can."""
    if config.get("use_dora") and any(".lora_embedding_" in name for name in factors):
        return "it is a DoRA on an embedding"
    if any(len(brought[name].shape) > 2 for name in factors):
        return "it tunes convolutions"
    return ""


def _stored_otherwise(modules: set[str], others: set[str], stored: dict[str, Tensor]) -> str:
    """Why the base's files can't say where a part of the adapter belongs; empty if they can.

    A single name that is not there is an adapter that does not fit, but for a mixture of experts: of those transformers
    joins and renames layers while loading, and peft alone can tell.
    """
    named = {*stored, OUTPUT}
    places = {f"{module}.weight" for module in modules} | {
        f"{name.removesuffix(TOKENS)}.weight" if name.endswith(TOKENS) else WRAPPED.sub(".", name) for name in others
    }
    if not any(f"{module}.weight" in named for module in modules):
        return "the base stores its tensors under other names than it has in memory"
    if OUTPUT in places and OTHER_OUTPUT in stored:
        return "the base stores its output layer under another name than it has in memory"
    if places - named and any(EXPERT.search(name) for name in stored):
        return "the base stores its experts under other names than it has in memory"
    return ""


def _take_whole(found: Lora, brought: dict[str, Tensor], stored: dict[str, Tensor]) -> None:
    """Tensors that take the place of the base's. A table (of embeddings, or the output layer) may have another size."""
    for name, tensor in brought.items():
        if name.endswith(TOKENS):
            continue
        plain = WRAPPED.sub(".", name)
        place = stored.get(plain)
        if place is None and plain != OUTPUT:
            raise unfit([f"{PREFIX}{name}"], "has no place in the base")
        if place is not None and place.shape != tensor.shape:
            if not is_table(plain) or place.shape[1:] != tensor.shape[1:]:
                raise unfit([f"{PREFIX}{name}"], f"is {tensor.shape}, and {place.shape} in the base")
            found.vocabulary = tensor.shape[0]
        found.whole[plain] = tensor
    sizes = {tensor.shape[0] for name, tensor in found.whole.items() if is_table(name)}
    lacking = [name for name in stored if is_table(name) and name not in found.whole]
    if found.vocabulary is not None and (len(sizes) > 1 or lacking):
        raise unfit([*lacking, OUTPUT], f"did not come along with the size of the others ({sorted(sizes)})")


def _take_pairs(
    found: Lora,
    modules: set[str],
    brought: dict[str, Tensor],
    shapes: dict[str, tuple[int, ...]],
    config: dict[str, Any],
) -> None:
    for module in sorted(modules):
        if f"{module}.weight" not in shapes:
            first = min(name for name in brought if name.startswith(f"{module}.lora_"))
            raise unfit([f"{PREFIX}{first}"], "has no place in the base")
        found.pairs[module] = _pair(module, brought, shapes[f"{module}.weight"], config)


def _pair(module: str, brought: dict[str, Tensor], shape: tuple[int, ...], config: dict[str, Any]) -> Pair:
    embedding = f"{module}.lora_embedding_A" in brought
    names = [f"{module}.lora_embedding_{s}" if embedding else f"{module}.lora_{s}.weight" for s in "AB"]
    length = f"{module}.lora_magnitude_vector"
    if missing := [name for name in [*names, *([length] if config.get("use_dora") else [])] if name not in brought]:
        raise unfit([PREFIX + name for name in missing], "is not in the adapter")
    a, b = (brought[name].shape for name in names)
    fits = len(a) == len(b) == 2 and a[0] == b[1] and ((a[1], b[0]) if embedding else (b[0], a[1])) == shape
    if not fits or (length in brought and (embedding or brought[length].shape != shape[:1])):
        raise IntegrityError(
            f"the adapter does not fit the base: {module} is {shape} in the base, and {names[0]} is {a} and lora_B {b}",
            hint=COMPARE,
        )
    if length in brought and not config.get("use_dora"):
        raise unfit([PREFIX + length], "is no part of an adapter that says that it is no DoRA")
    rank = a[0]
    alpha = pattern_value(config.get("alpha_pattern"), module, config["lora_alpha"])
    if (wanted := pattern_value(config.get("rank_pattern"), module, config["r"])) != rank:
        raise IntegrityError(
            f"the adapter contradicts itself: {names[0]} has rank {rank}, {ADAPTER_CONFIG} says {wanted}",
            hint=GET_AGAIN,
        )
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    magnitude = PREFIX + length if length in brought else ""
    return Pair(PREFIX + names[0], PREFIX + names[1], rank, scale, (shape[0], shape[1]), magnitude, embedding)


def _refuse_missing(config: dict[str, Any], modules: set[str], found: Lora, shapes: dict[str, tuple[int, ...]]) -> None:
    """All of a module's tensors may be gone: the configuration says what was trained."""
    saved = tuple(config.get("modules_to_save") or ())
    if missing := sorted(name for name in shapes if name not in found.whole and _is_inside(name, saved)):
        raise unfit([f"{PREFIX}{name}" for name in missing], "is not in the adapter")
    biases = {name for name in shapes if name.endswith(".bias")}
    if config.get("bias") == "lora_only":
        biases = {name for name in biases if name.removesuffix(".bias") in modules}
    if config.get("bias", "none") != "none" and (missing := sorted(biases - set(found.whole))):
        raise unfit([f"{PREFIX}{name}" for name in missing], "is not in the adapter")
    if config.get("layers_pattern") or not config.get("target_modules"):
        return  # a rule of peft's that is better not restated: a wrong restatement would refuse good adapters
    matrices = {name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) == 2}
    wanted = {m for m in matrices if matches(config["target_modules"], m)}
    wanted -= {m for m in wanted if matches(config.get("exclude_modules") or [], m)}
    wanted -= {m for m in wanted if any(re.match(rf"(^|.*\.){entry}($|\..*)", m) for entry in saved)}
    layers = config.get("layers_to_transform")
    if layers is not None and layers != []:
        layers = [layers] if isinstance(layers, int) else layers
        wanted = {m for m in wanted if (at := re.match(r".*?\.[^.]*\.(\d+)\.", m)) and int(at[1]) in layers}
    if missing := sorted(wanted - modules):
        raise unfit([f"{PREFIX}{module}.lora_A.weight" for module in missing], "is not in the adapter")


def _is_in_memory(name: str, modules: set[str], config: dict[str, Any]) -> bool:
    """Whether a tensor of the files is one of a layer that the model has in memory too, by that name."""
    if EXPERT.search(name):
        return any(EXPERT.search(f"{module}.") for module in modules)
    if STORED_ONLY.search(name) or name == OTHER_OUTPUT:
        return False
    layer, depth = re.search(r"(?:^|\.)layers\.(\d+)\.", name), config.get("num_hidden_layers")
    return layer is None or depth is None or int(layer[1]) < depth


def _is_inside(name: str, saved: tuple[str, ...]) -> bool:
    """peft's rule for ``modules_to_save``: every module whose name ends so, with all that is in it."""
    parts = name.split(".")[:-1]
    return bool(saved) and any(".".join(parts[:end]).endswith(saved) for end in range(1, len(parts) + 1))


def base_tensors(base: Path) -> dict[str, Tensor]:
    """The tensors of a model folder by name, from the headers of its files."""
    found: dict[str, Tensor] = {}
    for path in weight_files(base):
        found |= read_header(path)
    return found


def sixteen_bits(model: Path) -> int:
    """Bytes of a model folder's weights in 16 bits, also where they lie in 32."""
    wide = {"F32": 2, "F64": 4}
    return sum((t.end - t.begin) // wide.get(t.dtype, 1) for t in base_tensors(model).values())


def text_config(base: Path) -> dict[str, Any]:
    """The configuration of what reads and writes text, also of a model that can see as well."""
    config = read_json(base / "config.json")
    return config | (config.get("text_config") or {})
