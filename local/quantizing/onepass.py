"""From a model folder and an adapter straight to quantised GGUF files: one read, no file in between.

Upstream's converter classes say what becomes of each tensor; it is merged when its turn comes, quantised by llama.cpp's
own kernels on all cores, and written to its place. The file is the same, byte for byte, as the one that
``llama_model_quantize`` makes from a float32 GGUF of the same merge. Runs in the child process of
``local.quantizing.worker``.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cloudft.errors import ConfigError
from local.progress import Progress
from local.quantizing import ggml
from local.quantizing.adapter import base_tensors, text_config
from local.quantizing.convert import converter_class, explained
from local.quantizing.ggml import Imatrix
from local.quantizing.gguf_head import Head, size
from local.quantizing.headstart import HeadStart
from local.quantizing.lora import Lora, and_more
from local.quantizing.names import OUTPUT
from local.quantizing.quant_types import offered
from local.quantizing.stream import Target, stream


def write(
    folder: Path,
    lora: Lora | None,
    outs: dict[str, Path],
    *,
    toolchain: Path,
    name: str,
    scratch: Path,
    progress: Progress,
    imatrix: Callable[[Any], Imatrix] | None = None,
    early: HeadStart | None = None,
) -> dict[str, Any]:
    """Write one GGUF file per type of ``outs``, all from one read of the model.

    Args:
        folder: model folder as ``merge.lay_out`` leaves it; its weights are not merged.
        lora: added to them on the way; None: they are written as they are.
        outs: type of ``quant_types.offered`` → file to write, which is whole when this returns.
        toolchain: root of the unpacked converter.
        name: the model's name in the files.
        scratch: a folder for a file without contents, from which the types are planned.
        imatrix: makes the importances of the columns, once the converter can say what its tensors are called.
        early: blocks that were quantised in advance.

    Returns:
        ``architecture`` by llama.cpp's name; ``template``, the chat template in the files; ``types``: type of ``outs``
        → tensor → type in the file.

    Raises:
        ConfigError: llama.cpp knows no such architecture or tokenizer, or only with tied embeddings.
        EnvironmentProblem: the tokenizer needs a package that is not installed.
        IntegrityError: an adapter tensor was not taken up.
        VerifyError: the merged weights are not finite, or llama.cpp refuses the model.
    """
    progress("convert", 0, None, "", "read the model's metadata")
    import torch

    with torch.inference_mode():
        converter = _prepared(folder, lora, toolchain, name)
        tensors = _ordered(converter)
        importances = imatrix(converter) if imatrix else {}
        progress("convert", 0, None, "", "plan the tensors' types")
        targets = [_plan(converter, tensors, kind, path, scratch, importances) for kind, path in outs.items()]
        stream(tensors, targets, early, progress)
        if lora is not None:
            lora.refuse_unconsumed()
    for target in targets:
        target.part.replace(target.path)
    import gguf

    template = converter.gguf_writer.kv_data[0].get(gguf.Keys.Tokenizer.CHAT_TEMPLATE)
    return {
        "architecture": str(gguf.MODEL_ARCH_NAMES[converter.model_arch]),
        "template": template.value if template is not None else None,
        "types": {t.kind: {n: gguf.GGMLQuantizationType(v).name for n, v in t.types.items()} for t in targets},
    }


def _prepared(folder: Path, lora: Lora | None, toolchain: Path, name: str) -> Any:
    """Upstream's converter with every tensor lazy and in float32, and the metadata complete."""
    base = converter_class(folder, toolchain)
    import gguf

    class Merging(base):  # type: ignore[misc, valid-type]
        model_arch = base.model_arch

        def get_tensors(self) -> Iterator[tuple[str, Any]]:
            changed = _changed_names(self, lora)
            for key, tensor in super().get_tensors():
                yield key, _lazy_float32(tensor, lora, changed.get(key))

    converter = Merging(folder, gguf.LlamaFileType.ALL_F32, folder / "unused.gguf", model_name=name)
    _refuse_untied(folder, converter)
    with explained():
        converter.prepare_tensors()
        converter.prepare_metadata(vocab_only=False)
    return converter


def _refuse_untied(folder: Path, converter: Any) -> None:
    """Some architectures have one layer for input and output in llama.cpp; upstream's converter drops a second."""
    dropped = converter.filter_tensors((OUTPUT, lambda: None)) is None
    if dropped and text_config(folder).get("tie_word_embeddings") is False and OUTPUT in base_tensors(folder):
        raise ConfigError(
            "input embeddings and output layer of this model are two, and llama.cpp knows only one that is both for "
            f"{converter.hf_arch}: what was trained would be lost",
            effect="nothing was written",
            hint="train without embed_tokens and lm_head, or both as one (ensure_weight_tying in peft)",
        )


def _changed_names(converter: Any, lora: Lora | None) -> dict[str, str]:
    """The converter's name of a tensor → the base's, of those that the adapter changes; the converter renames some."""
    found = {}
    for name in lora.changed() if lora else ():
        renamed = converter.filter_tensors((name, lambda: None))
        if renamed is not None:
            found[renamed[0]] = name
    return found


def _lazy_float32(tensor: Any, lora: Lora | None, changed: str | None) -> Any:
    """A lazy float32 tensor. Where nothing is added, it can also be had in blocks of rows: ``tensor.in_rows``.

    Whoever takes one that the adapter brought whole calls ``tensor.taken``: the converter may leave a tensor out.
    Nothing may keep these tensors alive but the converter's own list, which is emptied from the front.
    """
    import torch
    from conversion import LazyTorchTensor

    if changed is not None:
        assert lora is not None
        change: Callable[[Any], Any] = lambda weight: lora.merged(changed, weight)  # noqa: E731
    else:
        change = lambda weight: weight.to(torch.float32)  # noqa: E731
    lazy = LazyTorchTensor(
        meta=LazyTorchTensor.meta_with_dtype_and_shape(torch.float32, tensor.shape), args=(tensor,), func=change
    )
    added = changed is not None and lora is not None and lora.adds_to(changed)
    if not added and tensor.dim() > 1:
        lazy.in_rows = tensor
        if changed is not None and lora is not None:
            lazy.taken = functools.partial(lora.consumed.add, changed)
    return lazy


def _ordered(converter: Any) -> dict[str, Any]:
    """Take the tensors from the converter, in llama.cpp's order: by layer, then by name."""
    tensors = converter.gguf_writer.tensors[0]
    converter.gguf_writer.tensors = [{}]

    def layer(name: str) -> int:
        parts = name.split(".")
        return int(parts[1]) if parts[0] == "blk" and parts[1].isdecimal() else -1

    return dict(sorted(tensors.items(), key=lambda item: (layer(item[0]), item[0].encode())))


def _refuse_unlearnt(kind: str, planned: dict[str, str], importances: Imatrix) -> None:
    """llama.cpp would refuse these, and some kernels would end the process."""
    if lacking := offered()[kind].lacking(planned, importances):
        raise ConfigError(
            f"{kind} can't be made without knowing which weights matter, and that is not known of {lacking[0]}"
            f"{and_more(lacking)}",
            effect="nothing was written",
            hint="choose a type that does not need it, such as Q3_K_M" if importances else "add --imatrix",
        )


def _plan(
    converter: Any, tensors: dict[str, Any], kind: str, path: Path, scratch: Path, importances: Imatrix
) -> Target:
    """Ask llama.cpp for the types, and write the head of the file with them."""
    import gguf

    writer = converter.gguf_writer
    version = writer.kv_data[0].pop(gguf.Keys.General.QUANTIZATION_VERSION)  # llama.cpp writes these two last
    writer.kv_data[0].pop(gguf.Keys.General.FILE_TYPE, None)
    writer.kv_data[0][gguf.Keys.General.QUANTIZATION_VERSION] = version
    writer.add_file_type(ggml.ftype(kind))
    header = scratch / "plan.gguf"
    stored = {name: info.dtype for name, info in tensors.items()}
    shapes = {name: _as_stored(info.shape) for name, info in tensors.items()}
    begin = Head(_without_words(writer), writer.arch, shapes, stored).write(header)
    os.truncate(header, begin + sum(-(-size(s, stored[n]) // 32) * 32 for n, s in shapes.items()))
    planned = ggml.plan_types(header, kind, importances)
    header.unlink()
    _refuse_unlearnt(kind, planned, importances)
    types = {name: gguf.GGMLQuantizationType[planned[name]] for name in tensors}
    for name, type_ in types.items():
        if stored[name] != type_ and stored[name] != gguf.GGMLQuantizationType.F32:
            raise ConfigError(f"the converter insists on {stored[name].name} for {name}, llama.cpp on {type_.name}")
        ggml.prepare(type_)
    head = Head(dict(writer.kv_data[0]), writer.arch, shapes, types)
    offsets, end = head.layout()
    matters = {name: importances[name] for name in tensors if name in importances}
    target = Target(path, kind, {n: int(t) for n, t in types.items()}, offsets, matters, head)
    with target.part.open("wb") as out:
        out.truncate(end)
    return target


def _as_stored(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A tensor's shape as ggml writes it: without the outer dimensions of one, such as a gate's one output has."""
    return _as_stored(shape[1:]) if len(shape) > 1 and shape[0] == 1 else tuple(shape)


def _without_words(writer: Any) -> dict[str, Any]:
    """The metadata without the vocabulary, which says nothing about types and takes a while to write and read."""
    import gguf

    kept = {key: value for key, value in writer.kv_data[0].items() if not key.startswith("tokenizer.")}
    words = writer.kv_data[0].get(gguf.Keys.Tokenizer.LIST)
    if words is not None:
        key = gguf.Keys.LLM.VOCAB_SIZE.format(arch=writer.arch)
        kept.setdefault(key, gguf.GGUFValue(len(words.value), gguf.GGUFValueType.UINT32))
    return kept
