"""What only a GPU shows. Without one these tests are skipped, also in CI: none is to be had there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.random_models import make_base, make_rows

SIZE = "0.5B"
LENGTH = 512


@pytest.fixture(scope="session", autouse=True)
def gpu() -> None:
    """A card that PyTorch can use."""
    if shutil.which("nvidia-smi") is None:
        pytest.skip("needs a GPU: there is no nvidia-smi")
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a GPU: PyTorch sees none")


@pytest.fixture(scope="session")
def random_base(gpu: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model of random weights, in the shape of Qwen2.5-0.5B; its conversations lie beside it."""
    folder = tmp_path_factory.mktemp("random")
    make_base(folder / "base", SIZE)
    make_rows(folder / "rows.jsonl", 160, LENGTH, folder / "base")
    yield folder / "base"
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def rows(random_base: Path) -> list[list[dict[str, str]]]:
    lines = (random_base.parent / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"] for line in lines]
