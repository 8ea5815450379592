"""What an evaluation leaves behind, typed: ``runs/<id>/eval.json`` and ``runs/<id>/outputs-<label>.jsonl``.

``eval.json`` begins with the contract that other programs rely on, ``{"n": …, "before": {metric: value}, "after":
{…}}``; all else explains these numbers. ``Measurement`` is what any measured model has, in whatever file it stands.

Units, everywhere: a share or a ratio is a number from 0 to 1 (not per cent), an interval is of 95 %, times are
seconds, tokens and rows are counts, sha256 is 64 hexadecimal digits. Higher is better for every metric.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from cloudft.errors import IntegrityError, NotFound
from jobs.spec import SHA256, Frozen
from local.project import RunFolder

SCHEMA_VERSION = 2
Label = Literal["before", "after"]
LABELS: tuple[Label, Label] = ("before", "after")
Outcome = Literal["better", "worse", "undecided"]
OTHER = "(none of them)"
"""The column of a confusion matrix for an answer that is none of the labels."""
FAILED = "(failed)"
"""The column for a request that failed."""


class Metric(Frozen):
    """What a metric is, the same for all models that are compared.

    ``unit``: *share* of rows that hit, each row a hit or not; *ratio*, from 0 to 1, of which a row may have a part or
    none of its own (F1, ROUGE); *number*, any number of a user's own metric. ``definition``: one plain sentence.
    """

    unit: Literal["share", "ratio", "number"]
    definition: str


class Estimate(Frozen):
    """One metric of one model, in the metric's unit, with its interval.

    ``hits`` of ``of`` rows hit, for a share that was measured once; ``of`` is less than ``n`` for a metric that is
    about some rows only. None otherwise. ``per_repeat``: the metric of every repeat in the order of ``Decoding.seeds``,
    and ``spread`` their standard deviation (n - 1); with several repeats ``value`` is their mean. Empty and None for
    one repeat.
    """

    value: float
    low: float
    high: float
    method: Literal["wilson", "bootstrap"]
    hits: int | None = None
    of: int | None = None
    per_repeat: tuple[float, ...] = ()
    spread: float | None = None


class Tally(Frozen):
    """How often something was there: a key of an object, a label, a tool.

    ``expected``: how often in the hold-out's answers; ``answered``: how often in the model's; ``correct``: how often in
    both (a key: with the same value; a call of a tool: with the same arguments). All summed over repeats.
    ``precision`` = correct / answered, ``recall`` = correct / expected, ``f1`` = 2 correct / (expected + answered),
    each 0 where it would divide by 0.
    """

    expected: int
    answered: int
    correct: int
    precision: float
    recall: float
    f1: float


class Confusion(Frozen):
    """Counts of rows (summed over repeats) by what was expected and what was answered.

    ``counts[i][j]``: rows that expected ``rows[i]`` and were answered with ``columns[j]``. The columns are the rows,
    then ``OTHER``, then ``FAILED``.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


class Lineage(Frozen):
    """Where a model file comes from. None where there is no such thing: a base has no run and no adapter."""

    version: str
    base_id: str
    base_revision: str
    type: str
    run_id: str | None = None
    adapter_sha256: str | None = None
    spec_sha256: str | None = None


class ModelUsed(Frozen):
    """The model that was asked.

    ``title``: for a person; ``name``: as the endpoint calls it; ``file``: its GGUF file, relative to the project, or
    None where only an endpoint is known; ``sha256``: of that file; ``engine``: the server, such as "llama-server";
    ``template_source``: whether the chat template was the file's "own" or "given" by us, None if the server does
    not tell; ``url``: of an endpoint that was not ours; ``lora``: a LoRA GGUF file that was added to the model when it
    was loaded.
    """

    title: str
    name: str
    engine: str
    file: str | None = None
    sha256: str | None = Field(default=None, pattern=SHA256)
    template_source: Literal["own", "given"] | None = None
    template_sha256: str | None = None
    url: str | None = None
    lineage: Lineage | None = None
    lora: str | None = None
    lora_sha256: str | None = Field(default=None, pattern=SHA256)


class Decoding(Frozen):
    """How all models were asked.

    ``seeds``: one per repeat, from which each row's own is drawn; ``max_tokens``: of one answer; ``context``: tokens of
    prompt and answer together, None where the server's own is not known; ``parameters``: whatever else was sent.
    """

    temperature: float
    seeds: tuple[int, ...]
    max_tokens: int
    context: int | None
    parameters: dict[str, Any] = Field(default={})


class Usage(Frozen):
    """What the asking took. Latencies and tokens are those of the requests that were answered, also of answers
    that came from the cache (as they were when they were made); None where there are none.

    ``seconds``: wall time of this evaluation, of which a model's start is a part; ``requests``: rows times repeats;
    ``cached``: answers taken from the cache; ``failed``: requests without an answer, counted as wrong; ``retried``:
    requests that were sent more than once; ``workers``: requests under way at the same time, at most, 0 if
    all answers came from the cache.
    """

    seconds: float
    requests: int
    cached: int
    failed: int
    retried: int
    workers: int
    prompt_tokens: int
    completion_tokens: int
    latency_median: float | None
    latency_p95: float | None


class OutputsRef(Frozen):
    """The file with all answers of one model, in the run's folder, and its content."""

    path: str
    sha256: str = Field(pattern=SHA256)
    lines: int


class Measurement(Frozen):
    """One model, measured.

    ``metrics``: every metric by name, in the order in which to show them. ``tables``: tallies by kind ("keys",
    "labels", "tools") and name. ``confusion``: matrices by what is confused ("label", or a key whose values the
    schema lists).
    """

    metrics: dict[str, Estimate]
    model: ModelUsed
    usage: Usage
    outputs: OutputsRef
    tables: dict[str, dict[str, Tally]] = Field(default={})
    confusion: dict[str, Confusion] = Field(default={})

    def values(self) -> dict[str, float]:
        return {name: estimate.value for name, estimate in self.metrics.items()}


class Comparison(Frozen):
    """One metric after against before, row by row.

    ``change`` = after - before, in the metric's unit, with its interval. ``gained`` and ``lost``: rows whose own score
    rose and fell, None for a metric that a row has no part of. ``p_value``: two-sided, of the paired test, as it
    stands; ``p_adjusted``: the same for the primary metric, corrected by Holm's method over all the others. ``outcome``
    is "better" or "worse" only if ``p_adjusted`` < 0.05. ``rows_needed``: about how many rows would show a
    change of this size (80 % power); None where there is none, or it is shown already.
    """

    change: float
    low: float
    high: float
    test: Literal["mcnemar", "paired bootstrap"]
    p_value: float
    p_adjusted: float
    outcome: Outcome
    gained: int | None = None
    lost: int | None = None
    rows_needed: int | None = None


class Verdict(Frozen):
    """The plain answer. ``metric``: the primary one, which alone decides; ``sentence``: to be printed as it is;
    ``worse``: other metrics that got worse beyond chance; ``rows_needed`` as in the primary's ``Comparison``."""

    outcome: Outcome
    metric: str
    sentence: str
    worse: tuple[str, ...] = ()
    rows_needed: int | None = None


class Changes(Frozen):
    """Rows by the primary metric, before and after. *Right* is a score of 1; a gain on the whole can hide losses."""

    gained: int
    lost: int
    right_both_times: int
    wrong_both_times: int


class Caveat(Frozen):
    """What a reader must know before believing the numbers. ``code`` is for programs, ``text`` one or two sentences.

    Codes: *small-holdout* too few rows to show a change worth having; *partial* not all rows of the hold-out;
    *failed-requests* some count as wrong because no answer came; *cut-off* answers that ended at ``max_tokens``;
    *worse* the primary metric fell; *regression* another metric fell; *engines-differ* served by different servers;
    *template-given* a base without a chat template got the trained one.
    """

    code: str
    text: str


class TaskUsed(Frozen):
    """What was measured: the task's kind, and its settings as in the run's ``task.json``.

    ``code_sha256``: of the Python file of a user's own metric, by its path in the project.
    """

    kind: str
    settings: dict[str, Any]
    code_sha256: dict[str, str] = Field(default={})


RungName = Literal["base", "few-shot", "adapter", "merge", "quantised", "served"]
Cause = Literal["examples", "training", "training against examples", "merging", "quantisation", "serving"]


class FewShot(Frozen):
    """Examples that stand before every question: ``k`` rows of ``train.jsonl``, drawn with ``seed``.

    ``rows``: their lines, from 1, in the order in which they are shown; ``wanted``: how many were asked for, of which
    ``k`` fit into the context; ``train_sha256``: of the file.
    """

    k: int
    wanted: int
    seed: int
    rows: tuple[int, ...]
    train_sha256: str = Field(pattern=SHA256)


class Rung(Frozen):
    """One rung of the ladder: the same hold-out, prompt and decoding as all others. ``note``: what a reader must know
    of it, such as that its answers are those of the rung before; empty if nothing."""

    name: RungName
    title: str
    measurement: Measurement
    note: str = ""


class Step(Frozen):
    """One rung against an earlier one, in the ladder's metric, row by row.

    ``cause``: the one thing that differs between the two. ``sentence``: to be printed as it is.
    """

    cause: Cause
    before: RungName
    after: RungName
    comparison: Comparison
    sentence: str


class Ladder(Frozen):
    """What each step from the base to the served endpoint gains or costs.

    ``rungs``: in the order of ``RungName``, without those of ``missing``, which has the reason; ``steps``:
    ``p_adjusted`` is corrected over all of them; ``bar``: the most that quantisation may cost, in the metric's unit;
    ``advice``: what to do if it costs more, else empty; ``worth_it`` and ``sentence``: whether examples in the prompt
    would have done as well as the fine-tune, None if one of the two is missing.
    """

    metric: str
    n: int = Field(gt=0)
    rungs: tuple[Rung, ...]
    steps: tuple[Step, ...]
    few_shot: FewShot | None
    missing: dict[RungName, str] = Field(default={})
    bar: float
    advice: str = ""
    worth_it: Literal["yes", "no", "undecided"] | None
    sentence: str
    warnings: tuple[Caveat, ...] = ()


class GeneralPart(Frozen):
    """The questions of one kind."""

    n: int
    before: Estimate
    after: Estimate


class GeneralExample(Frozen):
    """A question that was answered rightly before, and wrongly after. ``expected``: what is asked for, in words."""

    id: str
    part: str
    question: str
    expected: str
    before: str
    after: str


class Forgetting(Frozen):
    """General questions, which have nothing to do with the task, asked before and after.

    ``suite``: "cloudft" for the set that comes with cloudft, or "lm-eval:<task>"; ``sha256``: of the questions, None if
    not known; ``metric``: what a hit is; ``outcome``: as of ``comparison``, or "nothing to forget" if the base knows
    too little to show a loss; ``regressions``: the first few of ``comparison.lost`` questions.
    """

    suite: str
    title: str
    licence: str
    n: int = Field(gt=0)
    metric: str
    sha256: str | None = Field(default=None, pattern=SHA256)
    before: Estimate
    after: Estimate
    comparison: Comparison
    parts: dict[str, GeneralPart] = Field(default={})
    outcome: Literal["better", "worse", "undecided", "nothing to forget"]
    sentence: str
    regressions: tuple[GeneralExample, ...] = ()
    outputs: dict[Label, OutputsRef] = Field(default={})
    software: dict[str, str] = Field(default={})
    warnings: tuple[Caveat, ...] = ()


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


class Document(Frozen):
    """``eval.json``. ``before`` and ``after`` are the values of ``sides``, for programs that want no more.

    ``n``: rows that were measured, the first of the hold-out's ``held_out_rows``; ``created_at``: UTC, ISO 8601;
    ``primary``: the metric that decides; ``metrics`` explains every name that stands in ``before`` and ``after``;
    ``software``: versions of what took part, by name. ``ladder`` and all after it: only if it was asked for, and only
    as long as ``sides`` are those that it was made from.
    """

    n: int = Field(gt=0)
    before: dict[str, float]
    after: dict[str, float]
    schema_version: Literal[2] = 2
    run_id: str
    created_at: str
    verdict: Verdict
    warnings: tuple[Caveat, ...]
    primary: str
    metrics: dict[str, Metric]
    comparisons: dict[str, Comparison]
    changes: Changes
    held_out_rows: int
    holdout_sha256: str = Field(pattern=SHA256)
    task: TaskUsed
    decoding: Decoding
    sides: dict[Label, Measurement]
    software: dict[str, str]
    ladder: Ladder | None = None
    forgetting: tuple[Forgetting, ...] = ()
    judging: Judging | None = None
    spot_check: SpotCheck | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> Document:
        for label, values in (("before", self.before), ("after", self.after)):
            if label not in self.sides or values != self.sides[label].values():
                raise ValueError(f"the numbers under {label!r} are not those of its measurement")
        if not self.metrics.keys() == self.before.keys() == self.after.keys() == self.comparisons.keys():
            raise ValueError("the two sides have not the same metrics")
        if self.primary not in self.metrics:
            raise ValueError(f"the primary metric {self.primary!r} was not measured")
        return self

    def as_dict(self) -> dict[str, Any]:
        """What ``eval.json`` holds."""
        return self.model_dump(mode="json")


class OutputLine(Frozen):
    """One answer: one line of ``outputs-<label>.jsonl``, sorted by ``repeat``, then ``row``.

    ``row``: the line in the hold-out file, from 1; ``repeat``: from 0; ``seed``: that was sent; ``prompt``: the
    messages that were sent, and ``prompt_sha256`` that of ``[messages, tools]`` as canonical JSON: equal before and
    after; ``expected``: the hold-out's answer, parsed as the task has it (an object, a label, calls, text);
    ``answer``: the model's text, None if the request failed; ``tool_calls``: as the endpoint gave them, but for their
    ids;
    ``finish``: why it ended ("stop", "length", "tool_calls");
    ``score``: the row's own part of each metric that it has one of, 1 and 0 for a hit and a miss;
    ``problem``: why it is not right, empty if it is, or nothing is known; ``error``: why the request failed, else None;
    ``latency``: seconds from sending to the whole answer, None if it failed; tokens as the server counted them.
    """

    row: int
    repeat: int = 0
    seed: int = 0
    prompt: tuple[dict[str, Any], ...]
    prompt_sha256: str = Field(pattern=SHA256)
    expected: Any
    answer: str | None
    tool_calls: tuple[dict[str, Any], ...] = ()
    finish: str | None = None
    score: dict[str, float]
    problem: str = ""
    error: str | None = None
    latency: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


def outputs_path(run: RunFolder, label: str) -> Path:
    return run.root / f"outputs-{label}.jsonl"


def output_bytes(lines: Iterable[OutputLine]) -> bytes:
    """The contents of an outputs file."""
    return b"".join(_json_line(line.model_dump()) for line in lines)


def read_document(run: RunFolder, record: Path | None = None) -> Document:
    """The evaluation of a run, or another one of it that lies at ``record``.

    Raises:
        NotFound: the run was not evaluated.
        IntegrityError: the file is damaged, contradicts itself, or is of another version of cloudft.
    """
    record = record or run.evaluation
    raw = _read(run, record)
    again = f"measure again:  cloudft eval {run.run_id}"
    try:
        found = json.loads(raw)
        version = found["schema_version"]
        if version != SCHEMA_VERSION:
            raise IntegrityError(
                f"{record} is of version {version}, and this cloudft reads version {SCHEMA_VERSION}", hint=again
            )
        return Document.model_validate(found)
    except (ValueError, KeyError, TypeError, ValidationError) as exc:
        raise IntegrityError(f"{record} is damaged: {_first(exc)}", hint=again) from exc


def read_outputs(run: RunFolder, ref: OutputsRef) -> list[OutputLine]:
    """All answers of one model, as ``Measurement.outputs`` names them.

    Raises:
        NotFound: the file is not there.
        IntegrityError: it is not the file that was written, or a line is damaged.
    """
    path = run.root / ref.path
    raw = _read(run, path)
    again = f"measure again:  cloudft eval {run.run_id}"
    if hashlib.sha256(raw).hexdigest() != ref.sha256:
        raise IntegrityError(f"{path} is not what the evaluation wrote", hint=again)
    try:
        # Not splitlines(): it also cuts at characters that may stand inside a JSON string.
        return [OutputLine.model_validate(json.loads(line)) for line in raw.split(b"\n") if line]
    except (ValueError, TypeError, ValidationError) as exc:
        raise IntegrityError(f"{path} is damaged: {_first(exc)}", hint=again) from exc


def prompt_sha256(prompt: Sequence[Any], tools: Sequence[Any] | None = None) -> str:
    """sha256 of what is asked, as canonical JSON."""
    text = json.dumps([list(prompt), list(tools or ())], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _read(run: RunFolder, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as exc:
        raise NotFound(
            f"{path} is not there: run {run.run_id} was not evaluated", hint=f"measure it:  cloudft eval {run.run_id}"
        ) from exc
    except OSError as exc:
        raise IntegrityError(f"{path} cannot be read: {exc.strerror}") from exc


def _first(exc: Exception) -> str:
    """The first thing that is wrong, in one line."""
    if isinstance(exc, ValidationError):
        error = exc.errors()[0]
        return f"{'.'.join(str(part) for part in error['loc'])}: {error['msg']}"
    return f"it lacks {exc}" if isinstance(exc, KeyError) else str(exc)


def _json_line(value: Any) -> bytes:
    """One line of JSON. A model can produce half a surrogate pair, which no UTF-8 file can hold unescaped."""
    try:
        return (json.dumps(value, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(value) + "\n").encode()
