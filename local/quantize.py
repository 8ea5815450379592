"""From an adapter at home to a version that can be served: merged, quantised, verified, promoted.

Everything is built in a hidden folder beside the versions and renamed at the end: a version is whole or it is not
there. A lock keeps two builds apart, so whatever a killed one left behind is removed by the next.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from cloudft.errors import Busy, CloudftError, IntegrityError, NotFound, UsageError, VerifyError
from jobs.spec import Base, RunSpec
from local.base import folder_digest, lock_base, model_files, resolve_base
from local.files import need_space, sha256_file, write_text
from local.ggml import TYPES
from local.lora import ADAPTER_WEIGHTS, read_lora
from local.merge import check_adapter, trained_template
from local.progress import Progress
from local.project import Project, RunFolder
from local.toolchain import VERSION, ensure_toolchain, require_packages
from local.verify import Messages, Verification
from local.versions import BASES, MANIFEST, MODEL, TEMPLATE, Manifest, Version, promote, read_version
from local.worker import UNCHANGED, run_worker

SCRATCH = ".building-"
ADAPTERS = "adapters"  # in ``models``
SAMPLE_ROWS = 8  # of the hold-out, and as many of the training rows
IMATRIX_ROWS = 200
# Bytes of a file by its type, as a share of the 16-bit model; rounded up.
SHARE = {"F32": 2.0, "F16": 1.0, "BF16": 1.0, "Q8_0": 0.56, "Q6_K": 0.45}


@dataclass(frozen=True)
class _Plan:
    """What is to be built, and where (type → folder); without a run it is a model as it is."""

    base: Base
    roots: dict[str, Path]
    name: str
    template: str | None
    run: RunFolder | None = None
    adapter_sha256: str | None = None
    spec_sha256: str | None = None
    imatrix: bool = False
    max_kl: float | None = None


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
    progress: Progress,
) -> list[Version]:
    """Make the run's adapter served versions, one per type, from one read; the first becomes the current one.

    The same adapter and type give the version that exists already.

    Args:
        types: quantisations of ``ggml.TYPES``.
        imatrix: learn from the training data which weights matter.
        max_kl: divergence from the 16-bit merge that is allowed, in nats per token; None: the type's own.
        progress: hears of "check base", "fetch converter", "merge", "convert", "quantize", "verify".

    Raises:
        UsageError: no such type.
        NotFound: the run has no spec or no adapter yet, or the base is gone.
        IntegrityError: adapter or base are damaged or have changed, or do not fit each other.
        ConfigError: llama.cpp knows no such architecture or tokenizer.
        VerifyError: the file is not the model that was trained; no version was made.
        EnvironmentProblem: packages, converter, memory or disk space are missing.
        Busy: another build is going on in this project.
    """
    kinds = known_types(types)
    spec = _read_spec(run)
    check_adapter(run.adapter)
    template = trained_template(run.adapter)
    if spec.template is not None and template != spec.template:
        raise VerifyError(
            f"{run.adapter / TEMPLATE} is not the chat template of the run's spec",
            effect=UNCHANGED,
            hint="bring the adapter home again:  cloudft pull",
        )
    adapter_sha256 = folder_digest(run.adapter)
    marks = "-imatrix" if imatrix else ""
    names = {kind: f"{run.run_id}-{kind.lower()}{marks}-{adapter_sha256[:8]}" for kind in kinds}
    plan = _Plan(
        base=spec.base,
        roots={kind: project.models / name for kind, name in names.items()},
        name=f"{run.run_id}-{adapter_sha256[:8]}",
        template=template,
        run=run,
        adapter_sha256=adapter_sha256,
        spec_sha256=spec.sha256(),
        imatrix=imatrix,
        max_kl=max_kl,
    )
    return _versions(plan, project, progress)


def quantize_model(
    project: Project, folder: Path, types: Sequence[str], *, max_kl: float | None = None, progress: Progress
) -> list[Version]:
    """The same for a model that is whole already, such as a full fine-tune: there is no adapter to merge.

    Raises:
        CloudftError: as ``quantize_types``, and ``base.lock_base``.
    """
    kinds = known_types(types)
    if not folder.is_dir():
        raise NotFound(f"{folder} is no folder", effect=UNCHANGED, hint="name a folder with a model's files")
    base = lock_base(str(folder.resolve()), None, project.root)
    name = re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-") or "model"
    roots = {kind: project.models / f"{name}-{kind.lower()}-{base.revision[:8]}" for kind in kinds}
    return _versions(_Plan(base, roots, f"{name}-{base.revision[:8]}", None, max_kl=max_kl), project, progress)


def quantize_adapter(project: Project, run: RunFolder, *, progress: Progress) -> Path:
    """The run's adapter alone, as a LoRA GGUF file in ``models/adapters``, for a server that adds it to its base.

    It is no version: nothing serves it by itself, and ``models/current`` stays as it is.

    Raises:
        ConfigError: the adapter is more than LoRA factors.
        CloudftError: as ``quantize_types``.
    """
    spec = _read_spec(run)
    check_adapter(run.adapter)
    out = project.models / ADAPTERS / f"{run.run_id}-{folder_digest(run.adapter)[:8]}.gguf"
    if out.is_file():
        return out
    require_packages()
    folder = resolve_base(spec.base, project.root, progress)
    read_lora(folder, run.adapter)
    with _building(project) as scratch:
        size = (run.adapter / ADAPTER_WEIGHTS).stat().st_size
        need_space(project.models, 4 * size, "writing the adapter")
        arguments = {
            "base": str(folder),
            "adapter": str(run.adapter),
            "toolchain": str(ensure_toolchain(progress).root),
            "scratch": str(scratch),
            "out": str(scratch / out.name),
        }
        run_worker("adapter", arguments, scratch, progress)
        out.parent.mkdir(parents=True, exist_ok=True)
        (scratch / out.name).replace(out)
    return out


def _versions(plan: _Plan, project: Project, progress: Progress) -> list[Version]:
    folder = _fit_base(plan, project, progress)
    with _building(project) as scratch:
        if folder is not None:
            _build(plan, folder, project, scratch, progress)
        made = [read_version(root) for root in plan.roots.values()]
        promote(project, made[0].name)
    return made


def quantized_base(
    project: Project, base: Base, *, type: str = "Q4_K_M", progress: Progress, template: str | None = None
) -> Path:
    """The base as it is, quantised like a version: the "before" of an evaluation. Cached in ``models/bases``.

    Args:
        template: the chat template that the file must carry, so that before and after see the same prompt;
            None: the base's own.

    Returns:
        The GGUF file.

    Raises:
        CloudftError: as ``quantize_run``.
    """
    (kind,) = known_types([type])
    name = f"{base.revision[:16]}-{kind.lower()}"
    if template is not None:
        name += "-" + hashlib.sha256(template.encode()).hexdigest()[:8]
    root = project.models / BASES / name
    plan = _Plan(base, {kind: root}, name, template)
    if (folder := _fit_base(plan, project, progress)) is not None:
        with _building(project) as scratch:
            _build(plan, folder, project, scratch, progress)
    return root / MODEL


def known_types(types: Sequence[str]) -> list[str]:
    """The types by llama.cpp's spelling, each once.

    Raises:
        UsageError: there is no such type.
    """
    for kind in types:
        if kind.upper() not in TYPES:
            raise UsageError(
                f"no quantisation type {kind!r}", effect=UNCHANGED, hint=f"choose one of {', '.join(TYPES)}"
            )
    return list(dict.fromkeys(kind.upper() for kind in types))


def _fit_base(plan: _Plan, project: Project, progress: Progress) -> Path | None:
    """The base's folder, unchanged and of the adapter's shapes, before anything is written; None: all is there."""
    if all(_whole(root) for root in plan.roots.values()):
        return None
    require_packages()
    folder = resolve_base(plan.base, project.root, progress)
    if plan.run is not None:
        read_lora(folder, plan.run.adapter)
    return folder


def _read_spec(run: RunFolder) -> RunSpec:
    try:
        return RunSpec.model_validate_json(run.spec.read_bytes())
    except FileNotFoundError as exc:
        raise NotFound(f"{run.spec} is not there, so nobody knows what the run's base is", effect=UNCHANGED) from exc
    except ValidationError as exc:
        raise IntegrityError(f"{run.spec} is damaged: {exc.errors()[0]['msg']}", effect=UNCHANGED) from exc


def _whole(root: Path) -> Version | None:
    try:
        return read_version(root)
    except CloudftError:
        return None


@contextlib.contextmanager
def _building(project: Project) -> Iterator[Path]:
    """A hidden folder to build in, under the project's lock; gone afterwards, whatever happens."""
    project.models.mkdir(parents=True, exist_ok=True)
    lock = FileLock(project.models / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as exc:
        raise Busy(
            f"another model is being built in {project.models}",
            effect=UNCHANGED,
            hint="wait for it to end, then type the same command again",
        ) from exc
    try:
        for debris in (*project.models.glob(f"{SCRATCH}*"), *project.models.glob(".current-*")):
            if debris.is_symlink():
                debris.unlink()
            else:
                shutil.rmtree(debris, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(dir=project.models, prefix=SCRATCH))
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    finally:
        lock.release()


def _build(plan: _Plan, folder: Path, project: Project, scratch: Path, progress: Progress) -> None:
    """Build the folders of ``plan.roots`` in ``scratch``, and rename them into place."""
    weights = sum(path.stat().st_size for path in model_files(folder))
    roots = {kind: root for kind, root in plan.roots.items() if _whole(root) is None}
    share = sum(SHARE.get(kind, 0.42) for kind in roots)
    if plan.run is not None and isinstance(read_lora(folder, plan.run.adapter), str):
        share += 1  # what peft merges lies there until it was read
    need_space(project.models, int(share * weights), "merging and quantising")
    toolchain = ensure_toolchain(progress)
    made = {kind: scratch / f"made-{kind}" for kind in roots}  # not the scratch folder itself: only its owner reads it
    for path in made.values():
        path.mkdir()
    found = run_worker(
        "build",
        {
            "base": str(folder),
            "adapter": str(plan.run.adapter) if plan.run else None,
            "template": plan.template,
            "toolchain": str(toolchain.root),
            "scratch": str(scratch),
            "outs": {kind: str(path / MODEL) for kind, path in made.items()},
            "name": plan.name,
            "samples": _samples(plan.run) if plan.run else [],
            "imatrix": _training_rows(plan.run) if plan.run and plan.imatrix else None,
            "limit": plan.max_kl,
        },
        scratch,
        progress,
    )
    for kind, root in roots.items():
        if plan.template is not None:
            write_text(made[kind] / TEMPLATE, plan.template)
        manifest = _manifest(plan, kind, made[kind] / MODEL, found)
        write_text(made[kind] / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
        root.parent.mkdir(parents=True, exist_ok=True)
        if root.exists():  # damaged, or it would have been used
            root.replace(scratch / f"damaged-{kind}")
        made[kind].replace(root)


def _manifest(plan: _Plan, kind: str, gguf: Path, found: dict[str, Any]) -> Manifest:
    return Manifest(
        version=plan.roots[kind].name,
        run_id=plan.run.run_id if plan.run else None,
        base_id=plan.base.id,
        base_revision=plan.base.revision,
        adapter_sha256=plan.adapter_sha256,
        spec_sha256=plan.spec_sha256,
        type=kind,
        merge=found["merge"],
        imatrix=plan.imatrix,
        gguf_sha256=sha256_file(gguf),
        gguf_bytes=gguf.stat().st_size,
        llama_cpp_python=VERSION,
        created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        verification=Verification.model_validate(found["verification"][kind]),
    )


def _samples(run: RunFolder) -> list[Messages]:
    """Conversations of the run: the first rows of its hold-out, then of its training data."""
    return _conversations(run.holdout, SAMPLE_ROWS) + _conversations(run.train_data, SAMPLE_ROWS)


def _training_rows(run: RunFolder) -> list[Messages]:
    return _conversations(run.train_data, IMATRIX_ROWS)


def _conversations(path: Path, most: int) -> list[Messages]:
    samples: list[Messages] = []
    if path.is_file():
        with path.open(encoding="utf-8") as lines:
            for _, line in zip(range(most), lines, strict=False):
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    samples.append(json.loads(line)["messages"])
    return samples
