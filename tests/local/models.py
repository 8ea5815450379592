"""Small random models of the architectures that people fine-tune, and adapters for them. Made here, in a second."""

from __future__ import annotations

import functools
import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

from local.files import write_json
from local.quantizing.convert import converter_class
from local.quantizing.toolchain import Toolchain
from tests.local.quantize_fixtures import TEMPLATE, make_tokenizer, no_progress

SMALL: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.06,
    "tie_word_embeddings": False,
}
# name → (transformers' class without "Config"/"ForCausalLM", what differs from SMALL). llama.cpp takes some numbers for
# granted, as published models have them: Gemma's queries are scaled by the size of a head, Phi-2's inner layers are
# four times as wide, Mistral's context has no window.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "smollm": (
        "Llama",
        {"tie_word_embeddings": True, "hidden_size": 96, "num_attention_heads": 3, "num_key_value_heads": 1},
    ),
    "odd": ("Llama", {"hidden_size": 80, "intermediate_size": 208}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 64, "tie_word_embeddings": True}),
    "gemma": ("Gemma", {"head_dim": 64, "tie_word_embeddings": True}),
    "gemma2": (
        "Gemma2",
        {"head_dim": 64, "tie_word_embeddings": True, "sliding_window": 64, "query_pre_attn_scalar": 64},
    ),
    "gemma3": (
        "Gemma3",
        {"head_dim": 64, "tie_word_embeddings": True, "sliding_window": 64, "query_pre_attn_scalar": 64},
    ),
    "phi3": ("Phi3", {"pad_token_id": 0, "sliding_window": None, "original_max_position_embeddings": 512}),
    "phi": ("Phi", {"num_key_value_heads": 4, "intermediate_size": 1024}),
    "granite": ("Granite", {}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmoe": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 4}),
    "qwen2moe": (
        "Qwen2Moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 256,
            "shared_expert_intermediate_size": 256,
        },
    ),
    "falcon": (
        "Falcon",
        {
            "tie_word_embeddings": True,
            "new_decoder_architecture": True,
            "bias": False,
            "num_kv_heads": 2,
            "ffn_hidden_size": 1024,
        },
    ),
}


def make_model(folder: Path, name: str, seed: int = 0, dtype: str = "bfloat16", **changes: Any) -> Path:
    """A model folder as a base has it: weights, configuration, tokenizer with a chat template."""
    import torch
    import transformers

    kind, differs = ARCHITECTURES[name]
    folder.mkdir(parents=True)
    make_tokenizer(folder)
    stem = "Gemma3Text" if kind == "Gemma3" else kind
    config = getattr(transformers, f"{stem}Config")(
        **{**SMALL, "bos_token_id": 400, "eos_token_id": 402, "pad_token_id": 400, **differs, **changes}
    )
    torch.manual_seed(seed)
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if weight.dim() == 1:  # norms and biases are ones and zeros, which would hide what is done to them
                weight.add_(torch.randn_like(weight) * 0.05)
            assert key
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.to(getattr(torch, dtype)).save_pretrained(folder)
    if kind.startswith("Gemma"):
        make_sentencepiece(folder)
    if kind.startswith("Phi"):
        change(folder / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    return folder


def change(path: Path, **values: Any) -> None:
    write_json(path, json.loads(path.read_text()) | values)


@functools.cache
def _sentencepiece() -> bytes:
    import io

    import sentencepiece

    out = io.BytesIO()
    text = [f"the printer number {i} doesn't print since Monday" for i in range(50)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=out,
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return out.getvalue()


def make_sentencepiece(folder: Path) -> None:
    """What Gemma's converter insists on."""
    (folder / "tokenizer.model").write_bytes(_sentencepiece())


def make_lora(folder: Path, base: Path, seed: int = 1, spread: float = 0.1, **options: Any) -> Path:
    """A random adapter; ``options`` are peft's. Everything trainable is random."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    plain = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **{**plain, **options}))
        torch.manual_seed(seed)
        with torch.no_grad():
            for weight in tuned.parameters():
                if weight.requires_grad:
                    weight.add_(torch.randn_like(weight) * spread)
        tuned.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"):
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def merged_by_peft(base: Path, adapter: Path | None, out: Path) -> Path:
    """The float32 merge of today's way, as a model folder."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
        model.save_pretrained(out)
    for path in (adapter or base).iterdir():
        if path.name.startswith(("tokenizer", "chat_template")):
            shutil.copyfile(path, out / path.name)
    return out


def todays_way(merged: Path, out: Path, kind: str, toolchain: Toolchain, name: str, imatrix: Any = None) -> Path:
    """Upstream's conversion to a float32 GGUF, then ``llama_model_quantize``."""
    from local.quantizing import ggml

    full = in_32_bits(merged, out.with_name("full.gguf"), toolchain, name)
    ggml.quantize(full, out, kind, no_progress, imatrix)
    full.unlink()
    return out


def in_32_bits(merged: Path, out: Path, toolchain: Toolchain, name: str) -> Path:
    """Upstream's conversion to a float32 GGUF."""
    converter = converter_class(merged, toolchain.root)
    import gguf
    import torch

    with torch.inference_mode():
        converter(merged, gguf.LlamaFileType.ALL_F32, out, model_name=name).write()
    return out


def forget_converter() -> None:
    """Upstream's packages have names that others have too."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("gguf", "conversion")]:
        del sys.modules[name]
    sys.path[:] = [path for path in sys.path if not (Path(path) / "conversion").is_dir() and "gguf-py" not in path]
