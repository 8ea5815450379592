"""Upstream's converter, as this project uses it: which class, and which tokenizer. Used by
``local.quantizing.onepass``.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cloudft.errors import ConfigError, EnvironmentProblem
from local.serving.served_template import mend

# How Qwen2's tokenizer cuts text before its merges apply; what llama.cpp calls "qwen2" does exactly this.
QWEN2_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def converter_class(folder: Path, toolchain: Path) -> Any:
    """Upstream's converter for the model in ``folder``, taught what this project knows of tokenizers.

    Args:
        toolchain: root of the unpacked converter.

    Raises:
        ConfigError: llama.cpp knows no such architecture.
    """
    sys.path[:0] = [path for path in (str(toolchain / "gguf-py"), str(toolchain)) if path not in sys.path]
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    hparams = ModelBase.load_hparams(folder, False)
    architecture = get_model_architecture(hparams, ModelType.TEXT)
    try:
        model_class: Any = get_model_class(architecture)
    except NotImplementedError as exc:
        raise ConfigError(
            f"llama.cpp has no architecture {architecture}, so this base can't be served from a GGUF file",
            hint="choose a base of an architecture that llama.cpp knows",
        ) from exc

    class Converter(model_class):  # type: ignore[misc]
        model_arch = model_class.model_arch  # upstream asks every subclass for its own

        def get_vocab_base_pre(self, tokenizer: Any) -> str:
            try:
                return str(super().get_vocab_base_pre(tokenizer))
            except NotImplementedError as exc:
                return pre_tokenizer_name(self.dir_model, exc)

        def prepare_metadata(self, vocab_only: bool) -> None:
            super().prepare_metadata(vocab_only)
            mend(self.gguf_writer.kv_data[0], self.dir_model)

        def _create_vocab_sentencepiece(self) -> Any:
            # Upstream tries this first for some architectures, and imports the package before it looks for the file.
            if not (self.dir_model / "tokenizer.model").is_file():
                raise FileNotFoundError("tokenizer.model")
            return super()._create_vocab_sentencepiece()

    return Converter


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Say which package it is that upstream's converter misses.

    Raises:
        EnvironmentProblem: the tokenizer needs a package that is not installed.
    """
    try:
        yield
    except ImportError as exc:
        raise EnvironmentProblem(
            f"the tokenizer of this base needs the package {exc.name}",
            hint=f"install it:  pip install {exc.name}",
        ) from exc


def pre_tokenizer_name(folder: Path, cause: Exception | None = None) -> str:
    """llama.cpp's name for how this tokenizer cuts text, decided by its definition.

    The converter knows tokenizers by a hash over token ids, which no home-trained vocabulary can match.

    Raises:
        ConfigError: it is not one of the definitions that are known to be the same in llama.cpp.
    """
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = tokenizer.get("model") or {}
    if model.get("type") == "BPE" and not model.get("ignore_merges") and _cuts_like_qwen2(tokenizer):
        return "qwen2"
    raise ConfigError(
        "llama.cpp does not know this tokenizer: its vocabulary is not one that the converter has on record, and its "
        "pre_tokenizer in tokenizer.json is not Qwen2's (a Split by Qwen2's regex, then ByteLevel)",
        hint="use a base with a known tokenizer, or train the tokenizer with Qwen2's pre-tokenizer",
    ) from cause


def _cuts_like_qwen2(tokenizer: dict[str, Any]) -> bool:
    normalizer = tokenizer.get("normalizer")
    if normalizer is not None and normalizer.get("type") != "NFC":
        return False
    pre = tokenizer.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [])
    if pre.get("type") != "Sequence" or [step.get("type") for step in steps] != ["Split", "ByteLevel"]:
        return False
    split, bytes_ = steps
    return bool(
        split.get("pattern") == {"Regex": QWEN2_REGEX}
        and split.get("behavior") == "Isolated"
        and not split.get("invert")
        and not bytes_.get("add_prefix_space")
        and not bytes_.get("use_regex", True)
    )
