"""From a run's folder to the report's value. Reads files, and nothing else: no network, no model, no provider."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import yaml

from cloudft import __version__
from cloudft.errors import CloudftError, NotFound
from jobs.spec import Base, RunSpec, Stage
from local.base import base_folder
from local.config import CardConfig, load_config
from local.project import Project, RunFolder
from local.report.evaluated import read_evaluated
from local.report.history import money, read_json, timeline, training
from local.report.model import (
    BaseFacts,
    CardFacts,
    Evaluated,
    Link,
    ModelFacts,
    Report,
    Setting,
    StageConfig,
    TaskFacts,
    Training,
    Verdict,
)
from local.report.rows import data_facts
from local.report.unmeasured import unmeasured
from local.report.words import epoch, shown
from local.runs.records import RunRecord, read_record, read_spec
from local.runs.runlock import RunLock, read_lock
from local.serving.versions import Version, current, list_versions

KINDS = {
    "json": "Every answer is one JSON object that obeys a schema.",
    "classification": "Every answer is one of a few labels.",
    "tools": "Every answer names the tools to call, with their arguments.",
    "text": "Every answer is free text.",
    "code": "Every answer is code.",
}


def collect(project: Project, run: RunFolder, now: float | None = None) -> Report:
    """All that is known of a run.

    Raises:
        NotFound, IntegrityError: the run's record, spec or evaluation is missing or damaged.
        ConfigError: ``cloudft.yaml`` cannot be read; the data card stands there.
    """
    now = time.time() if now is None else now
    record, spec, lock = read_record(run), read_spec(run), _lock(run)
    result = read_json(run.result)
    evaluated, version = read_evaluated(run), _version(project, run)
    trained = training(run, spec, record, result)
    paid = money(record, now)
    card = card_facts(load_config(project.config_file).data.card)
    model = _model(version)
    verdict, headline = _headline(record, trained, evaluated)
    return Report(
        run_id=run.run_id,
        project=spec.project,
        headline=headline,
        verdict=verdict,
        written_at=now,
        cloudft=__version__,
        task=_task(run),
        base=_base(spec.base, project),
        model=model,
        evaluated=evaluated,
        training=trained,
        stages=tuple(_stage(number, stage, spec) for number, stage in enumerate(spec.stages, start=1)),
        data=data_facts(run, spec, lock),
        card=card,
        money=paid,
        timeline=timeline(record, result, version, evaluated.document.created_at if evaluated else None),
        lineage=_lineage(spec, lock, result, version, evaluated),
        unmeasured=unmeasured(run.run_id, spec, evaluated, model, card, paid),
    )


def card_facts(card: CardConfig) -> CardFacts:
    return CardFacts(
        source=card.source,
        licence=card.license,
        version=card.version,
        language=card.languages,
        personal_data=card.personal_data,
        reviewed_by=card.reviewed_by,
        notes=card.notes,
    )


def _lock(run: RunFolder) -> RunLock | None:
    try:
        return read_lock(run)
    except NotFound:
        return None


def _version(project: Project, run: RunFolder) -> Version | None:
    """The version made from the run: the one that is served if it is of this run, else the newest."""
    try:
        served = current(project)
    except CloudftError:
        served = None
    if served is not None and served.manifest.run_id == run.run_id:
        return served
    made = [version for version in list_versions(project) if version.manifest.run_id == run.run_id]
    return made[-1] if made else None


def _headline(record: RunRecord, trained: Training, evaluated: Evaluated | None) -> tuple[Verdict, str]:
    """The sentence that everything else explains."""
    if evaluated is not None:
        verdict = evaluated.document.verdict
        return verdict.outcome, verdict.sentence
    if not record.ended and trained.status not in ("completed", "stopped"):
        return "unmeasured", f"not measured yet: the run is {record.status}"
    if trained.status in ("completed", "stopped"):
        return "unmeasured", "not measured: the model was trained, and nobody has asked it anything yet"
    reason = f": {trained.reason}" if trained.reason else ""
    return "unmeasured", f"nothing to measure: the run ended without a model ({trained.status}{reason})"


def _task(run: RunFolder) -> TaskFacts:
    found = read_json(run.task)
    kind = str(found.get("kind", "unknown"))
    schema = found.get("json_schema")
    return TaskFacts(kind, KINDS.get(kind, ""), None if schema is None else _pretty(schema))


def _pretty(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100).rstrip()


def _base(base: Base, project: Project) -> BaseFacts:
    return BaseFacts(base.id, base.source, base.revision, base.parameters, _licence(base, project))


def _licence(base: Base, project: Project) -> str | None:
    """What the base's own model card says, if it is on this computer."""
    path = _card_of(base, project)
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8")
        head = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else None
    except (OSError, UnicodeDecodeError, IndexError, yaml.YAMLError):
        return None
    licence = head.get("license") if isinstance(head, dict) else None
    return licence if isinstance(licence, str) else None


def _card_of(base: Base, project: Project) -> Path | None:
    if base.source == "folder":
        return base_folder(base.id, project.root) / "README.md"
    from local.hub import cached_file

    return cached_file(base, "README.md")


def _stage(number: int, stage: Stage, spec: RunSpec) -> StageConfig:
    several = len(spec.stages) > 1
    title = f"{number}. {stage.kind}, {stage.method}" if several else f"{stage.kind}, {stage.method}"
    values = stage.model_dump(exclude={"origins"})
    # What this stage has no use for.
    idle = {*(() if stage.data else ("data", "rows")), *(() if stage.kind == "dpo" else ("beta",))}
    settings = [Setting(name, shown(value), _origin(name, stage)) for name, value in values.items() if name not in idle]
    seed = Setting("seed", shown(spec.seed), "cloudft.yaml, or its default")
    return StageConfig(title, (*settings, seed))


def _origin(name: str, stage: Stage) -> str:
    default = type(stage).model_fields[name].default
    return stage.origins.get(name) or ("the default" if getattr(stage, name) == default else "not recorded")


def _model(version: Version | None) -> ModelFacts | None:
    if version is None:
        return None
    manifest, found = version.manifest, version.manifest.verification
    return ModelFacts(
        version=version.name,
        type=manifest.type,
        bytes=manifest.gguf_bytes,
        sha256=manifest.gguf_sha256,
        merge=manifest.merge,
        llama_cpp=manifest.llama_cpp_python,
        made_at=epoch(manifest.created_at),
        kl=found.kl_divergence,
        top1=found.top1_agreement,
    )


def _lineage(
    spec: RunSpec, lock: RunLock | None, result: dict[str, Any], version: Version | None, evaluated: Evaluated | None
) -> tuple[Link, ...]:
    """What the model came from, and what came from it, each by its content."""
    code = f"cloudft {lock.code.cloudft}, sha256 over trainer and package locks" if lock else "not recorded"
    links = [
        Link("Base", spec.base.revision, f"{spec.base.id}, {_revision_kind(spec.base)}"),
        Link("Training data", spec.data.train.sha256, f"{spec.data.train.path}, {spec.data.train_rows} rows, sha256"),
        Link("Hold-out", spec.data.holdout_sha256, f"holdout.jsonl, {spec.data.holdout_rows} rows, sha256"),
        Link("Spec", spec.sha256(), "spec.json, sha256: every setting of the run"),
        Link("Training code", lock.code.sha256 if lock else "", code),
        Link("Training image", spec.image or "", "by digest" if spec.image else "none: this computer's own Python"),
    ]
    adapter = (result.get("artifacts") or {}).get("adapter")
    if adapter:
        links.append(Link("Adapter", str(adapter.get("sha256")), "as it was sent by the machine, sha256"))
    if version is not None:
        manifest = version.manifest
        links += [
            Link("GGUF file", manifest.gguf_sha256, f"models/{version.name}/model.gguf, {manifest.type}, sha256"),
            Link("llama.cpp", manifest.llama_cpp_python, "llama-cpp-python, which carries it"),
        ]
    if evaluated is not None:
        for label, side in evaluated.document.sides.items():
            links.append(Link(f"Answers {label}", side.outputs.sha256, f"{side.outputs.path}, sha256"))
    return tuple(links)


def _revision_kind(base: Base) -> str:
    return "commit" if base.source == "hub" else "sha256 over its files"
