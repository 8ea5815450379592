"""The benchmark of quantising runs, and shows what must hold without any timing: memory and bytes written."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import REPO

# Both hold more than may be in flight at once, so that what differs is the number of layers alone.
FEW, MANY = 8, 28


@pytest.fixture
def quantize(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/quantize.py, with shapes that take seconds."""
    spec = importlib.util.spec_from_file_location("benchmark_quantize", REPO / "benchmarks" / "quantize.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shape = {"vocab_size": 2048, "hidden_size": 512, "intermediate_size": 4096, "num_attention_heads": 8}
    shape |= {"num_key_value_heads": 2, "tie_word_embeddings": True}
    for layers in FEW, MANY:
        module.SHAPES[str(layers)] = ("Qwen2", shape | {"num_hidden_layers": layers})
    return module


def test_memory_does_not_grow_with_the_layers(quantize: ModuleType, tmp_path: Path) -> None:
    peaks = {}
    for size in (str(FEW), str(MANY)):
        folder = tmp_path / size
        quantize.make(folder, size)
        found = quantize.measured("one pass", folder)
        assert found["written"] < (folder / "onepass.gguf").stat().st_size + 100_000  # no file beside the result
        peaks[size] = found["anonymous"]
    # Twenty layers more are 550 MB in float32. What may be in flight is bounded, whatever the number of layers.
    assert peaks[str(MANY)] - peaks[str(FEW)] < 200e6
    assert peaks[str(FEW)] > 100e6  # it was measured at all


def test_the_ways_are_compared_in_one_table(quantize: ModuleType) -> None:
    row = {"wall": 1.0, "cpu": 1.0, "anonymous": 1e6, "resident": 1e6, "written": 1e9}
    steps = {"merge": row, "convert": row | {"anonymous": 4e6}, "quantise alone": row | {"wall": 2.0}}
    result = {**steps, "today": quantize.together(list(steps.values())), "one pass": row}
    table = quantize.show(result)
    assert "one pass / today: wall 0.25, cpu 0.33, anonymous 0.25, resident 1.00, written 0.33" in table
    assert "one pass / quantise alone: wall 0.50, cpu 1.00" in table
    assert "| today | 4.0 | 3.0 | 4 | 1 | 3.00 |" in table
