"""One model, measured: what ``Measurement`` says of any model, in whatever file it stands."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from jobs.spec import SHA256, Frozen

Label = Literal["before", "after"]
LABELS: tuple[Label, Label] = ("before", "after")
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
