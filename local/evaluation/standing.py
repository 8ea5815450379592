"""How much a judge's verdict is worth, and the sentences that say so. Pure."""

from __future__ import annotations

from typing import Final

from local.evaluation.agreement import ENOUGH_SHARE, beyond_chance
from local.evaluation.document.comparison import Outcome
from local.evaluation.document.judging import Agreement, Standing

ENOUGH: Final = 20
"""Votes of a person, before a judge counts as checked; where there are fewer pairs, all of them."""


def standing_of(unusable: str, agreement: Agreement | None, comparable: int) -> Standing:
    """What may be made of the judge. Votes that agree with it, but too few to show it, are no check.

    Args:
        unusable: why its verdict can't be used, or empty.
        agreement: with a person's votes, None without any.
        comparable: pairs that the judge gave a verdict on.
    """
    if unusable:
        return "not used"
    if agreement is None or agreement.n < min(ENOUGH, comparable):
        return "not checked by a person"
    if beyond_chance(agreement):
        return "checked by a person"
    return "contradicted by a person" if agreement.share < ENOUGH_SHARE else "not checked by a person"


def judge_sentence(
    wins: int, losses: int, ties: int, p: float, outcome: Outcome, standing: Standing, unusable: str
) -> str:
    """The judge's result, never without what it is worth."""
    pairs = wins + losses + ties
    if standing == "not used":
        return f"the judge's verdict is not used: {unusable}"
    counts = f"after {wins}, before {losses}, ties {ties} of {pairs} pairs ({_p(p)})"
    said = {
        "better": f"the judge prefers the answers after tuning: {counts}",
        "worse": f"the judge prefers the answers before tuning: {counts}",
        "undecided": f"the judge finds no difference that {pairs} pairs can show: {counts}",
    }[outcome]
    return f"{said}; {standing}"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def review_sentence(before: int, after: int, ties: int, agreement: Agreement | None) -> str:
    """The person's own verdict, and how far the judge shares it."""
    votes = before + after + ties
    said = (
        f"a person preferred the answer after tuning in {after} of {votes} pairs, before in {before}, neither in {ties}"
    )
    if agreement is None:
        return said
    agreed = f"; the judge agrees on {agreement.share:.0%} of {agreement.n}"
    if agreement.kappa is None:
        return f"{said}{agreed} (kappa is not defined: all said the same)"
    return f"{said}{agreed} (Cohen's kappa {agreement.kappa:.2f} [{agreement.low:.2f}, {agreement.high:.2f}])"
