"""A run again, from its lock: the same spec with a new name, through the same doors as any other submit.

Everything that the lock names is compared by content with what lies here, before a machine is looked for. What is
missing or was changed is an error that names it; what may differ without being wrong (the code, the libraries of this
computer) is said, and the numbers at the end tell what it did.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cloudft.errors import IntegrityError, NotFound
from jobs.spec import Base
from local.base import lock_base
from local.config import Config, Wanted, load_config
from local.evaluation.document.eval_json import Document, read_document
from local.evaluation.measuring import Settings
from local.evaluation.task import read_task
from local.files import sha256_file
from local.planning.data import load_rows
from local.planning.draft import HOLDOUT_FILE, TRAIN_FILE, Draft, new_run_id
from local.planning.quote import Quote
from local.planning.split import Writable
from local.progress import Progress
from local.project import Project, RunFolder
from local.runs.runlock import RunLock, code_sha256, read_lock, this_python
from local.runs.session import open_session
from local.runs.submit import Submitted, launch
from local.serving.versions import current, promote

NOTHING = "nothing was rented, and no run was made"


@dataclass(frozen=True)
class Plan:
    """A run that can be repeated.

    ``differences``: what is not as it was, in words; it need not matter. ``measured``: how the run was measured, None
    if it was not.
    """

    lock: RunLock
    config: Config
    draft: Draft
    differences: tuple[str, ...]
    measured: Document | None


def plan_reproduction(project: Project, run: RunFolder, wanted: Wanted, progress: Progress) -> Plan:
    """Check that all that the run was made from is still here, unchanged, and draft it again. Writes nothing.

    Args:
        wanted: another provider, GPU or budget than the run had; the spec is the same but for these.

    Raises:
        NotFound: a piece is missing: the lock, the rows, the task, the base.
        IntegrityError: a piece was changed; it is named.
        ProviderError: the base's hub cannot be reached.
    """
    lock = read_lock(run)
    progress("check what the run was made from")
    _check_files(run, lock)
    _check_base(lock.spec.base, project.root)
    config = _config(project, lock, wanted)
    spec = lock.spec.model_copy(
        update={
            "run_id": new_run_id(project),
            "image": config.image if config.provider != "local" else None,
            "budget_usd": config.budget if config.rents else None,
        }
    )
    # The rows as they were split, not the user's files, which may have grown since.
    files = {name: _rows(run.root / name) for name in _wanted(run, lock) if name != run.task.name}
    drafted = Draft(spec, files, read_task(run.task), lock.source)
    return Plan(lock, config, drafted, tuple(_differences(lock, config)), _measured(run))


def reproduce(project: Project, plan: Plan, progress: Progress, agree: Callable[[Quote], None]) -> Submitted:
    """Start the run again, through the same checks, the same quote and the same budget rules as ``submit``.

    Raises:
        CloudftError: as ``submit``.
    """
    return launch(project, plan.config, progress, agree, lambda: plan.draft)


def _check_files(run: RunFolder, lock: RunLock) -> None:
    for name, wanted in _wanted(run, lock).items():
        path = run.root / name
        if not path.is_file():
            raise NotFound(
                f"{path} is not there, and run {run.run_id} cannot be repeated without it",
                effect=NOTHING,
                hint="restore it from a backup",
            )
        if sha256_file(path) != wanted:
            raise IntegrityError(
                f"{path} is not what run {run.run_id} was made from: its sha256 is no longer {wanted[:12]}…",
                effect=NOTHING,
                hint="restore it from a backup, or start a new run:  cloudft submit",
            )


def _wanted(run: RunFolder, lock: RunLock) -> dict[str, str]:
    """Name in the run's folder → sha256 of every piece that the run was made from."""
    files = {file.path: file.sha256 for file in lock.spec.data_files()}
    return {**files, run.holdout.name: lock.spec.data.holdout_sha256, run.task.name: lock.task_sha256}


@dataclass(frozen=True)
class _Line:
    """A row of any kind, as it stands in its file."""

    text: str

    def canonical(self) -> str:
        return self.text


def _rows(path: Path) -> Sequence[Writable]:
    """Conversations as such, so that their answers can be looked at; every other kind of row as it is."""
    if path.name in (TRAIN_FILE, HOLDOUT_FILE):
        return load_rows(path)
    # Only a line feed ends a row: a JSON string may hold U+2028 and its like, where splitlines() would cut.
    return [_Line(line) for line in path.read_bytes().decode().split("\n") if line]


def _check_base(base: Base, root: Path) -> None:
    found = lock_base(base.id, base.revision if base.source == "hub" else None, root)
    if found.revision != base.revision:
        changed = {file.path: file.sha256 for file in base.files}
        name = next((file.path for file in found.files if changed.get(file.path) != file.sha256), "a file is gone")
        raise IntegrityError(
            f"the base {base.id} is not the one that the run was trained on: {name}",
            effect=NOTHING,
            hint="put the base back as it was; a model that is tuned from another one is another model",
        )


def _config(project: Project, lock: RunLock, wanted: Wanted) -> Config:
    """Where to run it: as ``cloudft.yaml`` says now, but with the machine, the budget and the image of the run."""
    now, spec = load_config(project.config_file), lock.spec
    machine = now.machine.model_copy(update=spec.machine.model_dump())
    as_it_was = {
        "project": spec.project,
        "provider": lock.provider,
        "budget": spec.budget_usd or now.budget,
        "image": spec.image or now.image,
        "max_hours": spec.max_hours,
        "machine": machine,
        "train": now.train.model_copy(update={"backend": spec.backend}),
    }
    return wanted.applied_to(now.model_copy(update=as_it_was))


def _measured(run: RunFolder) -> Document | None:
    try:
        return read_document(run)
    except NotFound:
        return None


def _differences(lock: RunLock, config: Config) -> list[str]:
    """What is not as it was at submit."""
    found = []
    if code_sha256(lock.spec.backend) != lock.code.sha256:
        found.append(f"the training code is another one than that of cloudft {lock.code.cloudft}, which made the run")
    if config.provider != lock.provider:
        found.append(f"provider {config.provider} instead of {lock.provider}")
    if config.provider == "local":
        now = this_python()
        changed = _changed(lock.python.packages, now.packages)
        if changed:
            found.append("on this computer " + ", ".join(changed))
    return found


# What decides about the numbers of a training.
LIBRARIES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "tokenizers",
    "numpy",
    "unsloth",
    "unsloth_zoo",
)


def _changed(then: dict[str, str], now: dict[str, str]) -> list[str]:
    return [
        f"{name} is {now.get(name, 'missing')} instead of {then.get(name, 'missing')}"
        for name in LIBRARIES
        if then.get(name) != now.get(name)
    ]


def complete(project: Project, plan: Plan, run: RunFolder, progress: Progress) -> None:
    """Take the new run as far as the old one went: home, quantised to the same types, measured on the same rows. What
    is served stays what it was: repeating a run is no reason to serve another model.

    Raises:
        CloudftError: as ``pull``, ``quantize_types`` and ``evaluate_run``.
    """
    from local.evaluation.evaluate import evaluate_run
    from local.quantizing.quantize import quantize_types
    from local.runs.pull import pull

    pull(open_session(project, run), progress)
    if not plan.lock.made:
        return
    types = list(dict.fromkeys(made.type for made in plan.lock.made))
    imatrix = any(made.imatrix for made in plan.lock.made)
    served = current(project)
    try:
        quantize_types(project, run, types, imatrix=imatrix, progress=progress)
    finally:  # also where only some of the types passed
        if served is not None:
            promote(project, served.name)
    if plan.measured is not None:
        evaluate_run(project, run, progress=progress, settings=_as_measured(plan.measured))


def _as_measured(document: Document) -> Settings:
    """The same rows, asked as they were asked then; nothing is taken from the cache, or nothing would be repeated."""
    seeds = document.decoding.seeds
    return Settings(
        limit=document.n,
        repeats=len(seeds),
        temperature=document.decoding.temperature,
        seed=seeds[0],
        use_cache=False,
    )
