"""What a report says, as plain values. A section that is None was not there; ``unmeasured`` says so in words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from local.evaluation.document.comparison import Outcome
from local.evaluation.document.eval_json import Document
from local.evaluation.document.measurement import Measurement

# What the headline calls the outcome: that of the paired test, or nothing was measured.
Verdict = Outcome | Literal["unmeasured"]


@dataclass(frozen=True)
class Example:
    """One row of the hold-out, as asked, expected and answered. ``note``: why the answer is not right.

    ``title``: what to call a question that is no row of the hold-out.
    """

    row: int
    question: str
    expected: str
    before: str
    after: str
    note: str
    title: str = ""

    @property
    def name(self) -> str:
        return self.title or f"Row {self.row}"


@dataclass(frozen=True)
class Examples:
    """The first few of ``count`` rows that changed, or stayed wrong, the farthest first."""

    count: int = 0
    shown: tuple[Example, ...] = ()


@dataclass(frozen=True)
class Table:
    """A small table that a section brings along, cells already in words."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Extra:
    """A further measurement as a section of its own: forgetting, a judge. ``warnings`` call what is wrong by name."""

    title: str
    sentence: str
    outcome: Verdict | None
    warnings: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True)
class Evaluated:
    """The evaluation, and the rows worth reading."""

    document: Document
    improved: Examples
    regressed: Examples
    failing: Examples
    extras: tuple[Extra, ...] = ()

    @property
    def before(self) -> Measurement:
        return self.document.sides["before"]

    @property
    def after(self) -> Measurement:
        return self.document.sides["after"]


@dataclass(frozen=True)
class Setting:
    """A hyperparameter, its value and where the value came from."""

    name: str
    value: str
    origin: str


@dataclass(frozen=True)
class StageConfig:
    title: str
    settings: tuple[Setting, ...]


@dataclass(frozen=True)
class Curve:
    """Loss by optimiser step: as trained on, and on held-out rows where the trainer measured that."""

    train: tuple[tuple[int, float], ...]
    held_out: tuple[tuple[int, float], ...] = ()
    starts: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Training:
    """How the training went. ``seconds`` and ``tokens`` are of the steps alone, prompts included.

    ``tables``: what else the trainer told, such as its stages and the audit of its labels.
    """

    status: str
    reason: str
    steps: int
    planned: int
    tokens: int
    seconds: float
    curve: Curve
    tables: tuple[Table, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float | None:
        return self.tokens / self.seconds if self.tokens and self.seconds else None


@dataclass(frozen=True)
class Payment:
    """One machine that is gone, or that may still cost something (``usd`` None)."""

    attempt: int
    machine: str
    machine_id: str | None
    seconds: float | None
    rate_usd: float
    usd: float | None
    source: str
    phases: dict[str, float]


@dataclass(frozen=True)
class Money:
    """What the run has cost at most. ``rented`` False: nothing was, and it cost nothing."""

    rented: bool
    budget_usd: float | None
    spent_usd: float
    open: bool
    payments: tuple[Payment, ...]


@dataclass(frozen=True)
class Moment:
    at: float
    what: str


@dataclass(frozen=True)
class Link:
    """One link of the lineage: ``value`` identifies it by content, ``note`` says what it is in words."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Spread:
    """How often each value of one key of the answers occurs, in training and in the hold-out."""

    key: str
    rows: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class DataFacts:
    """The data, recounted from the run's own copies. None: nobody has counted it, or the file is gone."""

    train_rows: int
    holdout_rows: int
    split_seed: int
    train_sha256: str
    holdout_sha256: str
    train_bytes: int
    source_file: str | None
    source_sha256: str | None
    source_rows: int | None
    duplicates: int | None
    contaminated: int | None
    conflicts: int | None
    shared_questions: int | None
    systems: tuple[str, ...]
    turns: int
    median_characters: int | None
    longest_characters: int | None
    spreads: tuple[Spread, ...] = ()
    sample: str | None = None


@dataclass(frozen=True)
class CardFacts:
    """What only a person can say of the data: None where ``data.card`` in cloudft.yaml does not."""

    source: str | None = None
    licence: str | None = None
    version: str | None = None
    language: tuple[str, ...] = ()
    personal_data: str | None = None
    reviewed_by: str | None = None
    notes: str | None = None

    @property
    def missing(self) -> tuple[str, ...]:
        """The questions that are open, in words."""
        asked = {
            "where the examples come from (source)": self.source,
            "under which licence they may be used (license)": self.licence,
            "whether they hold personal data (personal_data)": self.personal_data,
            "who that knows the field has reviewed them (reviewed_by)": self.reviewed_by,
        }
        return tuple(question for question, answer in asked.items() if not answer)


@dataclass(frozen=True)
class ModelFacts:
    """The served file, and what was found when it was verified."""

    version: str
    type: str
    bytes: int
    sha256: str
    merge: str
    llama_cpp: str
    made_at: float
    kl: float | None
    top1: float | None


@dataclass(frozen=True)
class BaseFacts:
    id: str
    source: Literal["hub", "folder"]
    revision: str
    parameters: int | None
    licence: str | None


@dataclass(frozen=True)
class TaskFacts:
    """What the model must do. ``words``: one sentence; ``schema``: JSON, where answers must obey one."""

    kind: str
    words: str
    schema: str | None


@dataclass(frozen=True)
class Report:
    """All that a report says. ``written_at`` is the only value that does not come from the run."""

    run_id: str
    project: str
    headline: str
    verdict: Verdict
    written_at: float
    cloudft: str
    task: TaskFacts
    base: BaseFacts
    model: ModelFacts | None
    evaluated: Evaluated | None
    training: Training
    stages: tuple[StageConfig, ...]
    data: DataFacts
    card: CardFacts
    money: Money
    timeline: tuple[Moment, ...]
    lineage: tuple[Link, ...]
    unmeasured: tuple[str, ...]
