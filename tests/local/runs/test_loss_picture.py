from __future__ import annotations

import math
import random
import re
from typing import Any
from xml.etree import ElementTree

import pytest

from cloudft.sparkline import BARS, sparkline
from local.runs.loss_picture import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, loss_picture, smoothed

SVG = "{http://www.w3.org/2000/svg}"


Lines = list[dict[str, Any]]


def steps(count: int, begin: float = 2.4, end: float = 0.4, stage: str = "1-sft", first: int = 1) -> Lines:
    rng = random.Random(3)
    falling = [(begin - end) * math.exp(-5 * i / count) + end for i in range(count)]
    return [
        {"stage": stage, "step": first + i, "max_steps": count, "loss": loss * rng.uniform(0.8, 1.2)}
        for i, loss in enumerate(falling)
    ]


def drawn(lines: Lines) -> ElementTree.Element:
    picture = loss_picture(lines, "run 20261120-101010-ab12", "base <&> note")
    assert picture is not None
    return ElementTree.fromstring(picture)


def paths(root: ElementTree.Element, kind: str) -> list[list[tuple[float, float]]]:
    found = [p.get("d", "") for p in root.iter(f"{SVG}path") if p.get("class") == kind]
    pairs = [re.findall(r"(-?[\d.]+) (-?[\d.]+)", text) for text in found if "L" in text or "h2" in text]
    return [[(float(x), float(y)) for x, y in pair] for pair in pairs]


def words(root: ElementTree.Element) -> list[str]:
    return [text.text or "" for text in root.iter(f"{SVG}text")]


def test_every_step_lies_inside_the_axes_and_later_is_lower() -> None:
    root = drawn(steps(200))
    (raw,), (mean,) = paths(root, "raw"), paths(root, "mean")
    assert len(raw) == len(mean) == 200
    assert all(LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM for x, y in raw)
    assert [x for x, _ in raw] == sorted(x for x, _ in raw)
    # Downwards is a larger y.
    assert mean[0][1] < mean[50][1] < mean[-1][1]


def test_axes_legend_and_title_are_words() -> None:
    said = words(drawn([*steps(100), {"step": 50, "eval_loss": 0.9}, {"step": 100, "eval_loss": 0.5}]))
    for word in ("optimiser step", "loss", "each step", "running mean", "evaluated", "base <&> note"):
        assert word in said
    assert {"0", "20", "100"} <= set(said)


def test_evaluations_are_points_and_stages_are_parted() -> None:
    two = [*steps(80, stage="1-cpt"), *steps(40, 0.6, 0.2, "2-sft", first=81)]
    root = drawn([*two, {"step": 80, "eval_loss": 0.5}])
    assert len(list(root.iter(f"{SVG}circle"))) == 2  # one in the legend
    assert {"1-cpt", "2-sft"} <= set(words(root))
    assert [len(part) for part in paths(root, "mean")] == [80, 40]


def test_evaluations_are_joined_within_a_stage_only() -> None:
    found = [("1-cpt", 0, 2.0), ("1-cpt", 80, 0.5), ("2-sft", 80, 0.9), ("2-sft", 120, 0.3)]
    evaluated = [{"stage": stage, "step": step, "eval_loss": loss} for stage, step, loss in found]
    root = drawn([*steps(80, stage="1-cpt"), *steps(40, stage="2-sft", first=81), *evaluated])
    assert [len(part) for part in paths(root, "evalline")] == [2, 2]
    assert len(list(root.iter(f"{SVG}circle"))) == 5


def test_a_loss_that_falls_far_gets_a_logarithmic_axis() -> None:
    assert "loss (logarithmic)" in words(drawn(steps(100, 2.4, 0.001)))
    assert "loss (logarithmic)" not in words(drawn(steps(100)))
    # Its figures leave room for its name.
    assert all(len(word) <= 5 for word in words(drawn(steps(100, 2.4, 1e-8))) if re.fullmatch(r"[\d.]+(e-\d+)?", word))


@pytest.mark.parametrize("values", [[1.0], [0.5, 0.5], [0.0, 0.0], [-1.0, -2.0], [3.0, 0.0], [1e-9, 2e-9], [1e6, 2e6]])
def test_odd_losses_are_drawn_too(values: list[float]) -> None:
    lines = [{"step": i, "loss": value} for i, value in enumerate(values, 1)]
    (raw,) = paths(drawn(lines), "raw")
    assert all(math.isfinite(x) and TOP <= y <= HEIGHT - BOTTOM for x, y in raw)


def test_without_a_step_there_is_no_picture() -> None:
    assert loss_picture([], "run", "") is None
    assert loss_picture([{"step": 1, "eval_loss": 2.0}, {"step": 2, "loss": math.nan}], "run", "") is None


def test_a_long_run_stays_small_and_keeps_its_spike() -> None:
    lines = steps(50_000)
    lines[31_234]["loss"] = 9.0
    picture = loss_picture(lines, "run", "")
    assert picture is not None
    assert len(picture) < 200_000
    (raw,) = paths(ElementTree.fromstring(picture), "raw")
    assert min(y for _, y in raw) < TOP + 0.1 * (HEIGHT - BOTTOM - TOP)


def test_it_is_readable_on_both_backgrounds() -> None:
    """The words and points must stand out from what is behind them: 4.5 to 1, lines 3 to 1 (WCAG 2.2)."""
    style = "".join(drawn(steps(9)).find(f"{SVG}style").itertext())  # type: ignore[union-attr]
    light, dark = style.split("@media (prefers-color-scheme:dark){")
    for rules in (light, dark):
        colours = {
            name: value
            for names, body in re.findall(r"([^{}]+){([^{}]*)}", rules)
            for name in names.strip().split(",")
            for value in re.findall(r"(?:fill|stroke):(#[0-9a-f]{6})", body)[:1]
        }
        back = _luminance(colours[".back"])
        assert (back > 0.5) == (rules is light)
        for mark, least in (("text", 4.5), (".muted", 4.5), (".eval", 3), (".mean", 3), (".axis", 3)):
            assert _contrast(back, _luminance(colours[mark])) >= least, mark


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(a: float, b: float) -> float:
    return (max(a, b) + 0.05) / (min(a, b) + 0.05)


def test_a_running_mean_keeps_the_level_and_calms_the_noise() -> None:
    rng = random.Random(5)
    noisy = [(float(i), 1 + rng.uniform(-0.5, 0.5)) for i in range(400)]
    calm = smoothed(noisy)
    spread = [max(v for _, v in p) - min(v for _, v in p) for p in (noisy, calm[50:350])]
    assert spread[1] < spread[0] / 2
    assert sum(v for _, v in calm) / 400 == pytest.approx(sum(v for _, v in noisy) / 400, rel=0.02)
    assert [v for _, v in smoothed(noisy[:5])] == pytest.approx([v for _, v in noisy[:5]])


def test_a_sparkline_goes_the_way_the_loss_goes() -> None:
    line = sparkline([8, 7, 6, 5, 4, 3, 2, 1])
    assert line == BARS[::-1]
    assert len(sparkline([float(n % 7) for n in range(1000)], 10)) == 10
    assert sparkline([3.0, 3.0]) == BARS[0] * 2
    assert sparkline([]) == sparkline([math.nan]) == ""
