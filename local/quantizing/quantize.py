"""From what a run trained to a version that can be served: merged, quantised, verified, promoted."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cloudft.errors import NotFound, UsageError
from jobs.spec import Base
from local.base import lock_base, resolve_base
from local.files import need_space, sha256_file, write_json
from local.progress import Progress
from local.project import Project, RunFolder
from local.quantizing.adapter import read_lora
from local.quantizing.divergence import steps_up
from local.quantizing.maker import Outcome, Plan, building, make_all, make_one
from local.quantizing.names import ADAPTER_WEIGHTS
from local.quantizing.quant_types import known_types, offered
from local.quantizing.refused import SomeRefused
from local.quantizing.toolchain import VERSION, ensure_toolchain, require_packages
from local.quantizing.trained import UNTOUCHED, Trained, read_trained
from local.quantizing.worker import run_worker
from local.runs.records import locked
from local.runs.runlock import Made, add_made
from local.serving.versions import BASES, LADDER, MODEL, Manifest, Version, promote

ADAPTERS = "adapters"  # in ``models``


def quantize_run(project: Project, run: RunFolder, *, type: str = "Q4_K_M", progress: Progress) -> Version:
    """``quantize_types`` for one type."""
    return quantize_types(project, run, [type], progress=progress)[0]


def quantize_types(
    project: Project,
    run: RunFolder,
    types: Sequence[str],
    *,
    imatrix: bool = False,
    max_kl: float | None = None,
    step_up: bool = False,
    progress: Progress,
) -> list[Version]:
    """Make what the run trained served versions, one per type, from one read; the first becomes the current one.

    The same adapter and type give the version that exists already.

    Args:
        types: quantisations of ``quant_types.offered``.
        imatrix: learn from the training data which weights matter.
        max_kl: divergence from the 16-bit merge that is allowed, in nats per token; None: the type's own.
        step_up: where a file diverges too far, take the next finer type that does not.
        progress: hears of "check version", "check base", "fetch converter", "merge", "convert", "imatrix", "quantize",
            "verify".

    Returns:
        A version for each type, or for the finer one that took its place; each once.

    Raises:
        UsageError: no such type, or one that can't be made without ``imatrix``.
        NotFound: spec, result or adapter of the run are not here yet, or the base is gone.
        IntegrityError: adapter or base are damaged or have changed, or do not fit each other.
        ConfigError: llama.cpp knows no such architecture or tokenizer.
        SomeRefused: of several types, some are not the model that was trained; the others are versions, and the first
            of them is the current one.
        VerifyError: none is the model that was trained; no version was made.
        EnvironmentProblem: packages, converter, memory or disk space are missing.
        Busy: another build is going on in this project.
    """
    again = f"cloudft quantize {run.run_id}" + (" --imatrix" if imatrix else "")
    kinds = _makeable(types, imatrix, again)
    plan = _run_plan(
        project.models, run, kinds, _with_steps(kinds, step_up), again, imatrix=imatrix, max_kl=max_kl, step_up=step_up
    )
    outcome = _served(plan, project, progress)
    with locked(run, "complete run.lock.json of"):
        add_made(run, [_as_locked(version.manifest) for version in outcome.versions])
    return _all_passed(outcome)


def _as_locked(manifest: Manifest) -> Made:
    return Made(**manifest.model_dump(include=set(Made.model_fields)))


def merged_unserved(project: Project, run: RunFolder, *, type: str = "F16", progress: Progress) -> Path:
    """The run's merge as a file in ``models/ladder``, which is to be measured and never served.

    Returns:
        The GGUF file; the one that is there already, if it is whole.

    Raises:
        CloudftError: as ``quantize_types``.
    """
    again = f"cloudft eval {run.run_id} --ladder"
    kinds = _makeable([type], False, again)
    return make_one(_run_plan(project.models / LADDER, run, kinds, kinds, again), project, progress).root / MODEL


def _run_plan(
    folder: Path,
    run: RunFolder,
    kinds: list[str],
    possible: list[str],
    again: str,
    *,
    imatrix: bool = False,
    max_kl: float | None = None,
    step_up: bool = False,
) -> Plan:
    """What to build in ``folder`` from what the run trained. ``possible``: the types, and those in their place."""
    trained = read_trained(run)
    marks = "-imatrix" if imatrix else ""
    return Plan(
        base=trained.spec.base,
        kinds=kinds,
        roots={kind: folder / f"{run.run_id}-{kind.lower()}{marks}-{trained.sha256[:8]}" for kind in possible},
        name=f"{run.run_id}-{trained.sha256[:8]}",
        template=trained.template,
        again=again,
        trained=trained,
        imatrix=run if imatrix else None,
        max_kl=max_kl,
        step_up=step_up,
    )


def quantize_model(
    project: Project,
    folder: Path,
    types: Sequence[str],
    *,
    max_kl: float | None = None,
    step_up: bool = False,
    progress: Progress,
) -> list[Version]:
    """The same for a model that is whole already and no run's, such as a full fine-tune from elsewhere.

    Raises:
        CloudftError: as ``quantize_types``, and ``base.lock_base``.
    """
    again = f"cloudft quantize --model {shlex.quote(str(folder))}"
    kinds = _makeable(types, False, again)
    if not folder.is_dir():
        raise NotFound(f"{folder} is no folder", effect=UNTOUCHED, hint="name a folder with a model's files")
    base = lock_base(str(folder.resolve()), None, project.root)
    name = re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-") or "model"
    roots = {
        kind: project.models / f"{name}-{kind.lower()}-{base.revision[:8]}" for kind in _with_steps(kinds, step_up)
    }
    plan = Plan(base, kinds, roots, f"{name}-{base.revision[:8]}", None, again=again, max_kl=max_kl, step_up=step_up)
    return _all_passed(_served(plan, project, progress))


def quantize_adapter(project: Project, run: RunFolder, *, progress: Progress) -> Path:
    """The run's adapter alone, as a LoRA GGUF file in ``models/adapters``, for a server that adds it to its base.

    It is no version: nothing serves it by itself, and ``models/current`` stays as it is.

    Raises:
        ConfigError: the adapter is more than LoRA factors.
        CloudftError: as ``quantize_types``.
    """
    trained = read_trained(run)
    if trained.whole:
        raise UsageError(
            f"run {run.run_id} trained a whole model: it has no adapter",
            effect=UNTOUCHED,
            hint=f"cloudft quantize {run.run_id}",
        )
    out = project.models / ADAPTERS / f"{run.run_id}-{trained.sha256[:8]}.gguf"
    if _is_whole(out):
        return out
    require_packages()
    toolchain = ensure_toolchain(progress)
    folder = resolve_base(trained.spec.base, project.root, progress)
    read_lora(folder, run.adapter)  # refuses what does not fit
    with building(project) as scratch:
        need_space(project.models, 4 * (run.adapter / ADAPTER_WEIGHTS).stat().st_size, "writing the adapter")
        written = scratch / out.name
        arguments = {
            "base": str(folder),
            "adapter": str(run.adapter),
            "toolchain": str(toolchain.root),
            "scratch": str(scratch),
            "out": str(written),
            "again": f"cloudft quantize {run.run_id}",
        }
        found = run_worker("adapter", arguments, scratch, progress)
        lineage = _adapter_lineage(trained, written) | found
        out.parent.mkdir(parents=True, exist_ok=True)
        written.replace(out)
        write_json(out.with_suffix(".json"), lineage)
    return out


def _adapter_lineage(trained: Trained, gguf: Path) -> dict[str, Any]:
    return {
        "run_id": trained.run.run_id,
        "base_id": trained.spec.base.id,
        "base_revision": trained.spec.base.revision,
        "adapter_sha256": trained.sha256,
        "llama_cpp_python": VERSION,
        "gguf_sha256": sha256_file(gguf),
    }


def _is_whole(gguf: Path) -> bool:
    """Whether an adapter's file has the bytes that it was written with."""
    try:
        sha256 = json.loads(gguf.with_suffix(".json").read_bytes())["gguf_sha256"]
        return bool(sha256_file(gguf) == sha256)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def quantized_base(
    project: Project,
    base: Base,
    *,
    type: str = "Q4_K_M",
    progress: Progress,
    template: str | None = None,
    folder: str = BASES,
    imatrix: RunFolder | None = None,
    max_kl: float | None = None,
) -> Path:
    """The base as it is, quantised like a version: the "before" of an evaluation. Cached in ``models/bases``.

    Args:
        imatrix: the run whose training rows say which weights matter; None: all alike.
        max_kl: as the version was allowed to lose; None: what its type may.
        template: the chat template that the file must carry, so that before and after see the same prompt;
            None: the base's own.
        folder: of ``models`` to keep it in.

    Returns:
        The GGUF file.

    Raises:
        CloudftError: as ``quantize_run``.
    """
    require_packages()
    (kind,) = known_types([type])
    name = f"{base.revision[:16]}-{kind.lower()}"
    if template is not None:
        name += "-" + hashlib.sha256(template.encode()).hexdigest()[:8]
    if imatrix is not None:
        name += f"-imatrix-{imatrix.run_id}"
    root = project.models / folder / name
    plan = Plan(base, [kind], {kind: root}, name, template, imatrix=imatrix, max_kl=max_kl)
    return make_one(plan, project, progress).root / MODEL


def _makeable(types: Sequence[str], imatrix: bool, again: str) -> list[str]:
    """The types by llama.cpp's spelling, if they can be made."""
    require_packages()
    kinds = known_types(types)
    needy = [kind for kind in kinds if offered()[kind].needs_imatrix]
    if needy and not imatrix:
        whole = "--model" in again
        raise UsageError(
            f"{needy[0]} can't be made without knowing which weights matter (--imatrix)"
            + (", which is learnt from a run's training data, and --model has none" if whole else ""),
            effect=UNTOUCHED,
            hint=f"{again} --type {'Q3_K_M' if whole else needy[0] + ' --imatrix'}",
        )
    return kinds


def _with_steps(kinds: list[str], step_up: bool) -> list[str]:
    """The types, and those that may take their place."""
    steps = [finer for kind in kinds for finer in steps_up(kind)] if step_up else []
    return list(dict.fromkeys([*kinds, *steps]))


def _served(plan: Plan, project: Project, progress: Progress) -> Outcome:
    """Make what is planned; the first version becomes the current one."""
    outcome = make_all(plan, project, progress)
    promote(project, outcome.versions[0].name)
    return outcome


def _all_passed(outcome: Outcome) -> list[Version]:
    """The versions; ``SomeRefused`` where a type has none."""
    if outcome.refused:
        raise SomeRefused(outcome.versions, outcome.refused)
    return outcome.versions
