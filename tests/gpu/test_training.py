"""Real trainings on a real card: bfloat16, four bits, memory that runs out, and what the estimates said of them."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import train as benchmark
from benchmarks.random_models import config_of
from infra.gpus import find_gpu
from jobs.checkpoints import WEIGHTS
from jobs.gpu import GpuWatch
from jobs.packing import keeps_apart
from local.planning.measured import gpu_name
from tests.gpu.conftest import LENGTH, SIZE
from tests.jobs.train_fixtures import REPO, make_work, metrics, outcome, run_trainer

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

Rows = list[list[dict[str, str]]]
SETTINGS: dict[str, Any] = {
    "max_steps": 20,
    "batch_size": 8,
    "max_length": LENGTH + 64,
    "learning_rate": 1e-3,
    "dtype": "auto",
}
# What the trainer may take of the card: one row at once, and not sixteen with all that autograd keeps of them.
FEW_BYTES = 4e9


def losses(work: Path) -> list[float]:
    return [line["loss"] for line in metrics(work) if "loss" in line]


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_training_learns_in_bfloat16(random_base: Path, rows: Rows, tmp_path: Path, method: str) -> None:
    from safetensors.torch import load_file

    work = make_work(tmp_path / "work", random_base, rows, **SETTINGS, method=method)
    done = run_trainer(work)
    assert done.returncode == 0, done.stderr
    assert "on cuda:0" in done.stdout
    assert ("nf4" in done.stdout) == (method == "qlora")
    assert "bfloat16" in done.stdout
    found = losses(work)
    assert all(map(math.isfinite, found))
    assert sum(found[-5:]) < sum(found[:5])
    adapter = load_file(work / "out" / "adapter" / WEIGHTS)
    # Kept in 32 bits, and moved: the second factor of each pair begins as zeros.
    assert {str(tensor.dtype) for tensor in adapter.values()} == {"torch.float32"}
    assert all(tensor.isfinite().all() for tensor in adapter.values())
    assert all(tensor.abs().max() > 0 for name, tensor in adapter.items() if "lora_B" in name)


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_packed_rows_do_not_see_each_other(attention: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn")
    config = config_of("tiny")
    config._attn_implementation = attention
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation=attention).cuda()
    assert keeps_apart(model)


def test_memory_that_runs_out_halves_the_rows_and_the_losses_stay(
    random_base: Path, rows: Rows, tmp_path: Path
) -> None:
    settings = {**SETTINGS, "max_steps": 4, "batch_size": 16, "activation_checkpointing": False}
    settings["origins"] = {"activation_checkpointing": "set here"}
    tight, roomy = (make_work(tmp_path / name, random_base, rows, **settings) for name in ("tight", "roomy"))
    done = run_trainer(roomy)
    assert done.returncode == 0, done.stderr
    code = (
        "import sys, torch; from jobs import train;"
        f"torch.cuda.set_per_process_memory_fraction({FEW_BYTES} / torch.cuda.get_device_properties(0).total_memory);"
        f"sys.exit(train.main(['--work', {str(tight)!r}]))"
    )
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    short = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert short.returncode == 0, short.stderr
    assert "memory ran out in step 1" in outcome(tight)["reason"]
    assert {line["pieces"] for line in metrics(tight)} <= {2, 4, 8, 16}
    assert losses(tight) == pytest.approx(losses(roomy), rel=0.02)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_the_peak_lies_in_the_estimate(gpu: None, tmp_path: Path, method: str) -> None:
    name = gpu_name("", GpuWatch().sample())
    if find_gpu(name) is None:
        pytest.skip(f"{name or 'this card'} is not among those that are estimated")
    args = benchmark.parse(["--size", SIZE, "--length", str(LENGTH), "--steps", "12", "--rows", "240"])
    args.ways, args.rounds, args.checkpointing = ["ours"], 1, True
    benchmark.prepare(SIZE, tmp_path, args)
    result = benchmark.compare(SIZE, method, tmp_path, args)
    (ours,) = result["ways"]["ours"]
    least, most = result["estimate"]["bytes"]
    assert least <= ours["on card"] <= most, json.dumps(ours)
    # PyTorch's own count is a part of what the driver sees.
    assert 0 < ours["allocated"] <= ours["reserved"] <= ours["on card"] * 1.02


def test_the_driver_tells_name_use_and_memory(gpu: None) -> None:
    import torch

    watch = GpuWatch()
    before = watch.sample()
    held = torch.zeros(1 << 30, dtype=torch.uint8, device="cuda")
    after = watch.sample()
    properties = torch.cuda.get_device_properties(0)
    assert before["name"] == properties.name
    assert before["cards"] >= 1
    assert before["memory_total_bytes"] == pytest.approx(properties.total_memory, rel=0.05)
    assert after["memory_bytes"] >= held.nbytes
    assert after["peak_memory_bytes"] >= max(before["memory_bytes"], after["memory_bytes"])
    assert 0 <= after["utilisation"] <= 100
    assert 0 <= after["mean_utilisation"] <= 100
