"""Two runs side by side: data, config, code and numbers, and only what differs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from cloudft.errors import NotFound
from local.evaluation.document.eval_json import Document, read_document
from local.evaluation.document.measurement import LABELS
from local.project import Project, RunFolder
from local.runs.records import read_record, read_spec
from local.runs.runlock import RunLock, read_lock

Flat = dict[str, Any]
SECTIONS = ("data", "config", "code", "numbers")
MADE = " file sha256"
LABELLED = tuple(f" {label}" for label in LABELS)
# Every run has its own of these; they say nothing about what a run is.
OWN = ("run_id", "data", "origins")


@dataclass(frozen=True)
class Diff:
    """What differs: section → name → (of the first run, of the second); None stands for "there is none"."""

    first: str
    second: str
    data: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    config: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    code: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    numbers: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        return not (self.data or self.config or self.code or self.numbers)

    def as_dict(self) -> dict[str, Any]:
        return {
            "first": self.first,
            "second": self.second,
            "same": self.same,
            **{name: {key: list(pair) for key, pair in getattr(self, name).items()} for name in SECTIONS},
            "notes": list(self.notes),
        }


def diff_runs(project: Project, first: RunFolder, second: RunFolder, now: float) -> Diff:
    """Compare two runs by what lies in their folders.

    Raises:
        NotFound, IntegrityError: a record, spec, lock or evaluation is missing or damaged.
    """
    one, two = (_describe(run, now) for run in (first, second))
    sections = {name: _differences(one[name], two[name]) for name in SECTIONS}
    return Diff(first.run_id, second.run_id, **sections, notes=_notes(one, two))


def _differences(one: Flat, two: Flat) -> dict[str, tuple[Any, Any]]:
    names = dict.fromkeys([*one, *two])
    return {name: (one.get(name), two.get(name)) for name in names if one.get(name) != two.get(name)}


def _describe(run: RunFolder, now: float) -> dict[str, Flat]:
    """A run as flat values, by section."""
    spec = read_spec(run)
    lock, document = _lock(run), _evaluation(run)
    return {
        "data": _flat(spec.data.model_dump(mode="json")) | _source(lock),
        "config": _config(run, spec.model_dump(mode="json")),
        "code": _code(lock, document),
        "numbers": _numbers(run, lock, document, now),
    }


def _config(run: RunFolder, spec: dict[str, Any]) -> Flat:
    values = _flat({name: value for name, value in spec.items() if name not in OWN})
    if spec.get("template"):
        # A whole template side by side helps nobody.
        values["template"] = _digest(spec["template"].encode())
    values = {name: value for name, value in values.items() if ".origins." not in name}
    return values | {f"task.{name}": value for name, value in _flat(_json(run.task)).items()}


def _source(lock: RunLock | None) -> Flat:
    if lock is None or lock.source is None:
        return {}
    return {f"source.{name}": value for name, value in lock.source.model_dump().items()}


def _code(lock: RunLock | None, document: Document | None) -> Flat:
    if lock is None:
        return {}
    values: Flat = {
        "cloudft": lock.code.cloudft,
        "training code sha256": lock.code.sha256,
        "python": lock.python.version,
        "platform": lock.python.platform,
        **{f"package {name}": version for name, version in lock.python.packages.items()},
    }
    if lock.image is not None:
        values |= {f"image package {name}": version for name, version in lock.image.packages.items()}
    if lock.trained is not None:
        values |= {f"trained with {name}": version for name, version in lock.trained.versions.items()}
    if document is not None:
        values |= {f"measured with {name}": version for name, version in document.software.items()}
    return values


def _numbers(run: RunFolder, lock: RunLock | None, document: Document | None, now: float) -> Flat:
    record, trainer = read_record(run), _json(run.result).get("trainer") or {}
    values: Flat = {"status": record.status, "dollars at most": round(record.spent(now), 4)}
    for name in ("steps_done", "train_loss", "trained_tokens", "adapter_sha256"):
        if name in trainer:
            values[name.replace("_", " ")] = trainer[name]
    if lock is not None:
        values |= {f"{made.type}{MADE}": made.gguf_sha256 for made in lock.made}
    if document is not None:
        values["rows measured"] = document.n
        for label in LABELS:
            values |= {f"{name} {label}": value for name, value in getattr(document, label).items()}
    return values


def _notes(one: dict[str, Flat], two: dict[str, Flat]) -> tuple[str, ...]:
    """What must be known to read the numbers."""
    notes = []
    held = [side["data"].get("holdout_sha256") for side in (one, two)]
    if held[0] != held[1]:
        notes.append("the hold-outs differ: the numbers were not measured on the same rows")
    adapters = [side["numbers"].get("adapter sha256") for side in (one, two)]
    if adapters[0] and adapters[0] == adapters[1]:
        notes.append("both adapters have the same bytes")
        if _files(one) != _files(two):
            notes.append("a served file holds the name of its run, so its bytes differ even where the model does not")
    metrics = [name for name in one["numbers"] if name.endswith(LABELLED) and name in two["numbers"]]
    if metrics and held[0] == held[1] and all(one["numbers"][name] == two["numbers"][name] for name in metrics):
        notes.append(f"all {len(metrics) // len(LABELLED)} metrics are the same, before and after")
    for number, side in enumerate((one, two), start=1):
        if not side["code"]:
            notes.append(f"run {number} has no run.lock.json: its code and its data file cannot be compared")
        if "rows measured" not in side["numbers"]:
            notes.append(f"run {number} was not evaluated: there are no metrics to compare")
    return tuple(notes)


def _files(side: dict[str, Flat]) -> Flat:
    """The served files, by their content."""
    return {name: value for name, value in side["numbers"].items() if name.endswith(MADE)}


def _lock(run: RunFolder) -> RunLock | None:
    try:
        return read_lock(run)
    except NotFound:
        return None


def _evaluation(run: RunFolder) -> Document | None:
    try:
        return read_document(run)
    except NotFound:
        return None


def _flat(value: Any, prefix: str = "") -> Flat:
    """Nested mappings and lists as one mapping, with dots between the names."""
    items: list[tuple[str, Any]]
    if isinstance(value, Mapping):
        items = [(str(name), inner) for name, inner in value.items()]
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        items = [(str(number), inner) for number, inner in enumerate(value, start=1)]
    else:
        return {prefix: value}
    found: Flat = {}
    for name, inner in items:
        found |= _flat(inner, f"{prefix}.{name}" if prefix else name)
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _digest(raw: bytes) -> str:
    return f"sha256 {sha256(raw).hexdigest()}"
