"""The model that is trained: base, tokenizer, precision, quantisation, and the adapter on it.

Heavy libraries are imported inside of the functions, when the trainer has begun to work.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import ranks, sharding, unsloth_backend
from jobs.backends import Backend
from jobs.environment import limit_threads
from jobs.hardware import Dtype, choose_attention, choose_dtype, use_kernels
from jobs.outcome import TrainError
from jobs.rendering import choose_template
from jobs.runlog import log, say
from jobs.saving import files_of_base
from jobs.spec import Base, Method, RunSpec, Stage


@dataclass
class Tuned:
    """A model in training, and all that goes home with its weights.

    ``dtype``: what it computes in. ``stops``: ids of the tokens that end an answer; ``files``: the base's own files
    that go home as they are; ``template``: the chat template that is trained with, and will be served. ``longest``:
    tokens that a row may have at most; None: as many as the model takes.
    """

    model: Any
    tokenizer: Any
    template: str
    stops: frozenset[int]
    files: tuple[Path, ...]
    base: Base
    method: Method
    dtype: Dtype
    backend: Backend = "trl"
    longest: int | None = None

    def trained(self) -> dict[str, Any]:
        """The weights that are trained, by name. dpo's frozen copy of an adapter is not among them."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad and ".ref." not in name}

    def write_weights(self, path: Path) -> None:
        """The trained weights, to the bit. All ranks call it, and the first one writes."""
        from safetensors.torch import save_file

        weights = {name: sharding.whole(p.detach()).contiguous() for name, p in self.trained().items()}
        if ranks.first():
            part = path.with_name(f".{path.name}.part")
            save_file(weights, part)
            part.replace(path)

    def put_back(self, path: Path) -> None:
        """The trained weights as ``write_weights`` wrote them."""
        from safetensors.torch import load_file

        sharding.apart(self.model)
        for name, tensor in load_file(path).items():
            sharding.put(tensor, self.model.get_parameter(name))


def load_tuned(spec: RunSpec, folder: Path | None) -> Tuned:
    """Base, tokenizer, template and a fresh adapter. ``folder``: a base that came with the inputs.

    Raises:
        TrainError: the base is not there, not whole, or cannot be trained so on this machine.
        RenderError: it has no chat template.
    """
    stage = spec.stages[0]  # these settings are the same for all of them
    dtype = choose_dtype(stage.dtype)
    longest = None
    if spec.backend == "unsloth":
        tokenizer, model, longest = load_for_unsloth(spec, folder, dtype)
    else:
        tokenizer, model = load_base(spec.base, folder, dtype, spec.method)
    limit_threads(model.num_parameters())
    template, origin = choose_template(spec.template, tokenizer)
    log("template", "Jinja", origin)
    stops = stop_tokens(tokenizer, model)
    files = tuple(files_of_base(spec.base, folder, spec.method))
    if spec.backend == "unsloth":
        model = unsloth_backend.with_adapter(model, stage, spec.seed)
    elif spec.method != "full":
        model = with_adapter(model, stage, spec.seed)
    tuned = Tuned(model, tokenizer, template, stops, files, spec.base, spec.method, dtype, spec.backend, longest)
    count, of = sum(p.numel() for p in tuned.trained().values()), spec.base.parameters or model.num_parameters()
    say(f"{spec.method}: {count:,} of {of:,} weights are trained ({count / of:.2%})")
    return tuned


def load_base(base: Base, folder: Path | None, dtype: Dtype, method: Method = "lora") -> tuple[Any, Any]:
    """Tokenizer and model, or a clear word on why not: a base with missing weights would train, on noise."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source, revision = source_of(base, folder)
    # All weights in 32 bits: at a full fine-tune's learning rate most steps are smaller than the last bit of bfloat16,
    # and would be lost. The computing is in ``dtype`` all the same (autocast).
    weights = "float32" if method == "full" else dtype
    settings: dict[str, Any] = {"dtype": getattr(torch, weights), **quantisation(method, dtype)}
    settings |= sharding.settings(method)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **revision)
        model, found = AutoModelForCausalLM.from_pretrained(
            source,
            **revision,
            **settings,
            attn_implementation=choose_attention(dtype),
            use_kernels=use_kernels(),
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as exc:  # each library behind these two calls has its own kinds
        raise unloadable(base, exc) from exc
    wrong = sorted(found["missing_keys"]) + sorted(str(key) for key in found["mismatched_keys"])
    if wrong:
        raise TrainError(f"the base {base.id} is incomplete: {len(wrong)} weights are missing, {wrong[0]} first")
    check_vocabulary(base, tokenizer, model)
    if method == "qlora":
        _keep_layout(model)
    return tokenizer, model


def load_for_unsloth(spec: RunSpec, folder: Path | None, dtype: Dtype) -> tuple[Any, Any, int]:
    """Tokenizer, model, and how many tokens a row may have. The tokenizer is the base's own: Unsloth mends some."""
    from transformers import AutoConfig, AutoTokenizer

    source, revision = source_of(spec.base, folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **revision)
        positions = AutoConfig.from_pretrained(source, **revision).get_text_config().max_position_embeddings
        longest = unsloth_backend.limit(spec, positions)
        # Unsloth refuses a base with missing weights by itself.
        model = unsloth_backend.load_model(spec, source, revision.get("revision"), dtype, longest)
    except TrainError:
        raise
    except Exception as exc:
        raise unloadable(spec.base, exc) from exc
    check_vocabulary(spec.base, tokenizer, model)
    if spec.method == "qlora":
        _keep_layout(model)
    return tokenizer, model, longest


def source_of(base: Base, folder: Path | None) -> tuple[str, dict[str, str]]:
    """What the libraries call the base, and the commit of it where they fetch it."""
    return (str(folder), {}) if folder else (base.id, {"revision": base.revision})


def unloadable(base: Base, exc: Exception) -> TrainError:
    return TrainError(f"the base {base.id} at {base.revision[:12]} cannot be loaded: {exc}")


def check_vocabulary(base: Base, tokenizer: Any, model: Any) -> None:
    size = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > size:
        raise TrainError(f"the tokenizer of {base.id} has {len(tokenizer)} tokens, but the model only knows {size}")


def quantisation(method: Method, dtype: Dtype) -> dict[str, Any]:
    """How the frozen base is held for QLoRA: NF4, and the scales quantised too (Dettmers et al., 2023, sections 3)."""
    if method != "qlora":
        return {}
    import torch
    from transformers import BitsAndBytesConfig

    log("quantisation", "nf4", "qlora: 4 bits for each weight of the base, double quantisation, computing in " + dtype)
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
        bnb_4bit_quant_storage=torch.uint8,
    )
    place = {"device_map": {"": ranks.local()}} if torch.cuda.is_available() else {}
    return {"quantization_config": config, **place}


def _keep_layout(model: Any) -> None:
    """On processors with AVX512_BF16, bitsandbytes repacks the weights at the first evaluation, and the next training
    step fails ("a view of a leaf Variable … in-place"): tell it that this processor has none."""
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def stop_tokens(tokenizer: Any, model: Any) -> frozenset[int]:
    """The ids that end an answer. Raises ``TrainError`` where there are none: the model would never learn to stop."""
    ends = model.generation_config.eos_token_id
    stops = frozenset({tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None})
    if not stops:
        raise TrainError(
            "neither the base's tokenizer nor its generation_config.json names a token that ends an answer"
        )
    return stops


def with_adapter(model: Any, stage: Stage, seed: int) -> Any:
    """The model with a fresh adapter, which changes nothing yet. The seed decides its random half."""
    from peft import get_peft_model
    from transformers import set_seed

    set_seed(seed)
    return get_peft_model(model, peft_config(stage))


def peft_config(stage: Stage) -> Any:
    """The adapter in peft's words. DoRA and rsLoRA are LoRA with a flag each."""
    from peft import LoraConfig

    log("lora_target_modules", "all-linear", "fixed: every linear layer but the output layer")
    return LoraConfig(
        r=stage.lora_r,
        lora_alpha=stage.lora_alpha,
        lora_dropout=stage.lora_dropout,
        use_dora=stage.method == "dora",
        use_rslora=stage.method == "rslora",
        target_modules="all-linear",
        bias="none",
        init_lora_weights=True,
        task_type="CAUSAL_LM",
    )
