"""Divergence is the textbook's, and there is always a finer type to try until there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from local.quantizing.divergence import compare, finer, limit_of, steps_up
from local.quantizing.quant_types import offered


def test_divergence_and_agreement() -> None:
    ours = np.log(np.array([[0.5, 0.5, 1e-30], [0.2, 0.8, 1e-30]], dtype=np.float32))  # a padded vocabulary
    theirs = np.log(np.array([[0.25, 0.75], [0.2, 0.8]], dtype=np.float32)) + 7
    kl, agreement = compare(ours, theirs)
    assert kl == pytest.approx((0.25 * math.log(0.5) + 0.75 * math.log(1.5)) / 2, rel=1e-5)
    assert agreement == 0.5
    assert compare(theirs, theirs) == (pytest.approx(0, abs=1e-12), 1.0)


def test_a_file_may_lose_five_times_what_its_type_costs_and_never_more_than_another_model_would() -> None:
    limits = {kind: limit_of(kind) for kind in ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S", "Q3_K_M", "IQ1_S")}
    assert list(limits.values()) == [0.02, 0.02, 0.03, 0.05, 0.16, 0.22, 0.3, 0.3]


def test_the_steps_up() -> None:
    assert [finer(kind) for kind in ("IQ2_XS", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16", "F32")] == [
        *("Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16"),
        *(None, None),
    ]
    assert steps_up("Q4_K_M") == ["Q5_K_M", "Q6_K", "Q8_0"]
    assert steps_up("IQ2_XS") == ["Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"]
    assert steps_up("Q8_0") == steps_up("F16") == []
    for kind in offered():
        better = finer(kind)
        assert better is None or limit_of(better) <= limit_of(kind)
