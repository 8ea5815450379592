"""Intervals, tests and sample sizes against scipy, against published numbers, and against their own promises."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local.evaluation import statistics as ours
from local.evaluation.bootstrap import Spread, bca_levels, resampled_sums, spread_of

calm = settings(deadline=None, max_examples=60)
tables = st.tuples(*[st.integers(0, 60)] * 4).filter(any)


@calm
@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_agrees_with_scipy_and_stays_in_bounds(case: tuple[int, int]) -> None:
    from scipy.stats import binomtest

    hits, n = case
    low, high = ours.wilson(hits, n)
    theirs = binomtest(hits, n).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert 0 <= low <= hits / n <= high <= 1


def test_wilson_is_the_published_interval() -> None:
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3 (Wilson).
    for hits, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert ours.wilson(hits, n) == pytest.approx((low, high), abs=5e-5)


@calm
@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_agrees_with_scipys_exact_binomial_test(gained: int, lost: int) -> None:
    from scipy.stats import binomtest

    found = ours.mcnemar(gained, lost)
    assert found == pytest.approx(binomtest(gained, gained + lost).pvalue if gained + lost else 1.0, rel=1e-9)
    assert ours.mcnemar(lost, gained) == found


def test_mcnemar_counts_changes_of_any_number() -> None:
    assert 0 < ours.mcnemar(5000, 4800) < 1
    assert 0 <= ours.mcnemar(3000, 0) < 1e-300


def test_newcombe_is_the_published_interval() -> None:
    # Fagerland, Lydersen and Laake 2014, Statistics in Medicine 33:2850-2875: airway hyper-responsiveness before and
    # after stem cell transplantation (1, 1, 7, 12), "Newcombe square-and-add".
    assert ours.newcombe(both=1, gained=7, lost=1, neither=12) == pytest.approx((0.026, 0.507), abs=5e-4)


@calm
@given(tables)
def test_newcombe_holds_the_change_and_mirrors(table: tuple[int, int, int, int]) -> None:
    both, gained, lost, neither = table
    low, high = ours.newcombe(both, gained, lost, neither)
    assert -1 <= low <= (gained - lost) / sum(table) <= high <= 1
    assert ours.newcombe(both, lost, gained, neither) == pytest.approx((-high, -low), abs=1e-12)


@pytest.mark.parametrize(("gains", "loses"), [(0.3, 0.1), (0.05, 0.05), (0.6, 0.0)])
def test_newcombe_covers_the_truth_as_often_as_it_says(gains: float, loses: float) -> None:
    """All tables of 25 rows, each with its probability, where half of the unchanged rows hit both times."""
    from scipy.stats import multinomial

    n, same = 25, (1 - gains - loses) / 2
    cells = np.array([c for c in product(range(n + 1), repeat=3) if sum(c) <= n])
    cells = np.column_stack([cells, n - cells.sum(axis=1)])
    chance = multinomial.pmf(cells, n, [same, gains, loses, same])
    likely = chance > 1e-9
    covered = [low <= gains - loses <= high for low, high in (ours.newcombe(*map(int, c)) for c in cells[likely])]
    assert 0.94 <= chance[likely][np.array(covered)].sum() <= 0.995


@calm
@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), min_size=1, max_size=6))
def test_holm_rejects_what_the_step_by_step_procedure_rejects(p_values: dict[str, float]) -> None:
    adjusted = ours.holm(p_values)
    assert list(adjusted) == list(p_values)
    rejected = set()
    for done, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        if (len(p_values) - done) * p >= 0.05:
            break
        rejected.add(name)
    assert {name for name, p in adjusted.items() if p < 0.05} == rejected
    assert all(p <= adjusted[name] <= 1 for name, p in p_values.items())


@pytest.mark.parametrize(("gained", "lost"), [(0.15, 0.05), (0.2, 0.1), (0.1, 0.0), (0.6, 0.1), (0.08, 0.05)])
def test_so_many_rows_show_the_change_with_the_power_that_is_promised(gained: float, lost: float) -> None:
    from scipy.stats import binom

    n = ours.pairs_needed(gained, lost)
    assert n is not None

    def power(rows: int) -> float:
        """Of the exact test: over the number of changes, and the gains among them."""
        changing = gained + lost
        total = 0.0
        for changed in range(rows + 1):
            weight = binom.pmf(changed, rows, changing)
            if weight > 1e-9:
                found = [k for k in range(changed + 1) if ours.mcnemar(k, changed - k) < 0.05]
                total += weight * binom.pmf(found, changed, gained / changing).sum()
        return float(total)

    if n < 800:  # the rest takes too long
        assert 0.68 <= power(n) <= 0.9
        assert power(max(2, n // 3)) < 0.55
    assert ours.pairs_needed(lost, gained) == n


def test_no_number_of_rows_shows_a_difference_that_is_not_there() -> None:
    assert ours.pairs_needed(0.1, 0.1) is None
    assert ours.pairs_needed(0, 0) is None
    assert ours.rows_needed(0, 0.1, 100, differ=9) is None
    assert ours.rows_needed(0.1, 0.1, 100, differ=0) is None
    # Twice the rows halve the variance; at z = 2.8 the power is 80 %.
    assert ours.rows_needed(0.1, 0.1 / 2.8016, 100, differ=100) == 100
    assert ours.rows_needed(0.1, 0.1 / 1.4008, 100, differ=100) == pytest.approx(400, abs=1)
    # However large the change, six rows must differ: one in ten does.
    assert ours.rows_needed(0.5, 0.0, 30, differ=3) == 60


@pytest.mark.parametrize("n", [6, 20, 77, 500])
def test_the_smallest_change_has_the_promised_power_and_no_smaller_one(n: int) -> None:
    from scipy.stats import binom

    least = ours.smallest_change(n)
    assert least is not None
    assert ours.mcnemar(ours.FEWEST_CHANGES, 0) < 0.05 <= ours.mcnemar(ours.FEWEST_CHANGES - 1, 0)
    assert binom.sf(ours.FEWEST_CHANGES - 1, n, least) == pytest.approx(0.8, abs=1e-4)


def test_five_rows_show_nothing() -> None:
    assert ours.smallest_change(5) is None
    assert ours.mcnemar(5, 0) >= 0.05


def test_the_spread_is_the_sample_standard_deviation() -> None:
    assert ours.spread(()) is ours.spread((1.0,)) is None
    assert ours.spread((0.2, 0.4, 0.9)) == pytest.approx(np.std([0.2, 0.4, 0.9], ddof=1))


@settings(calm, max_examples=15)
@given(st.integers(0, 2**32), st.integers(20, 60), st.sampled_from(["normal", "exponential", "beta"]))
def test_the_bootstrap_interval_is_scipys_on_the_same_resamples(seed: int, n: int, kind: str) -> None:
    """With twenty rows or more no resample is likely to be the rows themselves, a tie that sums make or break."""
    from scipy.stats import bootstrap

    random = np.random.default_rng(seed)
    data = random.beta(5, 0.5, n) if kind == "beta" else getattr(random, kind)(size=n)
    parts = np.column_stack([np.ones(n), data])
    spread = spread_of(parts, resampled_sums(parts, resamples=499), lambda sums: sums[..., 1] / sums[..., 0])
    assert spread.value == pytest.approx(data.mean())
    found = bootstrap((data,), np.mean, n_resamples=0, method="BCa", bootstrap_result=_Drawn(spread))
    theirs = found.confidence_interval
    assert spread.interval() == pytest.approx((theirs.low, theirs.high), rel=1e-9, abs=1e-9)
    assert spread.error == pytest.approx(found.standard_error)


class _Drawn:
    """What scipy goes on from, in place of resamples of its own."""

    def __init__(self, spread: Spread) -> None:
        self.bootstrap_distribution = spread.resampled


def test_the_same_seed_draws_the_same_rows_and_every_row_is_drawn() -> None:
    parts = np.eye(7)
    drawn = resampled_sums(parts, resamples=300)
    assert (drawn == resampled_sums(parts, resamples=300)).all()
    assert (drawn.sum(axis=1) == 7).all()
    assert drawn.mean(axis=0) == pytest.approx(np.ones(7), abs=0.25)
    assert (drawn != resampled_sums(parts, resamples=300, seed=1)).any()


def test_drawing_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = resampled_sums(np.eye(5), resamples=50)
    monkeypatch.setattr("local.evaluation.bootstrap._AT_ONCE", 15)
    assert (resampled_sums(np.eye(5), resamples=50) == whole).all()


def test_an_interval_of_the_bootstrap_covers_the_truth() -> None:
    random = np.random.default_rng(5)
    covered = 0
    for trial in range(120):
        parts = np.column_stack([np.ones(60), random.beta(2, 1, 60)])
        drawn = resampled_sums(parts, resamples=400, seed=trial)
        low, high = spread_of(parts, drawn, lambda sums: sums[..., 1] / sums[..., 0]).interval()
        covered += low <= 2 / 3 <= high
    assert covered >= 105  # 114 are expected


def test_where_the_correction_is_not_defined_the_plain_quantiles_are_taken() -> None:
    lopsided = Spread(0.0, np.linspace(1, 2, 100), np.array([0.0, 0.1]))
    assert bca_levels(lopsided) == pytest.approx((0.025, 0.975))
    still = Spread(1.0, np.ones(10), np.ones(3))
    assert still.interval() == (1.0, 1.0)
    assert still.constant
    undefined = Spread(1.0, np.array([1.0, math.nan, 3.0]), np.array([1.0, math.nan]))
    assert len(undefined.defined) == 2


def test_a_paired_difference_is_tested_on_the_same_rows() -> None:
    random = np.random.default_rng(2)
    before = random.random(50)
    one = np.ones(50)

    def p_of(after: np.ndarray) -> float:
        parts = np.column_stack([one, before, after])
        drawn = resampled_sums(parts)
        first = spread_of(parts[:, :2], drawn[:, :2], lambda s: s[..., 1] / s[..., 0])
        second = spread_of(parts[:, [0, 2]], drawn[:, [0, 2]], lambda s: s[..., 1] / s[..., 0])
        return (second - first).p_value()

    # Each row a little better: invisible beside the spread between rows, plain within them.
    assert p_of(before + random.normal(0.02, 0.02, 50)) < 0.001
    assert p_of(before + random.normal(0.0, 0.02, 50) - 0.0) > 0.01
    assert p_of(before) == 1.0
