"""Which losses end a training, and which do not."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from jobs.course import COURSE, Course, Evaluation
from jobs.divergence import WINDOW, LossWatch, evaluated, stuck


def first_wrong(losses: Iterable[float]) -> int | None:
    """The step, from 1, after which the watch ends the training."""
    watch = LossWatch()
    return next((step for step, loss in enumerate(losses, 1) if watch.add(loss)), None)


def falling(steps: int, start: float = 2.5, end: float = 0.4) -> list[float]:
    noise = random.Random(steps)
    return [end + (start - end) * math.exp(-step / 30) + noise.uniform(-0.1, 0.1) for step in range(steps)]


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_ends_it_at_once(loss: float) -> None:
    assert first_wrong([2.0, loss]) == 2


@pytest.mark.parametrize("high", [8.0, 3.0])
def test_a_loss_that_stays_above_its_beginning_ends_it_within_a_window(high: float) -> None:
    wrong = first_wrong([*falling(100), *[high] * 100])
    assert wrong is not None
    assert 100 < wrong <= 100 + WINDOW


def test_a_rate_that_is_too_high_from_the_start_ends_it() -> None:
    assert first_wrong([2.5, 2.4, 2.5, 2.6, 3.0, *[9.0] * 40]) is not None


@pytest.mark.parametrize(
    "losses",
    [
        pytest.param(falling(400), id="it learns"),
        pytest.param([*falling(100), *[9.0] * 8, *falling(100, start=2.0)], id="a spike that passes"),
        pytest.param([*falling(100), *([9.0, 0.4, 0.4] * 60)], id="a third of the rows is odd"),
        pytest.param([0.9, *[0.02] * 50, *[0.3] * 50], id="small losses in relation to each other"),
        pytest.param([0.69] * 30 + [0.2] * 30 + [0.68] * 60, id="preferences that are forgotten again"),
        pytest.param([2.2] * 300, id="nothing is learned"),
        pytest.param([*falling(60), *[1.9] * 100], id="worse than its best, better than its beginning"),
    ],
)
def test_what_may_come_back_goes_on(losses: Sequence[float]) -> None:
    assert first_wrong(losses) is None


@pytest.mark.parametrize(
    ("loss", "began", "ends"),
    [(math.nan, None, True), (9.0, None, False), (9.0, 2.0, True), (3.9, 2.0, False), (0.9, 0.1, False)],
)
def test_a_validation_loss_is_compared_with_the_one_before_the_first_step(
    loss: float, began: float | None, ends: bool
) -> None:
    assert bool(evaluated(loss, began)) is ends


@pytest.mark.parametrize(
    ("losses", "began", "ends"),
    [
        pytest.param([6.8, 6.8, 6.8], 6.06, True, id="as it was measured with a rate of 300"),
        pytest.param([7.1, 7.4, 7.2], 6.06, True, id="about the same"),
        pytest.param([1.9, 2.4, 2.9], 2.0, False, id="the first is not above it"),
        pytest.param([2.3, 2.5, 2.9], 2.0, True, id="it rises"),
        pytest.param([0.4, 7.0, 7.0, 7.0], 6.06, True, id="lost again what it had learned"),
        pytest.param([6.8, 6.8], 6.06, False, id="twice may be chance"),
        pytest.param([6.9, 6.8, 6.7], 6.06, False, id="it falls"),
        pytest.param([6.8, 6.8, 6.7], 6.06, False, id="it begins to fall"),
        pytest.param([6.5, 6.5, 6.5], 6.06, False, id="hardly above"),
        pytest.param([6.06, 6.05, 6.06, 6.05], 6.06, False, id="a rate too low to learn"),
        pytest.param([0.83, 0.9, 0.94], 0.693, False, id="preferences, forgotten"),
        pytest.param([0.3, 0.3, 0.3], 0.05, False, id="small losses in relation to each other"),
        pytest.param([6.8, 6.8, 6.8], None, False, id="nothing to compare with"),
    ],
)
def test_evaluations_that_stay_above_the_beginning_end_it(
    losses: Sequence[float], began: float | None, ends: bool
) -> None:
    assert bool(stuck(losses, began)) is ends


@pytest.mark.parametrize(
    ("losses", "learns"),
    [
        ([2.5] * 19, True),  # nobody can tell yet
        (falling(60), True),
        ([5.77, 5.73, 11.4, *[6.8] * 30], False),
        ([5.77, 9.0, 14.0, 14.0, 9.0, *[5.0] * 30], True),
        ([2.2] * 60, False),
        ([0.693] * 5 + [0.4] * 30, True),
    ],
)
def test_a_training_learns_when_its_loss_is_below_that_of_the_untrained_model(
    losses: Sequence[float], learns: bool
) -> None:
    watch = LossWatch()
    for loss in losses:
        watch.add(loss)
    assert watch.learns is learns


def test_it_says_from_where_to_where_the_loss_rose() -> None:
    watch = LossWatch()
    said = [watch.add(loss) for loss in [*[2.5] * 5, *[0.5] * 40, *[7.0] * WINDOW]]
    told = next(text for text in said if text)
    assert "2.5" in told
    assert "0.5" in told


def test_what_was_measured_travels_with_a_checkpoint_and_older_ones_have_less(tmp_path: Path) -> None:
    course = Course(evaluations=[Evaluation(0, 2.0)], watched=[Evaluation(0, 6.0), Evaluation(20, 6.8)])
    course.write(tmp_path)
    assert Course.read(tmp_path) == course
    value = json.loads((tmp_path / COURSE).read_text())
    del value["watched"]
    (tmp_path / COURSE).write_text(json.dumps(value))
    assert Course.read(tmp_path) == Course(evaluations=[Evaluation(0, 2.0)])
