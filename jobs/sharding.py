"""Full fine-tunes on several GPUs: each holds a part of the weights, gradients and optimizer (FSDP2).

transformers shards the model as it reads it (``DistributedConfig``), and can train and save it so. What it cannot do is
to go on from a checkpoint; that is here. A checkpoint is whole, as one GPU would write it: how many there were does not
matter to the machine that goes on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobs import ranks
from jobs.checkpoints import weight_files
from jobs.outcome import TrainError

OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"


def settings(method: str) -> dict[str, Any]:
    """For ``from_pretrained``: a full fine-tune is shared out among the ranks; others fit on each."""
    if method != "full" or ranks.count() == 1:
        return {}
    from transformers.distributed import DistributedConfig

    return {"distributed_config": DistributedConfig(fsdp_size=ranks.count())}


def sharded(model: Any) -> bool:
    """Whether each rank holds a part of it only."""
    return bool(getattr(model, "is_distributed_loading_by_transformers", False))


def whole(tensor: Any) -> Any:
    """The tensor with all its parts; every rank must ask for the same one."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def put(tensor: Any, parameter: Any) -> None:
    """Give a parameter the values of a whole tensor, to the bit; every rank must have the same one."""
    import torch

    if not hasattr(parameter, "device_mesh"):
        parameter.data = tensor.to(parameter.device)
        return
    from torch.distributed.tensor import distribute_tensor

    part = distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)
    with torch.no_grad():  # into its place: FSDP holds on to the memory, not to the parameter
        parameter.copy_(part)


def apart(model: Any) -> None:
    """Give up what was put together for the last forward pass: values that are put now would be lost with it."""
    if not sharded(model):
        return
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def load_weights(model: Any, folder: Path) -> None:
    """The weights of a checkpoint; each rank takes its part of each tensor, one after the other.

    Raises:
        TrainError: they are not named as the model's are.
    """
    from safetensors import safe_open

    apart(model)
    parameters = dict(model.named_parameters())
    missing = set(parameters)
    for path in weight_files(folder):
        with safe_open(path, framework="pt") as tensors:
            for name in sorted(missing & set(tensors.keys())):
                put(tensors.get_tensor(name), parameters[name])
                missing.discard(name)
    if missing:
        raise TrainError(
            f"{len(missing)} weights are not in the checkpoint as this model has them: {min(missing)} first"
        )


def save_optimizer(model: Any, optimizer: Any, scheduler: Any, folder: Path) -> None:
    """The optimizer's state, gathered by the first rank, and the scheduler's."""
    import torch
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_optimizer_state_dict(model, optimizer, options=options)
    if ranks.first():
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(state, folder / OPTIMIZER)
        torch.save(scheduler.state_dict(), folder / SCHEDULER)


def load_optimizer(model: Any, optimizer: Any, scheduler: Any, folder: Path) -> None:
    """What ``save_optimizer`` saved, read by the first rank and shared out."""
    import torch
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    state = torch.load(folder / OPTIMIZER, weights_only=True, map_location="cpu") if ranks.first() else {}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_optimizer_state_dict(model, optimizer, optim_state_dict=state, options=options)
    scheduler.load_state_dict(torch.load(folder / SCHEDULER, weights_only=True))
