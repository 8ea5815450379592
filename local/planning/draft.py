"""A run before it exists: everything checked, split and resolved into a spec. Nothing is written here."""

from __future__ import annotations

import math
import random
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from cloudft.errors import ConfigError, DataError
from infra.gpus import parse_wish
from jobs.spec import Data, FileRef, Gate, RunSpec
from local.base import lock_base
from local.config import Config
from local.evaluation.task import JsonTask, Task, check_rows, load_task
from local.jsonl import NOTHING
from local.planning.data import Facts, Row, describe, load_rows
from local.planning.documents import load_documents, without
from local.planning.estimate import count_parameters
from local.planning.hyperparameters import StageFacts, resolve_stages
from local.planning.preferences import load_pairs
from local.planning.split import Split, Writable, split
from local.planning.tracking import tracking_of
from local.progress import Progress
from local.project import Project
from local.runs.runlock import SourceLock, source_lock
from local.train_config import StageConfig

TRAIN_FILE, HOLDOUT_FILE, VALIDATION_FILE = "train.jsonl", "holdout.jsonl", "validation.jsonl"
REPLAY_FILE, GENERAL_FILE = "replay.jsonl", "general.jsonl"
# General rows that are measured before and after.
GENERAL_ROWS = 64


@dataclass(frozen=True)
class Draft:
    """A checked run: its spec, the rows of each file that is written beside it, and the task.

    ``source``: the user's data file that the rows come from; ``paths``: of each file of a stage, the user's own.
    """

    spec: RunSpec
    files: Mapping[str, Sequence[Writable]]
    task: Task
    source: SourceLock | None
    paths: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass
class _Files:
    """What will be written, and what a person should know of it."""

    rows: dict[str, Sequence[Writable]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, rows: Sequence[Writable]) -> FileRef:
        """The file as ``split.write_rows`` will write it."""
        content = b"".join(row.canonical().encode() + b"\n" for row in rows)
        self.rows[name] = rows
        return FileRef(path=name, sha256=sha256(content).hexdigest(), bytes=len(content))

    def note(self, count: int, what: str) -> None:
        if count:
            self.notes.append(f"{count} {what}")


def draft(project: Project, config: Config, progress: Progress) -> Draft:
    """Check data, task and base, and freeze what they say into a spec.

    Raises:
        ConfigError, DataError, NotFound, ProviderError, UsageError: what is wrong with any of them.
    """
    progress("check the data")
    rows = load_rows(project.root / config.data.path)
    holdout = config.data.holdout
    parts = split(
        rows,
        project.root / holdout if isinstance(holdout, str) else holdout,
        config.data.seed,
        config.data.validation,
    )
    task = load_task(config.task, project.root, (*parts.train, *parts.holdout))
    check_rows(task, parts.holdout)
    of_all, facts, files = describe(rows), describe(parts.train), _Files()
    _notes(of_all, parts, files)
    data = _data(project, config, parts, files)
    stages = [_stage_facts(project, number, own, facts, parts, files) for number, own in _numbered(config)]
    template = _template(project, config)
    progress("lock the base")
    base = lock_base(config.base, config.revision, project.root)
    base = base.model_copy(update={"parameters": count_parameters(base, project.root)})
    spec = RunSpec(
        run_id=new_run_id(project),
        project=config.project,
        base=base,
        data=data,
        template=template,
        backend=config.train.backend,
        stages=resolve_stages(config.train, stages, base.parameters, _gpus(config)),
        gate=_gate(task),
        image=config.image if config.provider != "local" else None,
        machine=config.machine_spec(),
        tracking=tracking_of(config),
        budget_usd=config.budget if config.rents else None,
        max_hours=config.max_hours,
        seed=config.train.seed,
    )
    counts = parts.duplicates, parts.contaminated, of_all.conflicts
    source = source_lock(project.root / config.data.path, config.data.path, len(rows), holdout, counts)
    paths = {
        stage.data.path: str(own.data)
        for stage, (_, own) in zip(spec.stages, _numbered(config), strict=True)
        if stage.data
    }
    return Draft(spec, files.rows, task, source, {TRAIN_FILE: config.data.path, **paths}, tuple(files.notes))


def _gpus(config: Config) -> int:
    """A number that the GPUs of every wish divide, whichever is granted."""
    return math.lcm(*(parse_wish(text).count for text in config.gpus)) if config.rents else config.machine.gpus


def _gate(task: Task) -> Gate:
    """How the machine measures a stage: as the task does where it can, else by the loss of the answers."""
    if isinstance(task, JsonTask):
        return Gate(kind="json", json_schema=task.json_schema, keys=task.keys, max_tokens=task.max_tokens)
    return Gate(kind="loss")


def _numbered(config: Config) -> list[tuple[int, StageConfig]]:
    return list(enumerate(config.train.resolved_stages(), 1))


def _data(project: Project, config: Config, parts: Split, files: _Files) -> Data:
    """The files of rows that are split, and the general ones."""
    train, held = files.add(TRAIN_FILE, parts.train), files.add(HOLDOUT_FILE, parts.holdout)
    validation = files.add(VALIDATION_FILE, parts.validation) if parts.validation else None
    if validation is None and config.data.validation is None:
        files.notes.append("there are too few rows to keep some back, so no stage is measured before and after")
    replay, general = _general(project, config, parts, files)
    return Data(
        train=train,
        train_rows=len(parts.train),
        holdout_sha256=held.sha256,
        holdout_rows=len(parts.holdout),
        split_seed=config.data.seed,
        validation=validation,
        validation_rows=len(parts.validation),
        replay=files.add(REPLAY_FILE, replay) if replay else None,
        replay_rows=len(replay),
        general=files.add(GENERAL_FILE, general) if general else None,
        general_rows=len(general),
    )


def _general(project: Project, config: Config, parts: Split, files: _Files) -> tuple[list[Row], list[Row]]:
    """Rows to mix in, and rows to measure: those of ``train.general``, or else some that are left of the replay."""
    train, asked = config.train, _asked(parts)
    general: list[Row] = []
    if train.general is not None:
        general = _drawn(load_rows(project.root / train.general, "train.general"), config.data.seed)[:GENERAL_ROWS]
        asked |= {row.question() for row in general}
    if train.replay is None:
        return [], general
    found = load_rows(project.root / train.replay.path, "train.replay.path")
    clean = [row for row in found if row.question() not in asked]
    files.note(len(found) - len(clean), "general rows ask what is measured with, and are not replayed")
    clean = _drawn(clean, config.data.seed)
    wanted = round(len(parts.train) * train.replay.share / (1 - train.replay.share))
    replay = clean[:wanted]
    if not replay:
        raise DataError(
            f"train.replay: {train.replay.path} has no row to replay",
            effect=NOTHING,
            hint="give it general conversations, or raise train.replay.share",
        )
    if len(replay) < wanted:
        files.note(len(replay), f"general rows are all that there is to replay, of {wanted} wanted")
    replayed = {row.question() for row in replay}
    left = [row for row in clean[wanted:] if row.question() not in replayed]
    return replay, general or left[:GENERAL_ROWS]


def _drawn(rows: Sequence[Row], seed: int) -> list[Row]:
    """All rows in an order that the seed decides."""
    return random.Random(seed).sample(list(rows), len(rows))  # noqa: S311 - a draw, not a secret


def _asked(parts: Split) -> set[str]:
    """The questions that something is measured with."""
    return {row.question() for row in (*parts.holdout, *parts.validation)}


def _stage_facts(
    project: Project, number: int, own: StageConfig, facts: Facts, parts: Split, files: _Files
) -> StageFacts:
    """What is known of a stage's data. What a measurement asks is left out of it."""
    if own.data is None:
        return StageFacts(facts.answers, facts.longest, facts.characters)
    path, key, asked = project.root / own.data, f"train.stages[{number - 1}].data", _asked(parts)
    kept: Sequence[Writable]
    if own.kind == "cpt":
        documents = load_documents(path, key)
        kept = texts = without(documents, asked)
        sizes = [document.size for document in texts]
        files.note(len(documents) - len(texts), f"documents of {own.data} hold a question that is measured with")
    else:
        pairs = load_pairs(path, key)
        kept = clean = [pair for pair in pairs if pair.question() not in asked]
        sizes = [pair.size for pair in clean]
        files.note(len(pairs) - len(clean), f"pairs of {own.data} ask what is measured with, and were left out")
    if not kept:
        raise DataError(
            f"{path}: nothing is left to train on, because all of it asks what is measured with",
            effect=NOTHING,
            hint="add rows of other questions, or hold out others: data.holdout",
        )
    ref = files.add(f"stage-{number}-{own.kind}.jsonl", kept)
    return StageFacts(len(kept), max(sizes), sum(sizes), ref)


def _notes(facts: Facts, parts: Split, files: _Files) -> None:
    """What a person should know of the data before money is spent on it."""
    files.note(parts.duplicates, "rows stand there more than once; each was used once")
    files.note(parts.contaminated, "rows ask what the hold-out asks, and were left out of training")
    files.note(facts.conflicts, "questions have several different answers; the model cannot learn both")


def new_run_id(project: Project) -> str:
    """Sorts by time, and is short enough to be typed: ``20261120-094501-3f9a``.

    It sorts behind every run of the project, also one of this very second: the last one is what commands mean.
    """
    while True:
        run_id = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
        if run_id > max(project.run_ids(), default=""):
            return run_id
        time.sleep(0.1)


def _template(project: Project, config: Config) -> str | None:
    if config.train.template is None:
        return None
    path = project.root / config.train.template
    try:
        return path.read_text(encoding="utf-8")
    except OSError as exc:
        raise ConfigError(
            f"train.template: {path} cannot be read: {exc.strerror}", effect="nothing was started"
        ) from exc
