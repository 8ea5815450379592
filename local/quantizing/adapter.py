"""An adapter as it lies on disk: whether it can be merged tensor by tensor, and whether it fits the base.

Most can: factors on linear layers and embeddings, with or without a DoRA's lengths, whole layers, biases, trained
tokens, embeddings of another size. The rest goes through peft (``local.quantizing.merge``), with the whole model in
memory.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from cloudft.errors import ConfigError, IntegrityError
from local.base import GET_AGAIN, read_json, weight_files
from local.quantizing.lora import COMPARE, Lora, Pair, Rows, and_more
from local.safetensors_file import Tensor, equal, read_header

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
FACTOR = re.compile(r"\.lora_([AB])\.weight$|\.lora_embedding_([AB])$|\.lora_magnitude_vector$")
TOKENS = ".token_adapter.trainable_tokens_delta"
WRAPPED = re.compile(r"(\.token_adapter)?\.base_layer\.")  # what peft puts into the name of a layer that it wrapped
OUTPUT = "lm_head.weight"
HEAD = OUTPUT.removesuffix(".weight")
# What architectures call their input layer, and the output layer of one that is renamed while it is loaded.
EMBEDDING = re.compile(r"(^|\.)(embed_tokens|word_embeddings|wte|embed_in|embeddings?)\.weight$")
OTHER_OUTPUT = "embed_out.weight"
# Stored, and never a layer of the model in memory, so no adapter can have a part for it: the layers that predict
# several tokens at once, and the experts of a mixture one by one, which transformers joins while loading.
STORED_ONLY = re.compile(r"(^|\.)mtp\.")
EXPERT = re.compile(r"\.experts\.\d+\.")

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
    _take_tokens(found, brought, stored, config, tied)
    _refuse_undefined(found, modules, brought, tied)
    if tied and not _untie(found, modules, brought, stored):
        return "it changes one side of tied embeddings in a way that is left to peft"
    shapes = {name: tensor.shape for name, tensor in stored.items()} | {n: t.shape for n, t in found.whole.items()}
    _take_pairs(found, modules, brought, shapes, config)
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
    return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}


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
            raise _unfit([f"{PREFIX}{name}"], "has no place in the base")
        if place is not None and place.shape != tensor.shape:
            if not _is_table(plain) or place.shape[1:] != tensor.shape[1:]:
                raise _unfit([f"{PREFIX}{name}"], f"is {tensor.shape}, and {place.shape} in the base")
            found.vocabulary = tensor.shape[0]
        found.whole[plain] = tensor
    sizes = {tensor.shape[0] for name, tensor in found.whole.items() if _is_table(name)}
    lacking = [name for name in stored if _is_table(name) and name not in found.whole]
    if found.vocabulary is not None and (len(sizes) > 1 or lacking):
        raise _unfit([*lacking, OUTPUT], f"did not come along with the size of the others ({sorted(sizes)})")


def _take_tokens(
    found: Lora, brought: dict[str, Tensor], stored: dict[str, Tensor], config: dict[str, Any], tied: bool
) -> None:
    """Rows of tables that were trained themselves; none of those that the configuration names may be missing."""
    said = config.get("trainable_token_indices") or {}
    embedding = next((name.removesuffix(".weight") for name in stored if EMBEDDING.search(name)), "")
    for name in brought:
        if name.endswith(TOKENS):
            module = name.removesuffix(TOKENS)
            # A tied output layer may come along with the rows of the embedding.
            stand_ins = [module, embedding] if tied and module == HEAD else [module]
            tables = [
                table[f"{one}.weight"]
                for one in stand_ins
                for table in (found.whole, stored)
                if f"{one}.weight" in table
            ]
            indices = said if isinstance(said, list) else _first(said, stand_ins)
            found.rows[module] = _rows(name, brought[name].shape, tables[0].shape if tables else (), indices)
    lost = said and not found.rows
    for key, indices in said.items() if isinstance(said, dict) else ():
        if not any(_matches([key], module) for module in found.rows):
            # Of a tied output layer peft leaves out the rows that are the embedding's.
            lost = lost or not (
                tied and key == HEAD and tuple(indices) in {rows.indices for rows in found.rows.values()}
            )
    if lost:
        raise _unfit(["the rows of trainable_token_indices"], "are not in the adapter")


def _is_table(name: str) -> bool:
    """Whether a tensor has a row for each token."""
    return name == OUTPUT or EMBEDDING.search(name) is not None


def _first(said: dict[str, list[int]], modules: list[str]) -> list[int]:
    """What a configuration says of the first of the modules of which it says something."""
    return next((said[key] for module in modules for key in said if _matches([key], module)), [])


def _rows(name: str, shape: tuple[int, ...], table: tuple[int, ...], indices: list[int]) -> Rows:
    if shape != (len(indices), *table[1:]) or any(not 0 <= index < table[0] for index in indices):
        raise _unfit([f"{PREFIX}{name}"], f"is {shape} for {len(indices)} tokens, which has no place in the base")
    return Rows(f"{PREFIX}{name}", tuple(indices))


def _untie(found: Lora, modules: set[str], brought: dict[str, Tensor], stored: dict[str, Tensor]) -> bool:
    """Where input and output layer were one and not both of them were tuned alike, they are two from now on.

    Returns False for what is not worth the care here.
    """
    first = next((name for name in stored if EMBEDDING.search(name)), "")
    embedding = first.removesuffix(".weight")
    input_, output = found.whole.get(first), found.whole.get(OUTPUT)
    rows, own_rows = found.rows.get(embedding), found.rows.get(HEAD)
    tuned = {HEAD, embedding} & modules
    if not tuned and input_ is None and output is None and own_rows is None:
        return True
    if not first:
        return False
    # What the output layer was before anything tuned it: the shared tensor, in its new size if it was resized.
    shared = input_ if input_ is not None and found.vocabulary is not None else stored[first]
    apart = output is not None and not equal(output, input_ if input_ is not None else stored[first])
    alone = input_ is not None and output is None and found.vocabulary is None
    alike = rows == own_rows or own_rows is None or _same_rows(rows, own_rows, brought)
    found.untied = bool(tuned) or apart or alone or not alike
    if found.untied:
        found.whole[OUTPUT] = output if output is not None else shared
        if own_rows is None and rows is not None:
            found.rows[HEAD] = rows  # peft ties them
    else:
        found.whole.pop(OUTPUT, None)
        found.rows.pop(HEAD, None)
    return True


def _same_rows(one: Rows | None, other: Rows, brought: dict[str, Tensor]) -> bool:
    if one is None or one.indices != other.indices:
        return False
    return equal(*(brought[rows.values.removeprefix(PREFIX)] for rows in (one, other)))


def _refuse_undefined(found: Lora, modules: set[str], brought: dict[str, Tensor], tied: bool) -> None:
    """What peft gives no result for: it wraps layers for trained tokens, and fails where more is done to them.

    Raises:
        ConfigError: see above.
    """
    what = ""
    if set(found.rows) & modules:
        what = "factors of the same layer"
    elif tied and set(found.rows) - {HEAD} and f"{HEAD}.lora_magnitude_vector" in brought:
        what = "a DoRA on the tied output layer"
    elif tied and f"{HEAD}.token_adapter.base_layer.weight" in brought and HEAD not in found.rows:
        what = "a tied output layer that was trained whole"
    if what:
        raise ConfigError(
            f"the adapter has trained tokens beside {what}, and peft itself computes nothing with that",
            hint="train one without the tokens, or without the other",
        )


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
            raise _unfit([f"{PREFIX}{first}"], "has no place in the base")
        found.pairs[module] = _pair(module, brought, shapes[f"{module}.weight"], config)


def _pair(module: str, brought: dict[str, Tensor], shape: tuple[int, ...], config: dict[str, Any]) -> Pair:
    embedding = f"{module}.lora_embedding_A" in brought
    names = [f"{module}.lora_embedding_{s}" if embedding else f"{module}.lora_{s}.weight" for s in "AB"]
    length = f"{module}.lora_magnitude_vector"
    if missing := [name for name in [*names, *([length] if config.get("use_dora") else [])] if name not in brought]:
        raise _unfit([PREFIX + name for name in missing], "is not in the adapter")
    a, b = (brought[name].shape for name in names)
    fits = len(a) == len(b) == 2 and a[0] == b[1] and ((a[1], b[0]) if embedding else (b[0], a[1])) == shape
    if not fits or (length in brought and (embedding or brought[length].shape != shape[:1])):
        raise IntegrityError(
            f"the adapter does not fit the base: {module} is {shape} in the base, and {names[0]} is {a} and lora_B {b}",
            hint=COMPARE,
        )
    if length in brought and not config.get("use_dora"):
        raise _unfit([PREFIX + length], "is no part of an adapter that says that it is no DoRA")
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


def pattern_value(pattern: dict[str, Any] | None, module: str, default: Any) -> Any:
    """peft's rule for ``rank_pattern`` and ``alpha_pattern``: the first key that matches the end of the name."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _refuse_missing(config: dict[str, Any], modules: set[str], found: Lora, shapes: dict[str, tuple[int, ...]]) -> None:
    """All of a module's tensors may be gone: the configuration says what was trained."""
    saved = tuple(config.get("modules_to_save") or ())
    if missing := sorted(name for name in shapes if name not in found.whole and _is_inside(name, saved)):
        raise _unfit([f"{PREFIX}{name}" for name in missing], "is not in the adapter")
    biases = {name for name in shapes if name.endswith(".bias")}
    if config.get("bias") == "lora_only":
        biases = {name for name in biases if name.removesuffix(".bias") in modules}
    if config.get("bias", "none") != "none" and (missing := sorted(biases - set(found.whole))):
        raise _unfit([f"{PREFIX}{name}" for name in missing], "is not in the adapter")
    if config.get("layers_pattern") or not config.get("target_modules"):
        return  # a rule of peft's that is better not restated: a wrong restatement would refuse good adapters
    matrices = {name.removesuffix(".weight") for name, shape in shapes.items() if len(shape) == 2}
    wanted = {m for m in matrices if _matches(config["target_modules"], m)}
    wanted -= {m for m in wanted if _matches(config.get("exclude_modules") or [], m)}
    wanted -= {m for m in wanted if any(re.match(rf"(^|.*\.){entry}($|\..*)", m) for entry in saved)}
    layers = config.get("layers_to_transform")
    if layers is not None and layers != []:
        layers = [layers] if isinstance(layers, int) else layers
        wanted = {m for m in wanted if (at := re.match(r".*?\.[^.]*\.(\d+)\.", m)) and int(at[1]) in layers}
    if missing := sorted(wanted - modules):
        raise _unfit([f"{PREFIX}{module}.lora_A.weight" for module in missing], "is not in the adapter")


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


def _matches(targets: str | list[str], module: str) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(module == target or module.endswith(f".{target}") for target in targets)


def _unfit(names: list[str], what: str) -> IntegrityError:
    return IntegrityError(f"the adapter does not fit the base: {names[0]}{and_more(names)} {what}", hint=COMPARE)


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
