"""The pictures' scales and lines."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local.evaluation.document.measurement import Estimate
from local.report.charts import MOST_POINTS, loss_plot, nice_scale, running_mean, scale_of, whisker
from local.report.model import Curve

finite = st.floats(-1e6, 1e6).map(lambda x: round(x, 4))


@given(finite, finite)
def test_an_axis_covers_its_values_with_a_few_round_ticks(a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    scale = nice_scale(low, high)
    slack = 1e-6 * max(abs(low), abs(high), 1)
    assert scale.low <= low + slack
    assert scale.high >= high - slack
    assert 2 <= len(scale.ticks) <= 9
    assert [tick.at for tick in scale.ticks] == sorted({tick.at for tick in scale.ticks})
    assert (scale.ticks[0].at, scale.ticks[-1].at) == (0, 100)
    assert len({tick.label for tick in scale.ticks}) == len(scale.ticks)
    for tick in scale.ticks:
        assert scale.at(float(tick.label)) == pytest.approx(tick.at, abs=0.6)


def test_a_share_is_drawn_between_0_and_100() -> None:
    estimate = Estimate(value=0.25, low=0.0, high=0.5, method="wilson")
    mark = whisker(scale_of([estimate], "share"), estimate)
    assert (mark.at, mark.low, mark.high) == (25, 0, 50)


def test_a_number_below_zero_has_its_place() -> None:
    estimates = [Estimate(value=v, low=v - 1, high=v + 1, method="bootstrap") for v in (-3.0, 5.0)]
    scale = scale_of(estimates, "number")
    marks = [whisker(scale, estimate) for estimate in estimates]
    assert 0 <= marks[0].low < marks[0].at < marks[1].at < marks[1].high <= 100


@given(st.lists(st.floats(0, 10), min_size=1, max_size=60), st.integers(1, 20))
def test_a_running_mean_stays_among_its_values(values: list[float], width: int) -> None:
    means = running_mean(values, width)
    assert len(means) == len(values)
    assert all(min(values) - 1e-9 <= mean <= max(values) + 1e-9 for mean in means)
    assert running_mean(values, 1) == pytest.approx(values)


def test_a_long_run_keeps_its_spikes_and_its_end() -> None:
    points = [(step, 1.0 + (5.0 if step == 7777 else 0.0)) for step in range(1, 20_001)]
    plot = loss_plot(Curve(tuple(points)))
    assert plot is not None
    drawn = [tuple(map(float, pair.split(","))) for pair in plot.raw.split(" ")]
    assert len(drawn) <= MOST_POINTS + 2
    assert min(y for _, y in drawn) == pytest.approx(100 - plot.y.at(6.0), abs=0.01)
    assert drawn[-1][0] == 100
    assert [x for x, _ in drawn] == sorted(x for x, _ in drawn)


def test_a_curve_of_one_step_is_no_curve() -> None:
    assert loss_plot(Curve(((1, 2.0),))) is None
    assert loss_plot(Curve(())) is None
    plot = loss_plot(Curve(((1, 2.0), (2, 2.0)), held_out=((2, 2.5),)))
    assert plot is not None
    assert [tick.label for tick in plot.x.ticks] == ["1", "2"]
    assert all(math.isfinite(value) for point in plot.held_out for value in point)
