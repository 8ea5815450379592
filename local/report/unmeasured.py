"""What a report cannot say, in words: nobody should take silence for a good result."""

from __future__ import annotations

from collections.abc import Iterator

from jobs.spec import RunSpec
from local.report.model import CardFacts, Evaluated, ModelFacts, Money


def unmeasured(
    run_id: str, spec: RunSpec, evaluated: Evaluated | None, model: ModelFacts | None, card: CardFacts, money: Money
) -> tuple[str, ...]:
    """Sentences, the weightiest first."""
    return tuple(_sentences(run_id, spec, evaluated, model, card, money))


def _sentences(
    run_id: str, spec: RunSpec, evaluated: Evaluated | None, model: ModelFacts | None, card: CardFacts, money: Money
) -> Iterator[str]:
    if evaluated is None:
        yield f"Whether the model is any better than its base. Measure it: cloudft eval {run_id}"
    else:
        yield from _beyond(run_id, evaluated)
    if model is not None and model.kl is None:
        yield "How far the quantised file is from the 16-bit merge: it was made without that measurement."
    yield f"How much the result depends on chance in training: there is one run, with seed {spec.seed}."
    yield "How fast the model answers under the load of your own use, and on your own hardware."
    if money.open:
        yield "What the run has cost in the end: a machine may still cost something."
    if card.missing:
        yield f"Of the data, only a person can say {'; '.join(card.missing)}: data.card in cloudft.yaml does not."


def _beyond(run_id: str, evaluated: Evaluated) -> Iterator[str]:
    document = evaluated.document
    if document.n < document.held_out_rows:
        rest = document.held_out_rows - document.n
        yield f"{rest} of the {document.held_out_rows} rows of the hold-out: only the first {document.n} were asked."
    yield (
        "How the model does on inputs unlike those in your data: the hold-out was drawn from the same file, or is as "
        "you gave it."
    )
    if len(document.decoding.seeds) == 1:
        yield "How much answers vary when they are asked again: each row was asked once."
    if document.ladder is None:
        yield f"What merging, quantising and serving each cost: cloudft eval {run_id} --ladder"
    if not document.forgetting:
        yield f"What the model forgot of what its base could do otherwise: cloudft eval {run_id} --general basics"
    if document.judging is None and document.spot_check is None:
        yield f"What a person thinks of the answers; only metrics have judged them: cloudft review {run_id}"
    elif document.spot_check is None:
        yield f"Whether a person agrees with the judge: cloudft review {run_id}"
