"""Kappa against scikit-learn's, and how honest its interval is."""

from __future__ import annotations

import random

import pytest
from sklearn.metrics import cohen_kappa_score, confusion_matrix

from local.evaluation.agreement import agreement, beyond_chance
from local.evaluation.verdicts import PREFERENCES


def raters(n: int, agree: float, seed: int) -> tuple[list[str], list[str]]:
    """Two raters: the second repeats the first with a share of ``agree``, and guesses otherwise."""
    rng = random.Random(seed)
    person = rng.choices(PREFERENCES, weights=[2, 1, 3], k=n)
    judge = [said if rng.random() < agree else rng.choice(PREFERENCES) for said in person]
    return list(person), list(judge)


@pytest.mark.parametrize("seed", range(40))
def test_it_agrees_with_scikit_learn(seed: int) -> None:
    person, judge = raters(5 + seed, (seed % 5) / 4, seed)
    found = agreement(PREFERENCES, person, judge)
    assert found is not None
    assert found.n == len(person)
    assert found.kappa == pytest.approx(cohen_kappa_score(person, judge, labels=list(PREFERENCES)))
    assert found.counts == tuple(map(tuple, confusion_matrix(person, judge, labels=list(PREFERENCES)).tolist()))
    assert found.low is not None
    assert found.high is not None
    assert -1 <= found.low <= found.kappa <= found.high <= 1


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """30 votes, drawn again and again from raters whose kappa over many votes is known."""
    for agree in (0.2, 0.5, 0.8):
        person, judge = raters(60_000, agree, 1)
        truth = cohen_kappa_score(person, judge)
        hits = 0
        for at in range(0, 30_000, 30):
            found = agreement(PREFERENCES, person[at : at + 30], judge[at : at + 30])
            assert found is not None
            hits += found.low is not None and found.high is not None and found.low <= truth <= found.high
        assert hits / 1000 > 0.92


def test_perfect_agreement_on_a_few_votes_is_not_certain() -> None:
    person = ["after"] * 6 + ["before"] * 6
    found = agreement(PREFERENCES, person, person)
    assert found is not None
    assert found.kappa == 1
    assert found.low is not None
    assert 0.4 < found.low < 0.9
    assert beyond_chance(found)


def test_nothing_to_compare_and_nothing_to_tell() -> None:
    assert agreement(PREFERENCES, [], []) is None
    same = agreement(PREFERENCES, ["after"] * 25, ["after"] * 25)
    assert same is not None
    assert (same.kappa, same.low, same.high, same.share) == (None, None, None, 1.0)
    assert beyond_chance(same), "all votes agree, though kappa has nothing to say"


def test_an_agreement_that_chance_explains_is_none() -> None:
    person, judge = raters(30, 0.0, 5)
    found = agreement(PREFERENCES, person, judge)
    assert found is not None
    assert not beyond_chance(found)
    opposite = agreement(PREFERENCES, ["after"] * 20 + ["before"] * 5, ["before"] * 20 + ["after"] * 5)
    assert opposite is not None
    assert not beyond_chance(opposite)


def test_where_nearly_all_go_one_way_the_share_decides() -> None:
    found = agreement(PREFERENCES, ["after"] * 28 + ["tie"] * 2, ["after"] * 30)
    assert found is not None
    assert found.kappa == pytest.approx(0)
    assert beyond_chance(found)
