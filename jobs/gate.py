"""The gate: each stage is measured before and after on rows that it was not trained on; one that harms is kept out.

The task's own metric where it has one (answers of a JSON task, generated greedily), and the mean loss of the answers'
tokens in any case. It is cheap by its bounds (``jobs.spec.Gate``): so many rows, so many tokens an answer, so many
seconds. A general set, if the run has one, is measured beside it, and decides nothing: it shows what was forgotten.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs import unsloth_backend
from jobs.model import Tuned
from jobs.rendering import Message, RenderError, encode_answer, render_answer
from jobs.runlog import say
from jobs.scoring import JsonTask, Verdict
from jobs.sharding import sharded
from jobs.spec import LONGEST_MEASURED, RunSpec
from jobs.stage_data import load_rows

# Rows whose answers are generated together.
ROWS_AT_ONCE = 16
# Lost answers up to this share of the rows may be chance (three of 64, and none of fewer than 20 rows).
DOUBT_SHARE = 0.05
# Where the task's metric says nothing, the loss decides. A smaller rise than this share, or than so many nats, is no
# harm that a stage is kept out for.
LOSS_SHARE, LOSS_NATS = 0.05, 0.02
# Seconds that a measurement may take in any case. A stage whose steps are all done is judged also when the run is to
# stop, if that took no longer before it.
PATIENCE = 10.0


class Broken(Exception):
    """The run was asked to stop; nothing was measured."""


@dataclass(frozen=True)
class Question:
    """A row to measure on: the prompt's tokens, the answer's, and the answer as text."""

    prompt: list[int]
    answer: list[int]
    expected: str


@dataclass(frozen=True)
class Measured:
    """What was found. ``verdicts``: of the first rows, for a JSON task. Losses are nats per token."""

    verdicts: tuple[Verdict, ...]
    losses: tuple[float, ...]
    general_losses: tuple[float, ...]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For a checkpoint: what each row gave, so that the stage's end can be compared with its beginning."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Measured:
        verdicts = tuple(Verdict(**verdict) for verdict in value["verdicts"])
        return cls(verdicts, tuple(value["losses"]), tuple(value["general_losses"]), value["seconds"])

    def numbers(self) -> dict[str, float | int | None]:
        """For ``trainer.json`` and people. ``rows``: those that the task's metric is of, or else the loss."""
        n = len(self.verdicts)
        return {
            "rows": n or len(self.losses),
            "schema_valid": sum(v.valid for v in self.verdicts) / n if n else None,
            "exact_match": sum(v.exact for v in self.verdicts) / n if n else None,
            "loss": _mean(self.losses),
            "general_loss": _mean(self.general_losses),
            "seconds": round(self.seconds, 3),
        }


class Meter:
    """Measures a model as the run's gate says. ``asked`` breaks a measurement off.

    Raises:
        TrainError: the validation rows are not those of the spec.
    """

    def __init__(self, spec: RunSpec, inputs: Path, tuned: Tuned, asked: Callable[[], bool]) -> None:
        self.gate, self.tuned, self.asked, self._patient = spec.gate, tuned, asked, False
        limit = spec.gate.rows if spec.gate else 0
        data = spec.data
        rows = load_rows(inputs, data.validation)[:limit] if data.validation else []
        general = load_rows(inputs, data.general)[:limit] if data.general else []
        gate = spec.gate
        longest = min(LONGEST_MEASURED, (tuned.longest or math.inf) - (gate.max_tokens if gate else 0))
        self.questions = _questions(rows, tuned, longest)
        self.general = _questions(general, tuned, longest)
        self.task = JsonTask(gate.json_schema or {}, gate.keys) if gate and gate.kind == "json" else None
        if self.task and self.task.unsupported:
            say(
                f"the gate cannot judge the schema's {self.task.unsupported!r}: an answer that is an object counts as "
                "valid there; `cloudft eval` judges it all"
            )

    @property
    def silent(self) -> str:
        """Why nothing can be measured; empty where something can."""
        if self.gate is None:
            return "the run asks for no measurement"
        if sharded(self.tuned.model):
            return "each GPU holds a part of the model only"
        return "" if self.questions or self.general else "the run has no validation rows"

    def measure(self, before: Measured | None = None, trained: float = math.inf) -> Measured:
        """Of the model as it is now.

        Args:
            before: the same measurement at the stage's beginning.
            trained: seconds that the stage trained since.

        Raises:
            Broken: the run is to stop, and this would hold it up.
        """
        assert self.gate is not None
        self._patient = before is not None and before.seconds <= PATIENCE
        began = time.monotonic()
        limit = min(self.gate.seconds, max(PATIENCE, self.gate.share * trained))
        # What decides comes first, and leaves some time for the rest.
        ends = [began + limit * share for share in (0.7, 0.85, 1.0)]
        with _measuring(self.tuned):
            verdicts = tuple(self._verdicts(self.task, ends[0])) if self.task else ()
            losses = tuple(self._losses(self.questions, ends[1]))
            general = tuple(self._losses(self.general, ends[2]))
        return Measured(verdicts, losses, general, time.monotonic() - began)

    def _losses(self, questions: Sequence[Question], end: float) -> Iterator[float]:
        for question in questions:
            if self._over(end):
                return
            yield _loss(self.tuned, question)

    def _verdicts(self, task: JsonTask, end: float) -> Iterator[Verdict]:
        assert self.gate is not None
        for at in range(0, len(self.questions), ROWS_AT_ONCE):
            if self._over(end):
                return
            batch = self.questions[at : at + ROWS_AT_ONCE]
            answers = _answers(self.tuned, [q.prompt for q in batch], self.gate.max_tokens)
            yield from (task.verdict(a, q.expected) for a, q in zip(answers, batch, strict=True))

    def _over(self, end: float) -> bool:
        if self.asked() and not self._patient:
            raise Broken
        return time.monotonic() > end


def worse(before: Measured, after: Measured) -> str:
    """Why the second is worse than the first, over the rows that both have; empty if it is not.

    Exact matches decide; if they are equal, valid answers. The loss of the right answers does where so few were lost
    that chance may have done it, where not one answer is either, before and after, and where the task has no such
    metric.
    """
    n = min(len(before.verdicts), len(after.verdicts))
    doubts: list[str] = []
    for name, what in (("exact", "exact matches"), ("valid", "valid answers")):
        one, two = (sum(getattr(v, name) for v in m.verdicts[:n]) for m in (before, after))
        if two < one:
            doubts.append(f"{what} fell from {one} to {two} of {n}")
            if one - two > DOUBT_SHARE * n:
                return doubts[-1]
        elif not doubts and (two > one or (two and name == "valid")):
            return ""
    m = min(len(before.losses), len(after.losses))
    old, new = _mean(before.losses[:m]), _mean(after.losses[:m])
    if old is None or new is None:
        return doubts[0] if doubts else ""
    if new - old <= max(LOSS_SHARE * old, LOSS_NATS):
        return ""
    return ", and ".join([*doubts, f"the loss of the answers rose from {old:.4f} to {new:.4f}"])


def said(measured: Mapping[str, Any]) -> str:
    """A measurement in a line, for the log."""
    parts = []
    if measured["exact_match"] is not None:
        parts.append(f"exact match {measured['exact_match']:.1%}, schema valid {measured['schema_valid']:.1%}")
    if measured["loss"] is not None:
        parts.append(f"loss {measured['loss']:.4f}")
    if measured["general_loss"] is not None:
        parts.append(f"loss of the general set {measured['general_loss']:.4f}")
    return f"{', '.join(parts)} ({measured['rows']} rows)"


def _questions(rows: list[list[Message]], tuned: Tuned, longest: float) -> list[Question]:
    """The last answer of each row that has no more than ``longest`` tokens."""
    found = []
    for messages in rows:
        try:
            rendered = render_answer(tuned.tokenizer, tuned.template, messages)
        except RenderError as exc:
            say(f"warning: a row is not measured: {exc}")
            continue
        example = encode_answer(tuned.tokenizer, rendered, tuned.stops)
        begin, ids = len(example.labels) - example.trained, example.input_ids
        if len(ids) <= longest:
            found.append(Question(ids[:begin], ids[begin:], messages[-1]["content"]))
        else:
            say(f"warning: a row of {len(ids)} tokens is not measured: more than {longest}")
    return found


@contextlib.contextmanager
def _measuring(tuned: Tuned) -> Iterator[None]:
    """Without dropout and gradients, in the precision that is trained in; the random state stays untouched."""
    import torch

    model = tuned.model
    training = model.training
    model.eval()
    device = next(model.parameters()).device.type
    try:
        answering = unsloth_backend.inference(model) if tuned.backend == "unsloth" else contextlib.nullcontext()
        with answering, torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=tuned.dtype == "bfloat16"):
            yield
    finally:
        model.train(training)


def _loss(tuned: Tuned, question: Question) -> float:
    """Mean over the answer's tokens. Only their logits are made: a whole row's may be gigabytes."""
    import torch

    device = next(tuned.model.parameters()).device
    ids = torch.tensor([question.prompt + question.answer], device=device)
    count = len(question.answer)
    logits = tuned.model(input_ids=ids, use_cache=False, logits_to_keep=count + 1).logits[0, -count - 1 : -1]
    return float(torch.nn.functional.cross_entropy(logits.float(), ids[0, -count:]).item())


def _answers(tuned: Tuned, prompts: list[list[int]], max_tokens: int) -> list[str]:
    """What the model says, decoded greedily, without the token that ends it."""
    import torch
    from transformers import GenerationConfig

    tokenizer, device = tuned.tokenizer, next(tuned.model.parameters()).device
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    config = GenerationConfig(
        do_sample=False, max_new_tokens=max_tokens, eos_token_id=sorted(tuned.stops), pad_token_id=pad, use_cache=True
    )
    whole = tuned.model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    answers = []
    for tokens in whole[:, longest:].tolist():
        end = next((i for i, token in enumerate(tokens) if token in tuned.stops), len(tokens))
        answers.append(tokenizer.decode(tokens[:end], skip_special_tokens=True))
    return answers


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
