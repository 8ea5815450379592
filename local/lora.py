"""A LoRA adapter as it lies on disk: whether it can be merged tensor by tensor, and the merge itself.

Only the plain form is: ``W + scale · B @ A`` on linear layers whose weights the base stores under the same name. All
else goes through peft (``local.merge``), which knows every variant but needs the whole model in memory.
"""

from __future__ import annotations

import json
import math
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloudft.errors import IntegrityError
from local.base import GET_AGAIN, read_json, weight_files

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
COMPARE = "was the run trained on this base? compare its spec.json with cloudft.yaml"

# Whatever their value, these change nothing about how the tensors of the file are added to the base.
HARMLESS = (
    *("auto_mapping", "base_model_name_or_path", "revision", "peft_type", "peft_version", "task_type"),
    *("inference_mode", "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core"),
    *("qalora_group_size", "init_lora_weights", "bias"),
)
# peft's own names, as a person would say them.
SAID = {
    "use_dora": "it is a DoRA",
    "modules_to_save": "it brings whole layers (modules_to_save)",
    "fan_in_fan_out": "its layers are stored transposed",
    "target_parameters": "it tunes parameters of experts",
    "trainable_token_indices": "it brings new tokens",
    "lora_bias": "it brings biases",
}


@dataclass(frozen=True)
class Pair:
    """The two factors of one module: names in the file, rank and shape of the weight that they are added to."""

    a: str
    b: str
    rank: int
    scale: float
    shape: tuple[int, int]


@dataclass
class Lora:
    """An adapter that can be merged tensor by tensor. ``pairs`` by the name of the module in the base."""

    path: Path
    pairs: dict[str, Pair]
    consumed: set[str] = field(default_factory=set)
    _file: Any = None

    def factors(self, module: str) -> tuple[Any, Any, float]:
        """A (rank, in) and B (out, rank) in float32, and the scale."""
        from safetensors import safe_open

        if self._file is None:
            self._file = safe_open(self.path, framework="pt")
        pair = self.pairs[module]
        return self._file.get_tensor(pair.a).float(), self._file.get_tensor(pair.b).float(), pair.scale

    def merged(self, module: str, weight: Any) -> Any:
        """``weight`` with the adapter added, in float32. Whole: in blocks of rows, the last bits would differ."""
        a, b, scale = self.factors(module)
        if math.frexp(scale)[0] == 0.5:  # a power of two: exact wherever it is multiplied, so where it is cheap
            delta = (b * scale) @ a
        else:
            delta = b @ a
            delta *= scale
        delta += weight  # in float32: torch widens 16-bit numbers exactly
        self.consumed.add(module)
        return delta

    def refuse_unconsumed(self) -> None:
        """Raise ``IntegrityError`` for a tensor that no tensor of the file took up: the loss would be silent."""
        if left := sorted(set(self.pairs) - self.consumed):
            raise _unfit(f"{PREFIX}{left[0]}.lora_A.weight", len(left), "was not taken up by the conversion")


def read_lora(base: Path, adapter: Path) -> Lora | str:
    """The adapter, if it can be merged tensor by tensor; else the reason why peft must do it.

    Reads headers only.

    Raises:
        IntegrityError: a tensor has no place in the base, is missing, or is of another shape.
    """
    config = read_json(adapter / ADAPTER_CONFIG)
    if reason := _not_plain(config):
        return reason
    tensors = shapes(adapter / ADAPTER_WEIGHTS)
    names = {name.removeprefix(PREFIX) for name in tensors}
    if odd := sorted(name for name in names if not re.search(r"\.lora_[AB]\.weight$", name)):
        return f"it brings {odd[0]}, which is no LoRA factor"
    stored = {name.removesuffix(".weight"): shape for name, shape in base_shapes(base).items()}
    modules = {re.sub(r"\.lora_[AB]\.weight$", "", name) for name in names}
    if not modules & set(stored):
        return "the base stores its tensors under other names than it has in memory"
    if "lm_head" in modules and "lm_head" not in stored:
        return "it tunes the output layer, and the base has none of its own"
    for module in sorted(modules - set(stored)):
        raise _unfit(f"{PREFIX}{module}.lora_A.weight", 1, "has no place in the base")
    _refuse_missing(config, modules, stored)
    pairs = {module: _pair(module, tensors, stored[module], config) for module in sorted(modules)}
    return Lora(adapter / ADAPTER_WEIGHTS, pairs)


def _not_plain(config: dict[str, Any]) -> str:
    if config.get("peft_type") != "LORA":
        return f"it is no LoRA but {config.get('peft_type')}"
    if config.get("init_lora_weights") not in (None, True, False, "gaussian", "orthogonal"):
        return f"its base was changed when it was set up ({config['init_lora_weights']})"
    if config.get("bias", "none") != "none":
        return f"it brings biases (bias={config['bias']})"
    for key, value in sorted(config.items()):
        if key not in HARMLESS and value not in (None, False, {}, [], ""):
            return SAID.get(key, f"it uses {key}")
    return ""


def _pair(module: str, tensors: dict[str, tuple[int, ...]], shape: tuple[int, ...], config: dict[str, Any]) -> Pair:
    names = [f"{PREFIX}{module}.lora_{side}.weight" for side in "AB"]
    for name in names:
        if name not in tensors:
            raise _unfit(name, 1, "is not in the adapter")
    a, b = (tensors[name] for name in names)
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or (b[0], a[1]) != shape:
        raise IntegrityError(
            f"the adapter does not fit the base: {module} is {shape} in the base, and {names[0]} is {a} and lora_B {b}",
            hint=COMPARE,
        )
    rank = a[0]
    alpha = pattern_value(config.get("alpha_pattern"), module, config["lora_alpha"])
    if (wanted := pattern_value(config.get("rank_pattern"), module, config["r"])) != rank:
        raise IntegrityError(
            f"the adapter contradicts itself: {names[0]} has rank {rank}, {ADAPTER_CONFIG} says {wanted}",
            hint=GET_AGAIN,
        )
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return Pair(names[0], names[1], rank, scale, (b[0], a[1]))


def pattern_value(pattern: dict[str, Any] | None, module: str, default: Any) -> Any:
    """peft's rule for ``rank_pattern`` and ``alpha_pattern``: the first key that matches the end of the name."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _refuse_missing(config: dict[str, Any], modules: set[str], stored: dict[str, tuple[int, ...]]) -> None:
    """Both factors of a module may be gone: the configuration says which modules were trained."""
    if config.get("layers_pattern") or not config.get("target_modules"):
        return  # a rule of peft's that is better not restated: a wrong restatement would refuse good adapters
    wanted = {m for m, shape in stored.items() if len(shape) == 2 and _matches(config["target_modules"], m)}
    wanted -= {m for m in wanted if _matches(config.get("exclude_modules") or [], m)}
    if (layers := config.get("layers_to_transform")) is not None:
        layers = [layers] if isinstance(layers, int) else layers
        wanted = {m for m in wanted if (at := re.match(r".*\.[^.]*\.(\d+)\.", m)) and int(at[1]) in layers}
    if missing := sorted(wanted - modules):
        raise _unfit(f"{PREFIX}{missing[0]}.lora_A.weight", len(missing), "is not in the adapter")


def _matches(targets: str | list[str], module: str) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(module == target or module.endswith(f".{target}") for target in targets)


def _unfit(name: str, count: int, what: str) -> IntegrityError:
    more = f" (and {count - 1} more)" if count > 1 else ""
    return IntegrityError(f"the adapter does not fit the base: {name}{more} {what}", hint=COMPARE)


def base_shapes(base: Path) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor of a model folder, from the headers of its files."""
    found: dict[str, tuple[int, ...]] = {}
    for path in weight_files(base):
        found |= shapes(path)
    return found


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor of a safetensors file, from its header."""
    with path.open("rb") as src:
        (length,) = struct.unpack("<Q", src.read(8))
        header = json.loads(src.read(length))
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
