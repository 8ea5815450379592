"""The benchmarks run, and show what must hold without any timing: memory, bytes written, what is counted how."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks import startup, train
from benchmarks.random_models import SHAPES, config_of, make_rows
from tests.conftest import REPO
from tests.local.quantize_fixtures import make_tokenizer

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


@pytest.mark.train
@pytest.mark.timeout(600)
def test_ours_and_plain_trl_are_measured_alike(tmp_path: Path) -> None:
    args = train.parse(["--steps", "5", "--warm", "1", "--rows", "100", "--rounds", "1", "--length", "64"])
    assert args.ways == ["ours", "trl"]
    train.prepare("tiny", tmp_path, args)
    result = train.compare("tiny", "lora", tmp_path, args)
    (ours,), (theirs,) = result["ways"]["ours"], result["ways"]["trl"]
    for found in (ours, theirs):
        # The first step does not count, and the last one ends the clock.
        assert found["steps"] == 3
        assert found["settings"]["rows at once"] * found["settings"]["accumulation"] == train.ROWS_PER_STEP
        assert 0 < found["trained"] < found["tokens"] < 3 * train.ROWS_PER_STEP * 64
        assert min(found[name] for name in ("seconds", "training cpu", "before", "wall", "anonymous")) > 0
    # Other rows are drawn, from the same data.
    assert ours["tokens"] == pytest.approx(theirs["tokens"], rel=0.5)
    table = train.show(result)
    assert table.startswith("| tiny lora | tokens/s | tokens / CPU s |")
    assert f"| ours | {ours['tokens'] / ours['seconds']:,.0f} | " in table
    assert "| ours / trl | " in table
    assert "trl: rows at once 8, accumulation 2" in table


def test_no_way_is_always_the_first_to_go() -> None:
    ways = ["ours", "trl", "trl float32"]
    rounds = [train.in_turn(ways, number) for number in range(4)]
    assert [each[0] for each in rounds] == [*ways, "ours"]
    assert all(sorted(each) == ways for each in rounds)


def test_on_a_card_what_was_measured_stands_beside_the_estimate() -> None:
    tokens = [64] * 99 + [512]
    stage = train.stage_for("qlora", 10, 512, tokens, train.parameters_of("8B"))
    estimate = train.estimated("8B", stage, tokens, "NVIDIA A40", checkpointing=True)
    assert estimate is not None
    told = {"tokens": 50_000, "seconds": 10.0, "on card": 9e9}
    table = train.calibration({"size": "8B", "method": "qlora", "estimate": estimate, "ways": {"ours": [told, told]}})
    assert table[1].startswith("| A40, 8B qlora | estimate | measured |")
    assert "| 5,000, 5,000 |" in table[3]
    assert "| 9.0, 9.0 |" in table[4]
    assert train.estimated("8B", stage, tokens, "a card that nobody knows", checkpointing=True) is None


def test_every_size_has_an_estimate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train.main(["--estimate", "A10G", "--size", ",".join(SHAPES), "--method", "lora,qlora", "--rows", "50"])
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split(" |")[0] for line in lines] == [f"| {size} {m}" for size in SHAPES for m in ("lora", "qlora")]
    (tokenizer := tmp_path / "tokenizer").mkdir()
    make_tokenizer(tokenizer)
    found = make_rows(tmp_path / "rows.jsonl", 50, 200, tokenizer)
    assert max(found) == found[0] <= 200
    assert min(found) < 60
    assert len(json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])["messages"]) == 2


@pytest.mark.parametrize("size", SHAPES)
def test_a_size_is_as_large_as_it_is_called(size: str) -> None:
    import torch
    import transformers

    config = config_of(size)
    with torch.device("meta"):
        model = getattr(transformers, config.architectures[0])(config)
    assert train.parameters_of(size) == pytest.approx(model.num_parameters(), rel=0.001)
    if size != "tiny":
        assert model.num_parameters() == pytest.approx(float(size[:-1]) * 1e9, rel=0.05)


@pytest.mark.parametrize("wrong", ["--size 70B", "--method full", "--steps 4"])
def test_a_wrong_option_is_said_before_anything_is_made(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.parse(wrong.split())
    assert wrong in capsys.readouterr().err


def test_start_and_end_are_what_is_left_beyond_download_and_upload() -> None:
    phases = {"boot and pull": 9.0, "download": 30.0, "start-up": 9.0, "train": 60.0, "upload": 7.0, "teardown": 2.0}
    receipt = {"to_first_step": 39.0, "after_last_step": 11.0, "phases": phases}
    slow = {**receipt, "to_first_step": 46.0, "after_last_step": 14.0}
    found = startup.around(receipt)
    assert (found["start"], found["end"]) == (9.0, 4.0)
    table = startup.show([(0.5, receipt), (7.0, slow)])
    assert "| 0.5 | 39.0 | 30.0 | 9.0 | 11.0 | 7.0 | 4.0 | boot and pull 9.0, download 30.0" in table
    assert "start: 16.0 s at most, beyond the target of 15 s" in table
    assert "end: 7.0 s at most, beyond the target of 5 s" in table
    assert "start: 9.0 s at most, within" in startup.show([(0.5, receipt)])
