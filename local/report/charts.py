"""The pictures of the report, as numbers that a template draws: scales, ticks and lines. No markup here.

Everything is given in per cent of the picture's width or height, so one picture fits a screen, a phone and paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from local.evaluation.document.measurement import Estimate
from local.report.model import Curve

MOST_POINTS = 400
SMOOTH = 20


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where it stands, in per cent of its length, and what it says."""

    at: float
    label: str


@dataclass(frozen=True)
class Scale:
    """A linear axis from ``low`` to ``high``."""

    low: float
    high: float
    ticks: tuple[Tick, ...]

    def at(self, value: float) -> float:
        """Per cent of the axis; what lies outside is drawn at its end."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(max(share, 0.0), 1.0), 3)


@dataclass(frozen=True)
class Whisker:
    """A value with its interval on a ``Scale``."""

    at: float
    low: float
    high: float


@dataclass(frozen=True)
class LossPlot:
    """Lines as points of an SVG path in a box of 100 x 100, and the axes."""

    raw: str
    smooth: str
    held_out: tuple[tuple[float, float], ...]
    x: Scale
    y: Scale
    starts: tuple[Tick, ...]
    first: float
    last: float


def nice_scale(low: float, high: float, count: int = 5) -> Scale:
    """An axis that covers both and whose ticks are round numbers."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    step = _round_step((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    # As many digits as the step itself needs: 0.25 needs two.
    digits = next(count for count in range(20) if math.isclose(round(step, count), step, rel_tol=1e-6))
    span = last - first
    ticks = tuple(Tick(round(100 * i / span, 3), f"{(first + i) * step:.{digits}f}") for i in range(span + 1))
    return Scale(first * step, last * step, ticks)


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))


def scale_of(estimates: Sequence[Estimate], unit: str) -> Scale:
    """One axis for estimates that are drawn below each other: the whole of what is possible, or one that holds all."""
    if unit == "share":
        return Scale(0.0, 1.0, tuple(Tick(p, f"{p}%") for p in (0, 25, 50, 75, 100)))
    if unit == "ratio":
        return Scale(0.0, 1.0, tuple(Tick(p, f"{p / 100:g}") for p in (0, 25, 50, 75, 100)))
    bounds = [bound for estimate in estimates for bound in (estimate.low, estimate.high)]
    return nice_scale(min(0.0, *bounds), max(bounds))


def whisker(scale: Scale, estimate: Estimate) -> Whisker:
    return Whisker(scale.at(estimate.value), scale.at(estimate.low), scale.at(estimate.high))


def loss_plot(curve: Curve) -> LossPlot | None:
    """The picture of a loss curve; None where there are not two steps to draw a line between."""
    if len(curve.train) < 2:
        return None
    steps = [step for step, _ in curve.train]
    losses = [loss for _, loss in curve.train]
    smooth = running_mean(losses, min(SMOOTH, max(1, len(losses) // 10)))
    shown = [*losses, *(loss for _, loss in curve.held_out)]
    x, y = _steps(steps[0], steps[-1]), nice_scale(min(0.0, *shown), max(shown))
    return LossPlot(
        raw=_path(x, y, _thinned(list(zip(steps, losses, strict=True)))),
        smooth=_path(x, y, _thinned(list(zip(steps, smooth, strict=True)))),
        held_out=tuple((x.at(step), 100 - y.at(loss)) for step, loss in curve.held_out),
        x=x,
        y=y,
        starts=tuple(Tick(x.at(step), label) for step, label in curve.starts if step > steps[0]),
        first=smooth[0],
        last=smooth[-1],
    )


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """The mean of about ``width`` values around each place; fewer at the ends."""
    half = width // 2
    parts = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [math.fsum(part) / len(part) for part in parts]


def _steps(first: int, last: int) -> Scale:
    """The axis of steps begins and ends with the run, whatever the round numbers between."""
    step = max(1, round(_round_step((last - first) / 5)))
    inner = range((first // step + 1) * step, last, step)
    # A tick beside the end would stand in its label.
    marks = [first, *(at for at in inner if 0.08 < (at - first) / (last - first) < 0.92), last]
    return Scale(first, last, tuple(Tick(round(100 * (at - first) / (last - first), 3), f"{at:,}") for at in marks))


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Few enough points for a page, the last one among them; of each stretch its lowest and highest are kept."""
    if len(points) <= MOST_POINTS:
        return points
    size = math.ceil(2 * len(points) / MOST_POINTS)
    kept: list[tuple[int, float]] = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _path(x: Scale, y: Scale, points: Iterable[tuple[int, float]]) -> str:
    return " ".join(f"{x.at(step):g},{100 - y.at(loss):g}" for step, loss in points)
