"""A model as a judge, a person's spot check, and how far the two agree."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jobs.spec import SHA256, Frozen
from local.evaluation.document.comparison import Caveat, Outcome
from local.evaluation.document.measurement import Estimate, OutputsRef


class JudgeUsed(Frozen):
    """The judge. ``system`` and ``question``: its prompt, with names in braces for what differs from pair to pair.

    ``reference``: whether it saw the hold-out's answer; prices in dollars per million tokens, None if not known.
    """

    url: str
    model: str
    system: str
    question: str
    prompt_sha256: str = Field(pattern=SHA256)
    reference: bool
    max_tokens: int
    price_input: float | None = None
    price_output: float | None = None


class PositionBias(Frozen):
    """Whether the judge follows the place of an answer. Each pair was asked twice, with its sides swapped.

    ``first`` and ``second``: pairs in which it preferred the first (second) answer both times, or once with a tie;
    ``consistent``: pairs with the same verdict both times; ``p_value``: exact, that ``first`` and ``second`` are
    equally likely; ``named``: in words, such as "it always prefers the first answer"; empty if there is no bias.
    """

    consistent: int
    first: int
    second: int
    p_value: float
    named: str = ""


Standing = Literal["not checked by a person", "checked by a person", "contradicted by a person", "not used"]


class Judging(Frozen):
    """What a model as a judge prefers, pair by pair: the answers before and after to one row of the hold-out.

    All counts are of ``pairs`` rows. ``wins``: after is better, both times; ``losses``: before is; ``ties``: all
    others, among them ``inconsistent`` (another verdict with the sides swapped), ``identical`` (the same answers:
    nobody was asked) and ``failed`` (a request failed, or brought no verdict). ``unanswered``: rows where one side's
    own request had failed, which it loses without being judged; both sides' is a tie.
    ``win_rate``: (wins + ties / 2) / pairs; ``p_value``: exact, that wins and losses are equally likely; ``outcome``
    is what that test says, and "undecided" if the judge is not used. ``standing``: nothing but "checked by a person"
    may be a headline. ``sentence``: to be printed as it is, standing included. ``cost_usd``: of all requests, also
    those that came from the cache; None if a price is not known. ``verdicts``: one line a request.
    """

    judge: JudgeUsed
    pairs: int = Field(gt=0)
    wins: int
    losses: int
    ties: int
    inconsistent: int
    identical: int
    unanswered: int
    failed: int
    win_rate: Estimate
    p_value: float
    outcome: Outcome
    position: PositionBias
    standing: Standing
    sentence: str
    requests: int
    failed_requests: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    verdicts: OutputsRef
    warnings: tuple[Caveat, ...] = ()


class Agreement(Frozen):
    """Judge and person on the pairs that both decided. ``counts[i][j]``: pairs that the person called
    ``labels[i]`` and the judge ``labels[j]``; ``share``: where they agree; ``kappa``: Cohen's, with its 95 % interval;
    None where it is not defined (both said the same about every pair)."""

    n: int
    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    share: float
    kappa: float | None
    low: float | None
    high: float | None


class SpotCheck(Frozen):
    """A person's own blind verdict on drawn pairs.

    ``drawn``: pairs of the sample, drawn with ``seed``; the person preferred the answer ``after`` or ``before``, saw no
    difference (``ties``), or left it out (``skipped``); the rest is not voted yet. ``agreement``: with the judge, None
    without one. ``votes``: the file, as it was then.
    """

    drawn: int
    seed: int
    before: int
    after: int
    ties: int
    skipped: int
    agreement: Agreement | None
    sentence: str
    votes: OutputsRef
