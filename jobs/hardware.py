"""What this machine can do, and what is chosen for it. Each choice is logged with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from jobs import ranks
from jobs.backends import Backend
from jobs.outcome import TrainError
from jobs.runlog import log
from jobs.spec import Stage

Dtype = Literal["float32", "bfloat16"]
Attention = Literal["sdpa", "flash_attention_2"]

# Compute capability (8, 0) is Ampere: the first with bfloat16, and the first that flash-attn's kernels are made for.
AMPERE = (8, 0)
BYTES_KEPT = 34
# Of each trained weight: its gradient and AdamW's two averages, in 32 bits.
BYTES_TRAINED = 12
# Of the free memory; the rest is for the logits, and for what the allocator cannot use.
SHARE_FOR_ACTIVATIONS = 0.5


@dataclass(frozen=True)
class Machine:
    """What of this machine decides about a trainer's config. ``bf16``: the model computes in bfloat16."""

    gpu: bool
    bf16: bool
    liger: bool = False

    @classmethod
    def here(cls, dtype: Dtype, model_type: str, backend: Backend = "trl") -> Machine:
        """This one, for a model of that type. Unsloth has layers of its own, where Liger's would go."""
        import torch

        gpu = torch.cuda.is_available()
        return cls(gpu=gpu, bf16=dtype == "bfloat16", liger=gpu and backend == "trl" and choose_liger(model_type))


def warm_up() -> None:
    """Make this process's GPU ready: context and matrix kernels take seconds at their first use."""
    import torch

    if torch.cuda.is_available():
        square = torch.ones(64, 64, device=f"cuda:{ranks.local()}")
        (square @ square).sum().item()


def choose_dtype(wanted: Literal["auto", "float32", "bfloat16"]) -> Dtype:
    """bfloat16 only where the GPU computes in it; elsewhere it is slow or wrong."""
    import torch

    gpu = torch.cuda.is_available()
    native = gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    device = torch.cuda.get_device_name() if gpu else "CPU"
    if wanted == "bfloat16" and gpu and not native:
        raise TrainError(f"dtype is bfloat16, but this {device} cannot compute in it: set train.dtype to float32")
    if wanted != "auto":
        return wanted
    chosen: Dtype = "bfloat16" if native else "float32"
    log("dtype", chosen, f"auto: {device} {'computes in bfloat16' if native else 'has no fast bfloat16'}")
    return chosen


def choose_attention(dtype: Dtype) -> Attention:
    """Flash attention where its package is installed and the GPU has its kernels; else PyTorch's own.

    That is fast too, and keeps packed documents apart like the other.
    """
    import torch

    chosen: Attention = "sdpa"
    if not _installed("flash-attn"):
        why = "PyTorch's own; the package flash-attn is not installed"
    elif not torch.cuda.is_available():
        why = "flash-attn needs a GPU"
    elif torch.cuda.get_device_capability() < AMPERE:
        why = f"flash-attn has no kernels for {torch.cuda.get_device_name()}"
    elif dtype != "bfloat16":
        why = "flash-attn computes in 16 bits only"
    else:
        chosen, why = "flash_attention_2", "flash-attn is installed, and this GPU has its kernels"
    log("attention", chosen, why)
    return chosen


def use_kernels() -> bool:
    """Layer kernels of the model hub, which the package ``kernels`` fetches as the model is loaded."""
    import torch
    from huggingface_hub import constants

    if not _installed("kernels"):
        why = "the package kernels is not installed"
    elif not torch.cuda.is_available():
        why = "they need a GPU"
    elif constants.HF_HUB_OFFLINE:
        why = "they come from the model hub, and this run asks it for nothing"
    else:
        log("kernels", "hub", "the package kernels is installed")
        return True
    log("kernels", "none", why)
    return False


def choose_liger(model_type: str) -> bool:
    """Liger's fused layers, where the package knows the model and nothing better is installed."""
    if not _installed("liger-kernel"):
        return False
    if _installed("kernels"):
        log("liger", False, "the package kernels takes its place")
        return False
    from liger_kernel.transformers.monkey_patch import (  # type: ignore[import-not-found,unused-ignore]
        MODEL_TYPE_TO_APPLY_LIGER_FN,
    )

    known: bool = model_type in MODEL_TYPE_TO_APPLY_LIGER_FN
    log("liger", known, f"liger-kernel is installed, and {'knows' if known else 'does not know'} {model_type}")
    return known


def choose_checkpointing(model: Any, stage: Stage) -> bool:
    """Whether activations are computed twice instead of kept: a fifth to a third slower, and the only way where memory
    is short.

    What keeping them takes is counted with 34 bytes for each token, hidden unit and layer, which is a layer's share at
    16 bits without the attention scores (Korthikanti et al., "Reducing Activation Recomputation", 2022, equation 2).
    """
    import torch

    if stage.activation_checkpointing is not None:
        log("activation_checkpointing", stage.activation_checkpointing, stage.origins["activation_checkpointing"])
        return stage.activation_checkpointing
    if not torch.cuda.is_available():
        log("activation_checkpointing", False, "a CPU runs out of time first, not of memory")
        return False
    config = model.config.get_text_config()
    tokens = stage.batch_size * stage.max_length * (2 if stage.kind == "dpo" else 1)
    needed = BYTES_KEPT * tokens * config.hidden_size * config.num_hidden_layers
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    free = torch.cuda.mem_get_info()[0] - BYTES_TRAINED * trained
    large: bool = needed > free * SHARE_FOR_ACTIVATIONS
    numbers = f"about {needed / 1e9:.1f} GB of activations, {free / 1e9:.1f} GB free beside weights and optimizer"
    log("activation_checkpointing", large, f"{numbers}: {'compute them twice' if large else 'keep them'}")
    return large


def _installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False
