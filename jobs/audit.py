"""The label audit: what the model will learn from, looked at token by token before it learns.

Most fine-tunes that go wrong without a word go wrong here: the end of an answer outside of the loss, so that the model
never stops; a prompt that is tokenised otherwise once the answer follows; rows cut so short that nothing of the answer
is left; a tokenizer that does not give back the text that it was given. Each is counted, with the numbers of its rows.

It runs twice: before anything is rented, with the base's tokenizer alone, and on the machine before the first step. The
same code does both; nothing heavy is imported.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from jobs import ranks
from jobs.outcome import TrainError
from jobs.progress import stage_name
from jobs.rendering import (
    Example,
    Message,
    Rendered,
    RenderError,
    Tokenizer,
    encode_answer,
    has_training_tags,
    refuse_inner_stop,
    render_answer,
)
from jobs.runlog import say
from jobs.spec import FileRef, RunSpec, Stage

# So many row numbers are named; a person looks at the first ones.
SHOWN = 20
# On the machine every second is billed: of more rows than this, as many are looked at, spread over all.
LOOKED_AT = 2000
NAME = "audit.json"


@dataclass(frozen=True)
class Rows:
    """How many rows something is true of, and the numbers of the first."""

    count: int = 0
    first: tuple[int, ...] = ()

    def __str__(self) -> str:
        named = ", ".join(map(str, self.first[:5]))
        more = ", …" if self.count > 5 else ""
        return f"{self.count} row{'s' * (self.count != 1)} ({named}{more})"


@dataclass(frozen=True)
class StageAudit:
    """One stage's rows. Tokens are counted after cutting; ``mean`` and ``longest`` (of an example) before.

    ``looked_at`` of ``rows`` rows gave ``examples`` examples: an answer each, a document's pieces, or the two answers
    of a pair. ``ended`` examples have the token that ends an answer inside the loss. ``cut`` rows are longer than the
    stage's ``max_length``; of ``nothing`` rows nothing would be learned. ``apart``: the prompt alone has other tokens
    than at the beginning of the whole. ``changed``: text → tokens → text is not the same. ``refused``: the template
    does not take them, and ``refusal`` says why of the first.
    """

    stage: str
    kind: str
    max_length: int
    rows: int
    looked_at: int
    examples: int
    tokens: int
    trained: int
    mean: float
    longest: int
    ended: int
    cut: Rows = Rows()
    nothing: Rows = Rows()
    apart: Rows = Rows()
    changed: Rows = Rows()
    refused: Rows = Rows()
    refusal: str = ""

    @property
    def trained_share(self) -> float:
        return self.trained / self.tokens if self.tokens else 0.0

    @property
    def problem(self) -> str:
        """Why this stage must not begin; empty if it may."""
        if self.refused.count:
            return f"stage {self.stage}: the chat template refuses {self.refused}: {self.refusal}"
        if self.nothing.count:
            return (
                f"stage {self.stage}: of {self.nothing} nothing would be learned within {self.max_length} tokens: "
                f"raise train.max_length to {self.longest}, or shorten the rows"
            )
        if not self.trained:
            return f"stage {self.stage}: no token counts in the loss"
        return ""

    def lines(self) -> list[str]:
        """For a person: what there is, then what is odd."""
        some = f" (looked at {self.looked_at})" if self.looked_at < self.rows else ""
        text = [
            f"{self.stage}: {self.rows} rows{some}, {self.tokens:,} tokens, {self.trained_share:.0%} of them in the "
            f"loss; the longest has {self.longest} of {self.max_length}"
        ]
        if self.kind != "cpt":
            all_of = "all" if self.ended == self.examples else f"{self.ended} of"
            text.append(f"{all_of} {self.examples} answers end with their end token inside the loss")
        odd = (
            (self.cut, f"longer than max_length, and cut; train.max_length: {self.longest} would hold them whole"),
            (self.apart, "with a prompt that is tokenised otherwise alone; trained as it is served, alone"),
            (self.changed, "that the tokenizer does not give back as they were"),
        )
        return text + [f"warning: {rows} {what}" for rows, what in odd if rows.count]


@dataclass(frozen=True)
class Audit:
    """All stages. ``where``: "home", before renting, or "machine". ``training_tags``: the template has tags that only
    training understands; they stay in the trained one, and are taken out of the one that is served."""

    where: str
    template_sha256: str
    template_origin: str
    training_tags: bool
    stages: tuple[StageAudit, ...]

    @property
    def problem(self) -> str:
        return next((stage.problem for stage in self.stages if stage.problem), "")

    def lines(self) -> list[str]:
        text = [line for stage in self.stages for line in stage.lines()]
        if self.training_tags:
            text.append("the template's {% generation %} tags stay with the adapter; the served one goes without")
        return text

    def as_dict(self) -> dict[str, Any]:
        value = asdict(self)
        for told, stage in zip(value["stages"], self.stages, strict=True):
            told["trained_share"] = round(stage.trained_share, 4)
        return value


@dataclass
class _Tally:
    """What was found so far in one stage."""

    max_length: int
    examples: int = 0
    tokens: int = 0
    trained: int = 0
    length_sum: int = 0
    longest: int = 0
    ended: int = 0
    refusal: str = ""
    found: dict[str, list[int]] = field(default_factory=dict)

    def note(self, what: str, number: int) -> None:
        numbers = self.found.setdefault(what, [])
        if not numbers or numbers[-1] != number:
            numbers.append(number)

    def add(self, number: int, example: Example, stops: frozenset[int]) -> None:
        """An example before it is cut."""
        length = len(example.input_ids)
        self.length_sum += length
        self.longest = max(self.longest, length)
        if length > self.max_length:
            self.note("cut", number)
        kept = Example(example.input_ids[: self.max_length], example.labels[: self.max_length])
        if not kept.trained:
            self.note("nothing", number)
            return
        self.examples += 1
        self.tokens += len(kept.input_ids)
        self.trained += kept.trained
        self.ended += kept.labels[-1] in stops

    def result(self, stage: str, kind: str, rows: int, looked_at: int) -> StageAudit:
        counted = {what: Rows(len(numbers), tuple(numbers[:SHOWN])) for what, numbers in self.found.items()}
        return StageAudit(
            stage=stage,
            kind=kind,
            max_length=self.max_length,
            rows=rows,
            looked_at=looked_at,
            examples=self.examples,
            tokens=self.tokens,
            trained=self.trained,
            mean=round(self.length_sum / max(self.examples + len(self.found.get("nothing", ())), 1), 1),
            longest=self.longest,
            ended=self.ended,
            refusal=self.refusal,
            **counted,
        )


@dataclass(frozen=True)
class Reader:
    """Tokenizer and template of a run; ``stops``: ids of the tokens that end an answer."""

    tokenizer: Tokenizer
    template: str
    stops: frozenset[int]

    def audit(
        self, stage: str, kind: str, max_length: int, rows: Sequence[dict[str, Any]], numbers: Sequence[int], most: int
    ) -> StageAudit:
        """Look at the rows of one stage.

        Args:
            rows: as a data file of that kind has them (``jobs.stage_data``).
            numbers: of the rows, to be named by.
            most: look at so many of them, spread over all.
        """
        tally = _Tally(max_length)
        chosen = spread(len(rows), most)
        for index in chosen:
            try:
                self._look(tally, kind, rows[index], numbers[index])
            except RenderError as exc:
                tally.note("refused", numbers[index])
                tally.refusal = tally.refusal or str(exc)
        return tally.result(stage, kind, len(rows), len(chosen))

    def _look(self, tally: _Tally, kind: str, row: dict[str, Any], number: int) -> None:
        if kind == "cpt":
            self._document(tally, row["text"], number)
        elif kind == "dpo":
            self._pair(tally, row, number)
        else:
            for messages in answers(row["messages"]):
                tally.add(number, self._answer(tally, messages, number), self.stops)

    def _answer(self, tally: _Tally, messages: Sequence[Message], number: int) -> Example:
        refuse_inner_stop(messages[-1]["content"], self.tokenizer, self.stops)
        rendered = render_answer(self.tokenizer, self.template, messages)
        self._round_trip(tally, rendered, number)
        return encode_answer(self.tokenizer, rendered, self.stops)

    def _round_trip(self, tally: _Tally, rendered: Rendered, number: int) -> None:
        text = rendered.prompt + rendered.completion
        prompt = self.tokenizer.encode(rendered.prompt, add_special_tokens=False)
        whole = self.tokenizer.encode(text, add_special_tokens=False)
        if whole[: len(prompt)] != prompt:
            tally.note("apart", number)
        if self._decoded(whole) != text:
            tally.note("changed", number)

    def _decoded(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _document(self, tally: _Tally, text: str, number: int) -> None:
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if self._decoded(ids) != text:
            tally.note("changed", number)
        whole = [*ids, int(self.tokenizer.eos_token_id)]
        tally.longest = max(tally.longest, len(whole))
        pieces = [whole[at : at + tally.max_length] for at in range(0, len(whole), tally.max_length)]
        for piece in pieces:
            # A lone token has nothing before it that could tell it.
            if len(piece) > 1:
                tally.add(number, Example(piece, list(piece)), self.stops)

    def _pair(self, tally: _Tally, row: dict[str, Any], number: int) -> None:
        both = []
        for name in ("chosen", "rejected"):
            messages = [*row["prompt"], {"role": "assistant", "content": row[name]}]
            example = self._answer(tally, messages, number)
            both.append(example.labels[: tally.max_length])
            tally.add(number, example, self.stops)
        if both[0] == both[1]:
            tally.note("nothing", number)


def answers(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """The conversation up to each answer in it."""
    for end, message in enumerate(messages, 1):
        if message["role"] == "assistant":
            yield messages[:end]


def spread(count: int, most: int) -> list[int]:
    """``most`` indices at equal distances, or all of them."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)] if most > 1 else [0]


def stage_file(spec: RunSpec, stage: Stage) -> FileRef:
    """The data file of a stage."""
    return stage.data or spec.data.train


def audit_of(where: str, origin: str, reader: Reader, stages: Iterable[StageAudit]) -> Audit:
    digest = sha256(reader.template.encode()).hexdigest()
    return Audit(where, digest, origin, has_training_tags(reader.template), tuple(stages))


def audit_inputs(inputs: Path, out: Path, spec: RunSpec, reader: Reader) -> Audit:
    """On the machine, before the first step: look, say what there is, keep it in ``out``.

    Each rank looks, and the first one writes: two that rename one file fail.

    Raises:
        TrainError: of some rows nothing could be learned.
    """
    found = []
    for number, stage in enumerate(spec.stages):
        path = inputs / stage_file(spec, stage).path
        try:
            with path.open(encoding="utf-8") as lines:
                rows = [dict(json.loads(line)) for line in lines]
        except (OSError, ValueError, TypeError) as exc:
            raise TrainError(f"the training data {path.name} cannot be read: {exc}") from exc
        numbers = range(1, len(rows) + 1)
        found.append(reader.audit(stage_name(spec, number), stage.kind, stage.max_length, rows, numbers, LOOKED_AT))
    origin = "cloudft.yaml" if spec.template is not None else "the base"
    audit = audit_of("machine", origin, reader, found)
    if ranks.first():
        part = out / f".{NAME}.part"
        part.write_text(json.dumps(audit.as_dict(), indent=1) + "\n", encoding="utf-8")
        part.replace(out / NAME)
    say("label audit")
    for line in audit.lines():
        say(f"  {line}")
    if audit.problem:
        raise TrainError(audit.problem)
    return audit
