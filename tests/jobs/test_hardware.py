"""What is chosen for a machine, and the reason that the log gives. GPUs are played here: there is none."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace
from typing import Any

import pytest

from jobs import hardware
from jobs.spec import Stage
from tests.jobs.train_fixtures import SETTINGS


class Gpu:
    """The answers of ``torch.cuda`` on a machine with one."""

    def __init__(self, patch: pytest.MonkeyPatch, capability: tuple[int, int] = (8, 0), free: float = 20e9) -> None:
        import torch

        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "get_device_name", lambda: "Test GPU")
        patch.setattr(torch.cuda, "get_device_capability", lambda: capability)
        patch.setattr(torch.cuda, "mem_get_info", lambda: (int(free), int(24e9)))


def install(patch: pytest.MonkeyPatch, *packages: str) -> None:
    def version(name: str) -> str:
        if name not in packages:
            raise PackageNotFoundError(name)
        return "1.0"

    patch.setattr(hardware, "version", version)


def model(layers: int, hidden: int, trained: int) -> Any:
    """As much of a model as memory is estimated from."""
    parameter = SimpleNamespace(requires_grad=True, numel=lambda: trained)
    config = SimpleNamespace(hidden_size=hidden, num_hidden_layers=layers)
    return SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: config), parameters=lambda: iter([parameter]))


def stage(**changes: Any) -> Stage:
    return Stage(**{**SETTINGS, "origins": {"activation_checkpointing": "cloudft.yaml"}, **changes})


def test_flash_attention_where_package_and_gpu_have_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch)
    assert hardware.choose_attention("bfloat16") == "sdpa"
    install(monkeypatch, "flash-attn")
    assert hardware.choose_attention("bfloat16") == "sdpa"
    Gpu(monkeypatch, (7, 5))
    assert hardware.choose_attention("bfloat16") == "sdpa"
    Gpu(monkeypatch, (8, 6))
    assert hardware.choose_attention("float32") == "sdpa"
    assert hardware.choose_attention("bfloat16") == "flash_attention_2"
    lines = capsys.readouterr().out.splitlines()
    reasons = ("is not installed", "needs a GPU", "no kernels for Test GPU", "16 bits only", "has its kernels")
    assert all(reason in line for reason, line in zip(reasons, lines, strict=True))


def test_kernels_of_the_hub_or_liger_and_never_both(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    install(monkeypatch)
    assert not hardware.use_kernels()
    install(monkeypatch, "kernels")
    assert not hardware.use_kernels()
    Gpu(monkeypatch)
    assert hardware.use_kernels()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not hardware.use_kernels()
    lines = capsys.readouterr().out.splitlines()
    reasons = ("not installed", "need a GPU", "is installed", "asks it for nothing")
    assert all(reason in line for reason, line in zip(reasons, lines, strict=True))
    install(monkeypatch, "kernels", "liger-kernel")
    assert not hardware.choose_liger("llama")
    install(monkeypatch)
    assert not hardware.choose_liger("llama")


def test_activations_are_kept_where_there_is_room(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small, large = model(24, 896, 9_000_000), model(32, 4096, 42_000_000)
    row = {"batch_size": 4, "max_length": 1024}
    assert not hardware.choose_checkpointing(large, stage(**row))  # a CPU
    Gpu(monkeypatch)
    # 34 bytes x 4096 tokens x 896 x 24 = 3 GB of 20; x 4096 x 32 = 18 GB of them.
    assert not hardware.choose_checkpointing(small, stage(**row))
    assert hardware.choose_checkpointing(large, stage(**row))
    said = capsys.readouterr().out
    assert "3.0 GB of activations, 19.9 GB free" in said
    assert "18.3 GB of activations, 19.5 GB free" in said
    # A full fine-tune's optimizer comes first: 12 bytes for each of half a billion weights, of 8 GB.
    Gpu(monkeypatch, free=8e9)
    assert hardware.choose_checkpointing(model(24, 896, 500_000_000), stage(**row))
    for own in (True, False):
        assert hardware.choose_checkpointing(large, stage(**row, activation_checkpointing=own)) is own
