"""The person's spot check of a run: which pairs, what was voted, and what that makes of the judge."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from cloudft.errors import DataError, IntegrityError
from local.evaluation.agreement import agreement
from local.evaluation.document.eval_json import Document, read_document
from local.evaluation.document.judging import Judging, SpotCheck
from local.evaluation.document.measurement import OutputsRef
from local.evaluation.document.outputs import read_outputs
from local.evaluation.evaluate import alone
from local.evaluation.pairs import Pair, make_pairs
from local.evaluation.sections import write_sections
from local.evaluation.standing import judge_sentence, review_sentence, standing_of
from local.evaluation.verdicts import PREFERENCES, Judged, VerdictLine, judged, unusable
from local.evaluation.votes import VOTES, VoteFile, draw, read_votes
from local.project import RunFolder

NOTHING: Final = "no vote was changed"


@dataclass(frozen=True)
class Review:
    """A sample of a run's pairs, with the votes on it."""

    run: RunFolder
    pairs: tuple[Pair, ...]
    votes: VoteFile
    seed: int


def pairs_of(run: RunFolder, document: Document) -> list[Pair]:
    """All pairs of an evaluation; the judged ones, if there was a judge."""
    before, after = (read_outputs(run, document.sides[label].outputs) for label in ("before", "after"))
    pairs = make_pairs(before, after)
    return pairs[: document.judging.pairs] if document.judging else pairs


def open_review(run: RunFolder, count: int, seed: int) -> Review:
    """Draw the sample, and read the votes that there are.

    Raises:
        NotFound: the run was not evaluated.
        IntegrityError: its answers, or the votes, are damaged.
        DataError: no two answers differ, so there is nothing to vote on.
    """
    pairs = pairs_of(run, read_document(run))
    sample = draw(pairs, count, seed)
    if not sample:
        raise DataError(
            f"no answer of run {run.run_id} differs from the one before tuning: there is nothing to compare",
            effect=NOTHING,
        )
    return Review(run, tuple(pairs), VoteFile(run.root / VOTES, sample, seed), seed)


def record_review(review: Review) -> Document:
    """Put the votes, and what they say about the judge, into the run's evaluation. Without a vote nobody has checked
    anything, and nothing is said of a person.

    Raises:
        Busy: the run is being evaluated; the votes are kept, and the next review or judging counts them.
    """
    with alone(review.run):
        document = read_document(review.run)
        found = judged_pairs(review.run, review.pairs, document.judging)
        check = spot_check(review, found) if review.votes.votes else None
        sections: dict[str, Any] = {"spot_check": check}
        if document.judging is not None and found is not None:
            sections["judging"] = with_standing(document.judging, found, check)
        return write_sections(review.run, **sections)


def earlier_review(run: RunFolder, pairs: Sequence[Pair], count: int, document: Document) -> Review | None:
    """The review that the run's votes belong to; None if nobody voted on these answers."""
    lines = read_votes(run.root / VOTES)
    if not lines:
        return None
    old, seed = document.spot_check, lines[-1].seed
    votes = VoteFile(run.root / VOTES, draw(pairs, old.drawn if old else count, seed), seed)
    return Review(run, tuple(pairs), votes, seed) if votes.votes else None


def spot_check(review: Review, found: Sequence[Judged] | None) -> SpotCheck:
    """What the person voted. ``found``: the judge's verdicts, None without a judge."""
    votes = review.votes.votes
    counts = Counter(votes.values())
    by_pair = {one.pair.sha256: one.preference for one in found or () if one.places is not None}
    both = [sha256 for sha256, choice in votes.items() if choice != "skip" and sha256 in by_pair]
    agreed = agreement(PREFERENCES, [votes[one] for one in both], [by_pair[one] for one in both])
    raw = review.votes.path.read_bytes() if review.votes.path.is_file() else b""
    return SpotCheck(
        drawn=len(review.votes.sample),
        seed=review.seed,
        before=counts["before"],
        after=counts["after"],
        ties=counts["tie"],
        skipped=counts["skip"],
        agreement=agreed,
        sentence=review_sentence(counts["before"], counts["after"], counts["tie"], agreed),
        votes=OutputsRef(path=VOTES, sha256=hashlib.sha256(raw).hexdigest(), lines=raw.count(b"\n")),
    )


def with_standing(judging: Judging, found: Sequence[Judged], check: SpotCheck | None) -> Judging:
    """The judge's result with what a person's votes make of it."""
    reason = unusable(found, judging.position)
    comparable = sum(one.places is not None for one in found)
    standing = standing_of(reason, check.agreement if check else None, comparable)
    said = judge_sentence(
        judging.wins, judging.losses, judging.ties, judging.p_value, judging.outcome, standing, reason
    )
    return judging.model_copy(update={"standing": standing, "sentence": said})


def judged_pairs(run: RunFolder, pairs: Sequence[Pair], judging: Judging | None) -> list[Judged] | None:
    """The judge's verdicts on the pairs, from its file; None without a judge.

    Raises:
        IntegrityError: the file is not what the judging wrote.
    """
    if judging is None:
        return None
    path: Path = run.root / judging.verdicts.path
    try:
        raw = path.read_bytes()
        if hashlib.sha256(raw).hexdigest() != judging.verdicts.sha256:
            raise ValueError("it is not what the judge said")
        lines = [VerdictLine.model_validate(json.loads(line)) for line in raw.split(b"\n") if line]
    except (OSError, ValueError, ValidationError) as exc:
        raise IntegrityError(
            f"{path} cannot be used: {exc}", effect=NOTHING, hint=f"judge again:  cloudft eval {run.run_id} --judge"
        ) from exc
    return judged(pairs, lines)
