"""What was measured beyond before and after, each as a section: forgetting, a judge, a person, other models."""

from __future__ import annotations

from collections.abc import Iterator

from local.evaluation.document.eval_json import Document
from local.evaluation.document.forgetting import Forgetting, GeneralExample
from local.evaluation.document.judging import Judging, SpotCheck
from local.evaluation.document.measurement import Metric
from local.evaluation.forgetting import RIGHT
from local.report import words
from local.report.measured import before_after, interval
from local.report.model import Example, Extra, Table

SHARE = Metric(unit="share", definition="")


def further(document: Document, others: list[Document]) -> tuple[Extra, ...]:
    """The sections that there are. ``others``: evaluations against another model than the base."""
    return tuple(_sections(document, others))


def _sections(document: Document, others: list[Document]) -> Iterator[Extra]:
    yield from map(_against, others)
    yield from map(_forgetting, document.forgetting)
    if document.judging is not None:
        yield _judging(document.judging)
    if document.spot_check is not None:
        yield _spot_check(document.spot_check)


def _against(document: Document) -> Extra:
    """The tuned model against another one than its base, on the same rows."""
    return Extra(
        title=f"Against {document.sides['before'].model.title}",
        sentence=document.verdict.sentence,
        outcome=document.verdict.outcome,
        warnings=tuple(caveat.text for caveat in document.warnings),
        tables=(before_after(document),),
    )


def _forgetting(found: Forgetting) -> Extra:
    rows = tuple(
        (name, str(part.n), interval(SHARE, part.before), interval(SHARE, part.after))
        for name, part in found.parts.items()
    )
    how = "answered rightly" if found.metric == RIGHT else f"by {found.metric}"
    whole = ("all", str(found.n), interval(SHARE, found.before), interval(SHARE, found.after))
    return Extra(
        title=f"What was forgotten: {found.title}",
        sentence=found.sentence,
        outcome=None if found.outcome == "nothing to forget" else found.outcome,
        warnings=tuple(caveat.text for caveat in found.warnings),
        tables=(
            Table(
                f"General questions {how}, with 95% intervals",
                ("questions", "n", "before", "after"),
                (*rows, whole),
            ),
        ),
        examples=tuple(map(_lost, found.regressions)),
    )


def _lost(found: GeneralExample) -> Example:
    return Example(
        row=0,
        title=f"{found.part}: {found.id}",
        question=words.clip(found.question),
        expected=words.clip(found.expected),
        before=words.clip(found.before),
        after=words.clip(found.after),
        note="",
    )


def _judging(found: Judging) -> Extra:
    rows = (
        ("after is better", str(found.wins)),
        ("before is better", str(found.losses)),
        ("no difference", str(found.ties)),
        ("of these: another verdict with the sides swapped", str(found.inconsistent)),
        ("of these: the same answers", str(found.identical)),
        ("of these: no verdict", str(found.failed)),
        ("lost without being judged, for want of an answer", str(found.unanswered)),
    )
    tokens = f"{words.number(found.prompt_tokens)} in, {words.number(found.completion_tokens)} out"
    about = (
        ("rate of wins, ties counted half", interval(SHARE, found.win_rate)),
        ("judge", f"{found.judge.model} at {found.judge.url}"),
        ("saw the expected answer", "yes" if found.judge.reference else "no"),
        ("prefers the place first, second", f"{found.position.first}, {found.position.second} of {found.pairs}"),
        ("requests, of which failed", f"{found.requests}, {found.failed_requests}"),
        ("tokens", tokens),
        ("cost", "not known" if found.cost_usd is None else words.money(found.cost_usd)),
        ("standing", found.standing),
    )
    return Extra(
        title="What a judging model says",
        sentence=found.sentence,
        # A judge that no person has checked gets no badge: only its sentence, which says so.
        outcome=found.outcome if found.standing == "checked by a person" else None,
        # What the sentence says already is not said twice.
        warnings=() if found.position.named else tuple(caveat.text for caveat in found.warnings),
        tables=(
            Table(f"Verdicts on {found.pairs} pairs, each asked twice", ("verdict", "pairs"), rows),
            Table("The judge", ("about", "value"), about),
        ),
    )


def _spot_check(found: SpotCheck) -> Extra:
    votes = (
        ("after is better", str(found.after)),
        ("before is better", str(found.before)),
        ("no difference", str(found.ties)),
        ("left out", str(found.skipped)),
        ("open", str(found.drawn - found.after - found.before - found.ties - found.skipped)),
    )
    tables = [Table(f"Blind votes on {found.drawn} pairs, drawn with seed {found.seed}", ("vote", "pairs"), votes)]
    agreed = found.agreement
    if agreed is not None:
        kappa = "not defined" if agreed.kappa is None else f"{agreed.kappa:.2f}"
        if agreed.low is not None and agreed.high is not None:
            kappa += f", 95% interval {agreed.low:.2f} to {agreed.high:.2f}"
        caption = f"Person and judge on {agreed.n} pairs: {words.percent(agreed.share)} agree (Cohen's kappa {kappa})"
        rows = tuple((label, *map(str, counts)) for label, counts in zip(agreed.labels, agreed.counts, strict=True))
        tables.append(Table(caption, ("the person said", *(f"judge: {label}" for label in agreed.labels)), rows))
    return Extra(title="What a person says", sentence=found.sentence, outcome=None, tables=tuple(tables))
