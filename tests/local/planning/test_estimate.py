from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from infra.gpus import Gpu, find_gpu
from jobs.spec import Stage
from local.planning.estimate import Estimate, Tokens, Work, estimate, needed, tokens_from_characters
from local.planning.fit import fits, ways_to_fit
from local.planning.measured import LEAST_STEPS, Speed, keep_speed, read_speeds, steady, table_path
from local.planning.vram import Memory
from tests.jobs.train_fixtures import SETTINGS
from tests.local.published import LLAMA2_7B, QWEN25_7B

TOKENS = Tokens((180.0, 320.0), (500, 900))


def stage(**changes: Any) -> Stage:
    usual = {"max_steps": 150, "batch_size": 4, "gradient_accumulation": 4, "max_length": 1024, "dtype": "auto"}
    return Stage(**{**SETTINGS, **usual, **changes})


def work(*stages: Stage, **changes: Any) -> Work:
    stages = stages or (stage(),)
    plain: dict[str, Any] = {"tokens": (TOKENS,) * len(stages)}
    return Work("owner/model", QWEN25_7B, None, stages, **{**plain, **changes})


def time_of(work: Work, gpu: Gpu) -> Estimate:
    found = estimate(work, gpu, 1)
    assert found is not None
    return found


def memory_of(work: Work, gpu: Gpu | None = None) -> Memory:
    found = needed(work, gpu, 1)
    assert found is not None
    return found


def card(name: str) -> Gpu:
    found = find_gpu(name)
    assert found is not None
    return found


def test_an_estimate_is_a_range_and_says_what_it_rests_on() -> None:
    told = time_of(work(), card("A10G"))
    assert 60 < told.least_seconds < told.most_seconds
    assert "lora of 7.6B parameters" in told.basis
    assert "A10G not measured yet" in told.basis


def test_more_work_takes_longer_and_a_faster_card_is_faster() -> None:
    usual = time_of(work(), card("A10G"))
    more = time_of(work(stage(max_steps=1500)), card("A10G"))
    two = time_of(work(stage(), stage()), card("A10G"))
    faster = time_of(work(), card("H100"))
    assert more.least_seconds > 3 * usual.least_seconds - 2 * 120
    assert usual.most_seconds < two.most_seconds < more.most_seconds
    assert faster.least_seconds < usual.least_seconds


def test_what_is_not_known_is_not_estimated() -> None:
    assert estimate(work(), None, 1) is None
    unknown = replace(work(), shape=None)
    assert (estimate(unknown, card("A10G"), 1), needed(unknown, card("A10G"), 1)) == (None, None)


def measured(**changes: Any) -> Speed:
    plain = {
        "run_id": "20261120-101010-ab12",
        "attempt": 1,
        "at": 1.0,
        "provider": "runpod",
        "gpu": "A10G",
        "cards": 1,
        "base": "owner/model",
        "shape": asdict(QWEN25_7B),
        "method": "lora",
        "rank": 16,
        "rows": 4,
        "length": 1024,
        "wide": False,
        "tokens": 1000.0,
        "seconds": 1.5,
        "before": 200.0,
    }
    return Speed(**{**plain, **changes})


def test_a_run_that_was_measured_narrows_the_range_and_is_named() -> None:
    blind = time_of(work(), card("A10G"))
    told = time_of(work(speeds=(measured(),)), card("A10G"))
    assert told.most_seconds / told.least_seconds < 0.6 * blind.most_seconds / blind.least_seconds
    assert "A10G measured in run 20261120-101010-ab12: 667 tokens/s" in told.basis
    elsewhere = time_of(work(speeds=(measured(gpu="L4"), measured(cards=2))), card("A10G"))
    assert elsewhere == blind


def test_a_measured_speed_of_the_same_training_is_met_exactly_in_the_middle() -> None:
    alone = work(stage(batch_size=1, gradient_accumulation=1, max_steps=100, activation_checkpointing=True))
    plain = replace(alone, tokens=(Tokens((1000.0, 1000.0), (1000, 1000)),))
    same = measured(rows=1, seconds=0.7, length=1000, checkpointing=True)
    told = time_of(replace(plain, speeds=(same,)), card("A10G"))
    assert told.least_seconds == pytest.approx(0.85 * 70 + 0.8 * 200)
    assert told.most_seconds == pytest.approx(1.25 * 70 + 1.5 * 200)


def test_another_base_on_the_same_card_helps_less() -> None:
    other = measured(base="owner/other", shape=asdict(LLAMA2_7B))
    near, far = (time_of(work(speeds=(s,)), card("A10G")) for s in (measured(), other))
    assert far.most_seconds / far.least_seconds > near.most_seconds / near.least_seconds
    assert "of owner/other (lora)" in far.basis


def test_a_training_that_is_too_big_is_told_what_would_fit() -> None:
    big = work(stage(batch_size=16, max_length=4096), tokens=(Tokens((3000.0, 4000.0), (4096, 4096)),))
    need = memory_of(big, card("A10G"))
    assert not fits(need, 24)
    ways = ways_to_fit(big, card("A10G"), 24, 1)
    texts = [way.text for way in ways]
    assert any("--gpu" in text for text in texts)
    assert any(text.startswith("train.") for text in texts)
    for way in ways:
        assert way.need.middle < need.middle or "--gpu" in way.text


def test_a_full_fine_tune_is_offered_the_quantised_adapter() -> None:
    full = work(stage(method="full", lora_r=None, lora_alpha=None, lora_dropout=None))
    need = memory_of(full, card("A100-80"))
    assert not fits(need, 80)
    assert "train.method: qlora" in [way.text for way in ways_to_fit(full, card("A100-80"), 80, 1)]


def test_a_card_without_bfloat16_needs_twice_the_memory_for_the_weights() -> None:
    t4, a10g = (memory_of(work(), card(name)) for name in ("T4", "A10G"))
    assert t4.parts["weights"] == 2 * a10g.parts["weights"]


def test_packed_rows_fill_their_blocks_and_a_pair_is_two_rows() -> None:
    plain, packed, pairs = (
        memory_of(work(s))
        for s in (
            stage(batch_size=2),
            stage(batch_size=2, packing=True),
            stage(batch_size=2, kind="dpo", beta=0.1, data={"path": "p", "sha256": "0" * 64, "bytes": 1}),
        )
    )
    assert packed.least > plain.least
    assert pairs.most > plain.most


def test_characters_stand_in_for_tokens_as_a_range() -> None:
    told = tokens_from_characters(1000, 4000)
    assert told.mean[0] < 1000 / 4 < told.mean[1]
    assert told.longest[0] < 4000 / 4 < told.longest[1]
    assert told.cut(512).longest[1] == 512


def steps(count: int, seconds: float, tokens: int) -> list[dict[str, Any]]:
    # The first step compiles kernels and takes ten times as long.
    lines, elapsed = [], 10 * seconds
    for step in range(1, count + 1):
        lines.append({"step": step, "loss": 1.0, "elapsed_s": elapsed, "tokens": step * tokens})
        elapsed += seconds
    return lines


def test_the_speed_is_that_of_the_steady_steps() -> None:
    assert steady(steps(100, 0.5, 300)) == pytest.approx((0.5, 300))
    assert steady(steps(LEAST_STEPS, 0.5, 300)) is None
    assert steady([*steps(100, 0.5, 300), {"step": 100, "eval_loss": 0.3}], first_step=50) == pytest.approx((0.5, 300))
    assert steady([]) is None


def test_the_table_keeps_each_attempt_once_and_survives_damage(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "speeds.json"
    keep_speed(measured(), path)
    keep_speed(measured(seconds=2.5), path)
    keep_speed(measured(run_id="20261120-101010-cd34"), path)
    assert [(s.run_id[-4:], s.seconds) for s in read_speeds(path)] == [("ab12", 2.5), ("cd34", 1.5)]
    path.write_text(path.read_text().replace('"seconds": 2.5', '"seconds": "fast"'))
    assert [s.run_id[-4:] for s in read_speeds(path)] == ["cd34"]
    for damage in ('"layers": 28', '"tokens": 1000.0'):
        alone = tmp_path / "alone.json"
        keep_speed(measured(), alone)
        whole = alone.read_text()
        assert len(read_speeds(alone)) == whole.count(damage) == 1
        alone.write_text(whole.replace(damage, damage.partition(":")[0] + ": Infinity"))
        assert read_speeds(alone) == ()
        alone.unlink()
    path.write_text("{")
    assert read_speeds(path) == ()


def test_the_table_lies_in_the_users_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert table_path() == Path.home() / ".local/share/cloudft/speeds.json"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert table_path() == tmp_path / "cloudft/speeds.json"
    monkeypatch.setenv("CLOUDFT_DATA", str(tmp_path / "own"))
    assert table_path() == tmp_path / "own/speeds.json"


def test_a_table_that_cannot_be_written_is_let_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    keep_speed(measured(), tmp_path / "file" / "speeds.json")
    assert read_speeds(tmp_path / "file" / "speeds.json") == ()
