"""Builds the folders of versions: in a hidden folder beside them, renamed into place when they are whole.

So a version is whole or it is not there. A lock keeps two builds apart, so whatever a killed one left behind is removed
by the next.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cloudft.errors import Busy, CloudftError
from jobs.rendering import served_template
from jobs.spec import Base
from local.base import resolve_base
from local.files import need_space, sha256_file, write_text
from local.progress import Progress
from local.project import Project, RunFolder
from local.quantizing.adapter import base_tensors, read_lora, sixteen_bits
from local.quantizing.divergence import limit_of, steps_up
from local.quantizing.lora import Lora
from local.quantizing.quant_types import offered
from local.quantizing.refused import Refused, all_refused
from local.quantizing.toolchain import VERSION, ensure_toolchain, require_packages
from local.quantizing.trained import UNTOUCHED, Trained
from local.quantizing.verify import Verification
from local.quantizing.verify_tokens import Messages
from local.quantizing.worker import run_worker
from local.serving.versions import MANIFEST, MODEL, PROMPTS, TEMPLATE, Manifest, Version, read_version

SCRATCH = ".building-"
SAMPLE_ROWS = 8  # of the hold-out, and as many of the training rows
IMATRIX_ROWS = 200
# Bits per weight that embeddings and fallback types may add to what a type has in a square model.
MARGIN = 1.5


@dataclass(frozen=True)
class Plan:
    """What is to be built, and where.

    ``kinds`` are the types asked for; ``roots`` (type → folder) has those that may take their place as well. Without
    ``trained`` it is ``base`` as it is. ``again`` is the command that was typed, for hints. ``imatrix``: the run whose
    training rows say which weights matter; None: all alike.
    """

    base: Base
    kinds: list[str]
    roots: dict[str, Path]
    name: str
    template: str | None
    again: str = "cloudft quantize"
    trained: Trained | None = None
    imatrix: RunFolder | None = None
    max_kl: float | None = None
    step_up: bool = False

    @property
    def adapter(self) -> Path | None:
        return self.trained.folder if self.trained is not None and not self.trained.whole else None


@dataclass(frozen=True)
class Outcome:
    """What came of the types of a plan: ``versions``, each once and in the order of the types, and ``refused``."""

    versions: list[Version]
    refused: list[Refused]


def make_one(plan: Plan, project: Project, progress: Progress) -> Version:
    """The version of a plan for one type; made if need be.

    Raises:
        CloudftError: see ``quantize.quantize_types``.
    """
    (version,) = make_all(plan, project, progress).versions
    return version


def make_all(plan: Plan, project: Project, progress: Progress) -> Outcome:
    """A version for each type of a plan, or the finer one in its place; made if need be.

    Raises:
        VerifyError: every type was refused.
        CloudftError: see ``quantize.quantize_types``.
    """
    refused: list[Refused] = []
    there = {kind: version for kind in plan.kinds if (version := _usable(plan, kind, progress)) is not None}
    missing = [kind for kind in plan.kinds if kind not in there]
    if missing:
        require_packages()
        toolchain = ensure_toolchain(progress).root
        folder, needed = _model_folder(plan, missing, project, progress)
        with building(project) as scratch:
            need_space(project.models, needed, "merging and quantising")
            made, refused = _build(plan, missing, folder, toolchain, scratch, progress)
            there |= made
    if not there:
        raise all_refused(refused)
    versions = {there[kind].name: there[kind] for kind in plan.kinds if kind in there}
    return Outcome(list(versions.values()), refused)


def _usable(plan: Plan, kind: str, progress: Progress) -> Version | None:
    """The version that exists, if its file is what was made and diverges no further than is allowed now."""
    try:
        version = read_version(plan.roots[kind])
    except CloudftError:
        return None
    progress("check version", 0, version.manifest.gguf_bytes, "bytes", version.name)
    if sha256_file(version.gguf) != version.manifest.gguf_sha256:
        return None
    progress("check version", version.manifest.gguf_bytes, version.manifest.gguf_bytes, "bytes", version.name)
    found = version.manifest.verification.kl_divergence
    return version if found is None or found <= limit_of(kind, plan.max_kl) else None


def _model_folder(plan: Plan, kinds: list[str], project: Project, progress: Progress) -> tuple[Path, int]:
    """The base's folder, unchanged and of the adapter's shapes, before anything is written; or the model trained.

    And the bytes of disk that it takes to build the types. A file that is too far off is removed before the next.
    """
    whole = plan.trained is not None and plan.trained.whole
    folder = plan.trained.folder if plan.trained is not None and whole else None
    folder = folder or resolve_base(plan.base, project.root, progress)
    lora = read_lora(folder, plan.adapter) if plan.adapter is not None else None
    files = sum((offered()[kind].bits + MARGIN) / 16 for kind in kinds) * sixteen_bits(folder)
    copied = lora.whole if isinstance(lora, Lora) else {}
    if isinstance(lora, str):  # what peft merges lies there until it was read
        copied = base_tensors(folder)
    return folder, int(files) + sum(tensor.end - tensor.begin for tensor in copied.values())


@contextlib.contextmanager
def building(project: Project) -> Iterator[Path]:
    """A hidden folder to build in, under the project's lock; gone afterwards, whatever happens.

    Raises:
        Busy: another build is going on.
    """
    project.models.mkdir(parents=True, exist_ok=True)
    lock = FileLock(project.models / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as exc:
        raise Busy(
            f"another model is being built in {project.models}",
            effect=UNTOUCHED,
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


def _build(
    plan: Plan,
    kinds: list[str],
    folder: Path,
    toolchain: Path,
    scratch: Path,
    progress: Progress,
) -> tuple[dict[str, Version], list[Refused]]:
    """Build types of the plan in ``scratch``, and rename into place what passed.

    Returns:
        Type asked for → the version made; and the types that were refused.
    """
    steps = {kind: steps_up(kind) if plan.step_up else [] for kind in kinds}
    possible = list(dict.fromkeys([*kinds, *(finer for rest in steps.values() for finer in rest)]))
    made = {kind: scratch / f"made-{kind}" for kind in possible}  # not scratch itself: only its owner reads it
    for path in made.values():
        path.mkdir()
    arguments = _arguments(plan) | {
        "base": str(folder),
        "toolchain": str(toolchain),
        "scratch": str(scratch),
        "outs": {kind: str(path / MODEL) for kind, path in made.items()},
        "steps": steps,
    }
    found = run_worker("build", arguments, scratch, progress)
    manifests = {kind: _complete(plan, kind, made[kind], found) for kind in found["verification"]}
    # Each is whole by itself: whoever interrupts here keeps those that have their names, and the rest is made again.
    there = {
        kind: _put_in_place(plan.roots[kind], made[kind], manifest, scratch) for kind, manifest in manifests.items()
    }
    versions = {kind: there[took] for kind, took in found["took"].items()}
    return versions, [Refused(kind, **why) for kind, why in found["refused"].items()]


def _arguments(plan: Plan) -> dict[str, Any]:
    """What of a plan the child is told."""
    return {
        "adapter": str(plan.adapter) if plan.adapter else None,
        "template": plan.template,
        "name": plan.name,
        "samples": _samples(plan.trained.run) if plan.trained else [],
        "imatrix": _training_rows(plan.imatrix) if plan.imatrix else None,
        "max_kl": plan.max_kl,
        "again": plan.again,
    }


def _complete(plan: Plan, kind: str, made: Path, found: dict[str, Any]) -> Manifest:
    """Put beside a verified file all else that its version has."""
    if plan.template is not None:
        write_text(made / TEMPLATE, served_template(plan.template))
    manifest = Manifest(
        version=plan.roots[kind].name,
        run_id=plan.trained.run.run_id if plan.trained else None,
        base_id=plan.base.id,
        base_revision=plan.base.revision,
        adapter_sha256=plan.trained.sha256 if plan.trained else None,
        spec_sha256=plan.trained.spec.sha256() if plan.trained else None,
        type=kind,
        merge=found["merge"],
        imatrix=plan.imatrix is not None,
        gguf_sha256=sha256_file(made / MODEL),
        gguf_bytes=(made / MODEL).stat().st_size,
        llama_cpp_python=VERSION,
        created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        verification=Verification.model_validate(found["verification"][kind]),
    )
    write_text(made / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
    write_text(made / PROMPTS, json.dumps(found["prompts"], ensure_ascii=False) + "\n")
    return manifest


def _put_in_place(root: Path, made: Path, manifest: Manifest, scratch: Path) -> Version:
    """Give the folder of a version its name."""
    root.parent.mkdir(parents=True, exist_ok=True)
    if root.exists():  # damaged, or of another limit: it would have been used
        root.replace(scratch / f"before-{manifest.type}")
    made.replace(root)
    return Version(root, manifest)


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
