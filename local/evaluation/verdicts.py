"""From a judge's verdicts to what they say about the models, and about the judge. Pure: nothing is asked here.

Every pair was asked twice, with its answers in both orders. A verdict counts only if it is the same both times; so
a judge that follows the place of an answer can't move the result, it only makes ties. But then its ties say nothing
either, which is why it is called by name and not used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from jobs.spec import Frozen
from local.evaluation.document.comparison import Caveat, Outcome
from local.evaluation.document.judging import PositionBias
from local.evaluation.document.measurement import Estimate
from local.evaluation.judge_prompt import ORDERS, Order, Place
from local.evaluation.pairs import Pair
from local.evaluation.statistics import ALPHA, mcnemar, newcombe

Preference = Literal["before", "after", "tie"]
PREFERENCES: Final[tuple[Preference, ...]] = ("before", "tie", "after")
# Fewer pairs than this may all go to one place by chance.
FEWEST_ALWAYS: Final = 3


class VerdictLine(Frozen):
    """One request to the judge: one line of ``judge-verdicts.jsonl``, by row, then order.

    ``said``: all that it answered, None if the request failed; ``verdict``: None also if its last line held none.
    """

    row: int
    pair_sha256: str
    order: Order
    verdict: Place | None
    said: str | None
    error: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Judged:
    """One pair. ``preference``: of the judge, both times; a tie also where the two contradict each other. ``how``: why
    it is so; ``places``: the verdicts as given, by order."""

    pair: Pair
    preference: Preference
    how: Literal["judged", "inconsistent", "identical", "unanswered", "failed"]
    places: Mapping[Order, Place] | None = None


def judged(pairs: Sequence[Pair], lines: Sequence[VerdictLine]) -> list[Judged]:
    """What became of every pair."""
    by_pair = {(line.pair_sha256, line.order): line for line in lines}
    return [_judged(pair, [by_pair.get((pair.sha256, order)) for order in ORDERS]) for pair in pairs]


def _judged(pair: Pair, lines: Sequence[VerdictLine | None]) -> Judged:
    if pair.before is None or pair.after is None:
        wins: Preference = "tie" if pair.before == pair.after else "after" if pair.before is None else "before"
        return Judged(pair, wins, "unanswered")
    if pair.same:
        return Judged(pair, "tie", "identical")
    places = [line.verdict if line else None for line in lines]
    if places[0] is None or places[1] is None:
        return Judged(pair, "tie", "failed")
    said: Mapping[Order, Place] = {ORDERS[0]: places[0], ORDERS[1]: places[1]}
    preferred = {_preferred(order, place) for order, place in said.items()}
    if len(preferred) > 1:
        return Judged(pair, "tie", "inconsistent", said)
    return Judged(pair, preferred.pop(), "judged", said)


def _preferred(order: Order, place: Place) -> Preference:
    if place == "tie":
        return "tie"
    return "before" if (order == "before first") == (place == "first") else "after"


def count_preferences(found: Sequence[Judged]) -> dict[Preference, int]:
    counts = Counter(one.preference for one in found)
    return {preference: counts[preference] for preference in PREFERENCES}


def win_rate(wins: int, losses: int, ties: int) -> Estimate:
    """(wins + ties / 2) / pairs: half of one plus the difference of two shares, whose interval is Newcombe's."""
    n = wins + losses + ties
    low, high = newcombe(0, wins, losses, ties)
    return Estimate(value=(wins + ties / 2) / n, low=(1 + low) / 2, high=(1 + high) / 2, method="wilson")


def preference_test(wins: int, losses: int) -> tuple[float, Outcome]:
    """The exact sign test that wins and losses are equally likely, and what it says."""
    p = mcnemar(wins, losses)
    return p, "undecided" if p >= ALPHA else "better" if wins > losses else "worse"


def position_bias(found: Sequence[Judged]) -> PositionBias:
    """Whether the judge follows the place. It is named if more than half of its pairs go by the place, beyond chance,
    or if all of them do."""
    leanings = [_leaning(one.places) for one in found if one.places]
    first, second = sum(x > 0 for x in leanings), sum(x < 0 for x in leanings)
    always = sum(abs(x) == 2 for x in leanings)
    p, most, n = mcnemar(first, second), max(first, second), len(leanings)
    place, named = ("first" if first >= second else "second"), ""
    if most == n == always and n >= FEWEST_ALWAYS:
        named = f"it always prefers the {place} answer, in whichever order it sees the two (all {n} pairs)"
    elif p < ALPHA and most > n / 2:
        named = f"it prefers the {place} answer, in whichever order it sees the two ({most} of {n} pairs)"
    return PositionBias(consistent=n - first - second, first=first, second=second, p_value=p, named=named)


def _leaning(places: Mapping[Order, Place]) -> int:
    """How much a pair's verdicts lean to the first place: 2 for both, 1 for one and a tie, 0 for none."""
    values = list(places.values())
    return values.count("first") - values.count("second")


def judge_caveats(found: Sequence[Judged], bias: PositionBias) -> tuple[Caveat, ...]:
    """What a reader must know about the judge."""
    asked = [one for one in found if one.how in ("judged", "inconsistent", "failed")]
    failed = sum(one.how == "failed" for one in found)
    verdicts = len(asked) - failed
    said = []
    if bias.named:
        said.append(Caveat(code="judge-position", text=f"The judge is not used: {bias.named}."))
    elif bias.p_value < ALPHA:
        place, count = ("first", bias.first) if bias.first > bias.second else ("second", bias.second)
        text = f"The judge leans to the {place} answer: in {count} of {verdicts} pairs. Those count as ties."
        said.append(Caveat(code="judge-position", text=text))
    inconsistent = sum(one.how == "inconsistent" for one in found)
    if not bias.named and verdicts and inconsistent > verdicts / 2:
        text = f"The judge contradicted itself in {inconsistent} of {verdicts} pairs when their sides were swapped."
        said.append(Caveat(code="judge-inconsistent", text=text))
    if failed:
        text = f"{failed} of {len(asked)} pairs got no verdict (a request failed, or ended without one): ties."
        said.append(Caveat(code="judge-failed", text=text))
    return tuple(said)


def unusable(found: Sequence[Judged], bias: PositionBias) -> str:
    """Why the judge's verdict can't be used; empty if it can."""
    if bias.named:
        return bias.named
    asked = [one for one in found if one.how in ("judged", "inconsistent", "failed")]
    failed = sum(one.how == "failed" for one in asked)
    if asked and failed > len(asked) / 2:
        return f"it gave no verdict on {failed} of {len(asked)} pairs"
    return ""
