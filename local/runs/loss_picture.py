"""The loss curve of a run as an SVG picture: readable alone, on a light and on a dark background, without a library.

Every step's loss is drawn faintly, and a running mean over it; evaluations are points. Stages are parted by a line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 76, 24, 76, 56
# Above this ratio of the largest to the smallest loss a linear axis would hide the end of the training.
LOG_RATIO = 25.0
TICKS = 6
# More than this can't be told apart at this width.
DRAWN = 1500

STYLE = """
text{font:14px system-ui,-apple-system,"Segoe UI",sans-serif;fill:#1f2328}
.title{font-size:16px;font-weight:600}.muted{fill:#57606a}
.back{fill:#ffffff}.grid{stroke:#d8dee4}.axis{stroke:#57606a}
.raw{stroke:#93b4f5;fill:none}.mean{stroke:#1d4ed8;fill:none;stroke-width:2.5}
.eval{fill:#c2410c;stroke:#ffffff}.evalline{stroke:#c2410c;fill:none;stroke-dasharray:4 4}
.stage{stroke:#57606a;stroke-dasharray:2 4}
@media (prefers-color-scheme:dark){
text{fill:#e6edf3}.muted{fill:#9da7b3}
.back{fill:#0d1117}.grid{stroke:#30363d}.axis{stroke:#9da7b3}
.raw{stroke:#4a6fae}.mean{stroke:#79aefc}
.eval{fill:#fb923c;stroke:#0d1117}.evalline{stroke:#fb923c}
.stage{stroke:#9da7b3}}
"""

Point = tuple[float, float]


@dataclass(frozen=True)
class _Axis:
    """A value's place on the picture. ``low`` and ``high`` are values, ``begin`` and ``end`` pixels."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, max(value, self._least())))
        return self.begin + (value - low) / (high - low) * (self.end - self.begin)

    def ticks(self, least: float = 0.0) -> list[float]:
        """Round values, ``least`` apart or more."""
        return _log_ticks(self.low, self.high) if self.log else _ticks(self.low, self.high, least)

    def _least(self) -> float:
        return self.low if self.log else -math.inf


def loss_picture(lines: Sequence[dict[str, Any]], title: str, note: str = "") -> str | None:
    """The picture, from the lines of ``metrics.jsonl``; None for a run without a step.

    Args:
        title, note: the two lines above it.
    """
    losses = _points(lines, "loss")
    evaluated = _points(lines, "eval_loss")
    if not losses:
        return None
    x = _x_axis([*losses, *evaluated], lines)
    y = _y_axis([loss for _, loss in (*losses, *evaluated)])
    stages = _stages(lines)
    means = [smoothed(part) for part in _parted(losses, stages)]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label="{escape(_spoken(losses, evaluated, title))}">',
        f"<style>{STYLE}</style>",
        f'<rect class="back" width="{WIDTH}" height="{HEIGHT}"/>',
        f'<text class="title" x="{LEFT}" y="26">{escape(title)}</text>',
        f'<text class="muted" x="{LEFT}" y="47">{escape(note)}</text>',
        *_grid(x, y),
        *_borders(stages, x),
        f'<path class="raw" d="{_path(_thinned(losses), x, y)}"/>',
        *(f'<path class="mean" d="{_path(_thinned(mean), x, y)}"/>' for mean in means),
        *_evaluations(lines, x, y),
        *_legend(bool(evaluated)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def smoothed(points: Sequence[Point]) -> list[Point]:
    """The mean of a window of a twentieth of the points around each; the window shrinks towards both ends."""
    half = len(points) // 40
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    result = []
    for i, (step, _) in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)
        result.append((step, (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1)))
    return result


def _points(lines: Iterable[dict[str, Any]], key: str) -> list[Point]:
    """(step, value) of each line that has the key as a finite number."""
    found = [(line.get("step"), line.get(key)) for line in lines]
    return [
        (float(step), float(value))
        for step, value in found
        if isinstance(step, int | float) and isinstance(value, int | float) and math.isfinite(value)
    ]


def _x_axis(points: Sequence[Point], lines: Sequence[dict[str, Any]]) -> _Axis:
    last = max(step for step, _ in points)
    planned = max((line["max_steps"] for line in lines if isinstance(line.get("max_steps"), int)), default=0)
    return _Axis(0.0, max(last, planned, 1.0), LEFT, WIDTH - RIGHT)


def _y_axis(values: Sequence[float]) -> _Axis:
    low, high = min(values), max(values)
    begin, end = float(HEIGHT - BOTTOM), float(TOP)
    if low > 0 and high / low > LOG_RATIO:
        return _Axis(low / 1.15, high * 1.15, begin, end, log=True)
    low = min(low, 0.0) if low < high / 3 else low
    margin = (high - low) * 0.06 or max(abs(high), 1e-6) * 0.1
    return _Axis(low if low == 0 else low - margin, high + margin, begin, end)


def _grid(x: _Axis, y: _Axis) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for value in y.ticks():
        at = round(y.at(value), 1)
        parts.append(f'<path class="grid" d="M{LEFT} {at}H{right}"/>')
        parts.append(f'<text x="{LEFT - 10}" y="{at + 5:g}" text-anchor="end">{_label(value)}</text>')
    for value in x.ticks(least=1.0):
        at = round(x.at(value), 1)
        parts.append(f'<path class="axis" d="M{at} {bottom}v5"/>')
        parts.append(f'<text x="{at}" y="{bottom + 22}" text-anchor="middle">{_label(value)}</text>')
    parts.append(f'<path class="axis" fill="none" d="M{LEFT} {TOP}V{bottom}H{right}"/>')
    middle = (LEFT + right) / 2
    parts.append(f'<text x="{middle:g}" y="{HEIGHT - 12}" text-anchor="middle">optimiser step</text>')
    name = "loss (logarithmic)" if y.log else "loss"
    high = (TOP + bottom) / 2
    parts.append(f'<text transform="translate(18 {high:g}) rotate(-90)" text-anchor="middle">{name}</text>')
    return parts


def _stages(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The first step of each stage, by name, if there are several."""
    begins: dict[str, float] = {}
    for line in lines:
        if isinstance(line.get("stage"), str) and isinstance(line.get("step"), int) and "loss" in line:
            begins.setdefault(line["stage"], float(line["step"]))
    return begins if len(begins) > 1 else {}


def _parted(points: list[Point], stages: dict[str, float]) -> list[list[Point]]:
    """The points of each stage: a mean over a border would tell of neither side."""
    edges = [-math.inf, *list(stages.values())[1:], math.inf]
    parts = [[p for p in points if low <= p[0] < high] for low, high in pairwise(edges)]
    return [part for part in parts if part]


def _borders(stages: dict[str, float], x: _Axis) -> list[str]:
    """The stages' names above the curve, and a line between one and the next."""
    parts = []
    for number, (name, step) in enumerate(stages.items()):
        at = round(x.at(step - 0.5), 1)
        parts.append(f'<text class="muted" x="{at + 4:g}" y="{TOP - 6}">{escape(name)}</text>')
        if number:
            parts.append(f'<path class="stage" d="M{at} {TOP - 18}V{HEIGHT - BOTTOM}"/>')
    return parts


def _evaluations(lines: Sequence[dict[str, Any]], x: _Axis, y: _Axis) -> list[str]:
    """A line for each stage: each has a loss of its own. One before a stage's first step is at the last of another."""
    names = dict.fromkeys(line.get("stage") for line in lines)
    parts = [_points((line for line in lines if line.get("stage") == name), "eval_loss") for name in names]
    drawn = [f'<path class="evalline" d="{_path(part, x, y)}"/>' for part in parts if part]
    dots = [f'<circle class="eval" cx="{x.at(a):.1f}" cy="{y.at(b):.1f}" r="4.5"/>' for part in parts for a, b in part]
    return drawn + dots


def _legend(evaluated: bool) -> list[str]:
    names = [("raw", "each step"), ("mean", "running mean")]
    right = WIDTH - RIGHT - (310 if evaluated else 225)
    parts = []
    for kind, name in names:
        parts.append(f'<path class="{kind}" d="M{right} 21h18"/><text x="{right + 24}" y="26">{name}</text>')
        right += 105
    if evaluated:
        right += 20
        dot = f'<circle class="eval" cx="{right + 8}" cy="21" r="4.5"/>'
        parts.append(f'{dot}<text x="{right + 20}" y="26">evaluated</text>')
    return parts


def _path(points: Sequence[Point], x: _Axis, y: _Axis) -> str:
    # A single point has no length; a dash of two pixels can be seen.
    dash = "h2" if len(points) == 1 else ""
    return "M" + "L".join(f"{x.at(a):.1f} {y.at(b):.1f}" for a, b in points) + dash


def _thinned(points: list[Point]) -> list[Point]:
    """No more points than can be seen; of each group its lowest and highest stay, so that no spike is lost."""
    if len(points) <= DRAWN:
        return points
    size = math.ceil(len(points) / (DRAWN / 2))
    kept: list[Point] = []
    for begin in range(0, len(points), size):
        group = points[begin : begin + size]
        kept += sorted({min(group, key=lambda p: p[1]), max(group, key=lambda p: p[1])})
    return kept


def _ticks(low: float, high: float, least: float) -> list[float]:
    """Round values: 1, 2 or 5 times a power of ten apart."""
    rough = max((high - low) / TICKS, least)
    power = 10 ** math.floor(math.log10(rough))
    step = next(n * power for n in (1, 2, 5, 10) if n * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with their doubles and fives where there are few of them."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 4 else (1,)
    values = [factor * 10.0**power for power in powers for factor in factors]
    return [value for value in values if low <= value <= high]


def _label(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    # Longer ones would run into the axis' name.
    return f"{value:.0e}" if 0 < abs(value) < 0.001 else f"{value:.4g}"


def _spoken(losses: Sequence[Point], evaluated: Sequence[Point], title: str) -> str:
    """What somebody hears who does not see the picture."""
    text = f"{title}: loss {losses[0][1]:.4g} at step {losses[0][0]:g}, {losses[-1][1]:.4g} at step {losses[-1][0]:g}"
    return text + (f"; held-out loss {evaluated[-1][1]:.4g} at last" if evaluated else "")
