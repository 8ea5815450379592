"""What counts as worse, and how it is said. `test_stages` measures real models."""

from __future__ import annotations

import pytest

from jobs.gate import Measured, said, worse
from jobs.scoring import Verdict


def measured(exact: int, valid: int, of: int = 20, loss: float = 1.0, general: float | None = None) -> Measured:
    verdicts = tuple(Verdict(i < valid, i < exact) for i in range(of))
    return Measured(verdicts, (loss,) * 20, () if general is None else (general,) * 4, 1.5)


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (measured(0, 0), measured(20, 20), ""),
        (measured(20, 20), measured(18, 20), "exact matches fell from 20 to 18 of 20"),
        (measured(8, 8, of=8), measured(7, 8, of=8), "exact matches fell from 8 to 7 of 8"),
        # One of twenty may be chance: then the loss decides, which every token has a say in.
        (measured(20, 20), measured(19, 20, loss=0.5), ""),
        (
            measured(20, 20),
            measured(19, 20, loss=2.0),
            "exact matches fell from 20 to 19 of 20, and the loss of the answers rose from 1.0000 to 2.0000",
        ),
        (measured(20, 20), measured(19, 18), "valid answers fell from 20 to 18 of 20"),
        # Exact matches decide, whatever else moved.
        (measured(10, 20), measured(11, 15, loss=9.0), ""),
        (measured(10, 15), measured(10, 13), "valid answers fell from 15 to 13 of 20"),
        (measured(10, 15), measured(10, 14), ""),
        # Where the metric speaks and is equal, the loss does not matter.
        (measured(10, 15), measured(10, 15, loss=9.0), ""),
        (measured(0, 5), measured(0, 5, loss=9.0), ""),
        # Where it says nothing, the loss decides; a small rise is no harm.
        (measured(0, 0), measured(0, 0, loss=1.04), ""),
        (measured(0, 0), measured(0, 0, loss=1.06), "the loss of the answers rose from 1.0000 to 1.0600"),
        (measured(0, 0, loss=0.001), measured(0, 0, loss=0.02), ""),
        (measured(0, 0, of=0), measured(0, 0, of=0, loss=2.0), "the loss of the answers rose from 1.0000 to 2.0000"),
        # The general set decides nothing.
        (measured(5, 5, general=1.0), measured(5, 5, general=9.0), ""),
    ],
)
def test_worse(before: Measured, after: Measured, why: str) -> None:
    assert worse(before, after) == why


def test_only_rows_that_both_have_are_compared() -> None:
    """The second measurement may have run out of time."""
    assert worse(measured(20, 20), measured(9, 9, of=10)) == "exact matches fell from 10 to 9 of 10"
    assert worse(measured(15, 15), measured(10, 10, of=10)) == ""


def test_a_measurement_survives_a_checkpoint_and_is_said_in_a_line() -> None:
    found = measured(5, 10, general=2.0)
    assert Measured.from_dict(found.as_dict()) == found
    assert said(found.numbers()) == (
        "exact match 25.0%, schema valid 50.0%, loss 1.0000, loss of the general set 2.0000 (20 rows)"
    )
    assert said(measured(0, 0, of=0).numbers()) == "loss 1.0000 (20 rows)"
