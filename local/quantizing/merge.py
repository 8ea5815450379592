"""Merges through peft what can't be merged tensor by tensor, and lays out the model folder that the converter reads.

Runs in the child process of ``local.quantizing.worker``.
"""

from __future__ import annotations

import re
import shutil
import textwrap
import warnings
from pathlib import Path
from typing import Any

from cloudft.errors import ConfigError, IntegrityError, VerifyError
from jobs.rendering import has_training_tags, served_template
from local.base import GET_AGAIN, TOKENIZERS, model_files, read_json
from local.files import write_json, write_text
from local.progress import Progress, silent
from local.quantizing.names import ADAPTER_WEIGHTS
from local.serving.versions import TEMPLATE

CHANGED = ("vocab_size", "tie_word_embeddings")


def tokenizer_folder(base: Path, adapter: Path | None) -> Path:
    """Where the tokenizer lies that was trained with: beside the adapter, else with the base."""
    if adapter is not None and any((adapter / name).is_file() for name in TOKENIZERS):
        return adapter
    return base


def merge_adapter(base: Path, adapter: Path, out: Path, progress: Progress) -> None:
    """Let peft merge, and write the merged weights to ``out`` as safetensors, in the base's own precision.

    Raises:
        ConfigError: peft can't merge an adapter of this kind.
        IntegrityError: an adapter tensor found no place in the base, or the base lacks one that it asks for.
        VerifyError: the merged weights are not finite numbers.
    """
    progress("merge", 0, None, "", "load the libraries")
    import torch

    tuned = load_tuned(base, adapter, "auto", progress)
    progress("merge", 0, None, "", "add the adapter to the base")
    try:
        with torch.inference_mode():
            merged = tuned.merge_and_unload(safe_merge=True)
        _untie(merged)
        progress("merge", 0, None, "", "save the merged model")
        merged.save_pretrained(out)
    except OSError:
        raise  # of the disk
    except Exception as exc:  # as many kinds as there are kinds of adapter
        raise _refused(exc) from exc
    config = read_json(out / "config.json")
    # Of the configuration only what the merge may have changed; the rest stays as the base has it.
    changed = {key: config[key] for key in CHANGED if key in config}
    write_json(out / "config.json", read_json(base / "config.json") | changed)


def _refused(exc: Exception) -> Exception:
    """What it means that peft or transformers raised this while merging: of some kinds of adapter peft has no merge."""
    said = str(exc)
    if "NaNs detected" in said:
        return VerifyError(f"the merged weights are not finite numbers: {said}", hint=GET_AGAIN)
    if "allocate" in said:
        return MemoryError(said)
    return ConfigError(
        f"peft can't merge this adapter: {textwrap.shorten(said, 160) or type(exc).__name__}",
        hint="what it does is in its adapter_config.json; train one without that",
    )


def load_tuned(base: Path, adapter: Path, dtype: str, progress: Progress = silent) -> Any:
    """peft's model of base and adapter, not merged; every tensor of the adapter is in it.

    Raises:
        IntegrityError: as ``merge_adapter``.
    """
    from peft import PeftModel
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    progress("merge", 0, None, "", "load the base")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, local_files_only=True)
    with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as file:
        brought = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    rows = {shape[0] for name, shape in brought.items() if re.search(r"(embed_tokens|lm_head)\.weight$", name)}
    if len(rows) == 1 and rows != {model.get_input_embeddings().weight.shape[0]}:
        model.resize_token_embeddings(rows.pop(), mean_resizing=False)
    progress("merge", 0, None, "", "load the adapter")
    try:
        with warnings.catch_warnings():  # what peft warns of is looked at below
            warnings.simplefilter("ignore")
            tuned = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False)
    except (RuntimeError, ValueError, KeyError, IndexError, TypeError) as exc:
        raise IntegrityError(
            f"the adapter does not fit the base: {str(exc).splitlines()[0]}",
            hint="was the run trained on this base? compare its spec.json with cloudft.yaml",
        ) from exc
    _refuse_loss(adapter, set(brought), tuned)
    return tuned.eval()


def _refuse_loss(adapter: Path, brought: set[str], tuned: Any) -> None:
    """peft ignores a tensor that it has no place for; the model is then silently another one than was trained."""
    import torch
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    taken = set(get_peft_model_state_dict(tuned, save_embedding_layers=False))
    inside = tuned.state_dict()
    with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as file:
        for name in sorted(brought - taken):  # whole layers, which peft loads into the model itself
            plain = name.replace(".base_layer.", ".")
            places = [name, plain, plain.replace(".weight", ".base_layer.weight")]
            values = [inside[place] for place in places if place in inside]
            if any(torch.equal(value.float(), file.get_tensor(name).to(value.dtype).float()) for value in values):
                brought = brought - {name}
    for names, what in ((brought - taken, "has no place in the base"), (taken - brought, "is not in the adapter")):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise IntegrityError(
                f"the adapter does not fit the base: {min(names)}{more} {what}",
                hint="was the run trained on this base? compare its spec.json with cloudft.yaml",
            )


def _untie(model: Any) -> None:
    """Where input and output layer were one and the adapter changed one of them, they are two from now on."""
    import torch

    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    if last is None or not model.config.tie_word_embeddings:
        return
    if first.weight.shape != last.weight.shape or not torch.equal(first.weight, last.weight):
        model.config.tie_word_embeddings = False


def lay_out(base: Path, tokenizer: Path, template: str | None, out: Path) -> None:
    """Complete ``out`` to a model folder: links to what it lacks of the base, and the tokenizer as trained.

    Files are taken as they are, never saved again by a library, which adds and renames keys. Only the template is
    put in its one place, without what only training knows: a second copy in the tokenizer's configuration would win in
    the converter.
    """
    out.mkdir(parents=True, exist_ok=True)
    own_weights = any(out.glob("model*.safetensors"))
    for path in model_files(base):
        if own_weights and (path.name.startswith("model") or path.name == "config.json"):
            continue
        _replace(path, out / path.name, link=path.suffix == ".safetensors")
    if tokenizer != base:
        for path in model_files(tokenizer):
            if path.name not in ("config.json", "generation_config.json"):
                _replace(path, out / path.name)
    template = _served(out, template)
    if template is not None:
        config = out / "tokenizer_config.json"
        if config.is_file():
            write_json(config, {key: value for key, value in read_json(config).items() if key != "chat_template"})
        (out / "chat_template.json").unlink(missing_ok=True)
        write_text(out / TEMPLATE, template)


def _served(folder: Path, template: str | None) -> str | None:
    """The template to write; None leaves the folder's own as it is, if that can be served."""
    if template is None:
        own = folder / TEMPLATE
        template = own.read_text(encoding="utf-8") if own.is_file() else None
    if template is None:
        config = folder / "tokenizer_config.json"
        brought = read_json(config).get("chat_template") if config.is_file() else None
        template = brought if isinstance(brought, str) and has_training_tags(brought) else None
    return None if template is None else served_template(template)


def _replace(source: Path, target: Path, *, link: bool = False) -> None:
    target.unlink(missing_ok=True)
    if link:
        target.symlink_to(source.resolve())
    else:
        shutil.copyfile(source, target)
