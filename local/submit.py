"""Submit: checks, split, spec, upload, ticket, machine; each step before the one that costs."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from hashlib import sha256

from cloudft.errors import BudgetError, Busy, CloudftError, ConfigError, ProviderError, StoreError
from infra.provider import open_provider
from infra.store import Store, open_store, probe
from jobs.spec import Data, FileRef, RunSpec
from local.base import base_folder, lock_base
from local.build_image import check_image
from local.config import Config, Wanted, load_config
from local.data import Facts, Row, describe, load_rows
from local.estimate import count_parameters
from local.files import write_json
from local.hyperparameters import resolve_stage
from local.lifecycle import Begin, CancelAsked
from local.manual import start_command
from local.progress import Progress
from local.project import Project, RunFolder
from local.quote import Quote, quote, spent_this_month
from local.records import RunRecord, locked, read_record, run_prefix, write_record
from local.session import Session, open_session, store_settings, submit_lock
from local.split import Split, split, write_rows
from local.task import Task, load_task
from local.tickets import base_input, input_key

TRAIN_FILE = "train.jsonl"


@dataclass(frozen=True)
class Submitted:
    """A run that has begun."""

    run: RunFolder
    spec: RunSpec
    record: RunRecord
    quote: Quote
    notes: tuple[str, ...] = ()
    # To be typed on the machine, where the provider is manual.
    command: str | None = None


def submit(project: Project, wanted: Wanted, progress: Progress, agree: Callable[[Quote], None]) -> Submitted:
    """Start a run of the project as its ``cloudft.yaml`` and the command line say.

    Args:
        agree: is shown the quote before anything is rented; raises to decline.

    Raises:
        CloudftError: anything that is wrong with config, data, base, store, budget or provider, before a machine
            is started; or the provider's refusal.
    """
    config = wanted.applied_to(load_config(project.config_file))
    with submit_lock(project):
        _refuse_second(project)
        _refuse_mismatch(config)
        if note := check_image(project, config):
            progress("image", note=note)
        provider = open_provider(config.provider, project.state)
        provider.check()
        store = open_store(store_settings(config.store_config()), project.root)
        drafted = draft(project, config, progress)
        spec = drafted.spec
        progress("quote")
        quoted = quote(provider, config, spec, spent_this_month(project))
        agree(quoted)
        run = _write_run(project, config, drafted)
        try:
            _plan(run, quoted)
            progress("check the store")
            probe(store, run_prefix(run.run_id), time.time() + 60)
            session = open_session(project, run)
            _upload(session, spec, progress)
        except BaseException as exc:
            # Nothing is rented yet, so nothing needs to be kept: the next submit starts clean.
            _forget(store, run)
            if isinstance(exc, CloudftError):
                exc.effect = "nothing was rented, and no run was made"
            raise
        progress("start the machine")
        waiting = replace(session, may_rent=True, waiting=lambda what, note: progress(what, note=note))
        record = _begin(waiting)
        if record.ended:
            raise ProviderError(
                f"run {run.run_id}: {record.reason}",
                effect=f"nothing is rented; spent: ${record.spent(time.time()):.2f}",
                hint="see what was tried:  cloudft status",
            )
        command = start_command(session) if config.provider == "manual" else None
        return Submitted(run, spec, record, quoted, drafted.notes, command)


def _begin(session: Session) -> RunRecord:
    """Rent. Ctrl-C here means that the user does not want the machine: none may turn up, or be rented, later."""
    try:
        return session.apply(Begin())
    except KeyboardInterrupt:
        # Written down first; a machine that cannot be ended now is ended by the next look.
        with contextlib.suppress(CloudftError):
            session.apply(CancelAsked(at_once=True))
        raise


def _forget(store: Store, run: RunFolder) -> None:
    """Take back what was written for a run that does not begin: the user's data must not stay in a bucket."""
    with contextlib.suppress(StoreError):
        for key in store.keys(run_prefix(run.run_id)):
            store.delete(key)
    shutil.rmtree(run.root, ignore_errors=True)


def _plan(run: RunFolder, quoted: Quote) -> None:
    """Write down what may be rented, in which order, before anything is."""
    with locked(run, "submit"):
        record = read_record(run).model_copy(update={"plan": quoted.plan, "budget_usd": quoted.budget_usd})
        write_record(run, record, "quote", offers=[f"{o.name} ${o.rate_usd:.2f}/h" for o in quoted.plan])


def _refuse_second(project: Project) -> None:
    for run_id in project.run_ids():
        # An ended run's store and provider may be gone for long, and need not answer.
        if read_record(project.run(run_id)).ended:
            continue
        session = open_session(project, project.run(run_id))
        # This submit holds the lock, so no other can be in the middle of one.
        record = session.observe(submit_is_ours=True)
        if not record.ended:
            raise Busy(
                f"run {run_id} is still {record.status}",
                effect="nothing was started; the other run goes on",
                hint="watch it:  cloudft status --follow    end it:  cloudft cancel",
            )


def _refuse_mismatch(config: Config) -> None:
    """A container or a rented machine needs an image, and cannot see this computer's folders; money needs a cap."""
    if config.provider == "local":
        return
    if config.image is None and config.provider != "manual":
        raise ConfigError(
            f"image: provider {config.provider} needs a training image",
            effect="nothing was started",
            hint="build one and write it into cloudft.yaml:  cloudft build",
        )
    if not config.store_config().url.startswith("s3://"):
        raise ConfigError(
            f"store: a machine of provider {config.provider} cannot see the folder {config.store_config().url}",
            effect="nothing was started",
            hint="set store.url to a bucket (s3://…), or use provider: local",
        )
    if config.provider == "auto" and config.machine.registry:
        raise ConfigError(
            "machine.registry: it names one provider's record, and provider auto may choose another",
            effect="nothing was rented",
            hint="name the provider:  cloudft submit --provider modal",
        )
    if config.rents and config.budget is None:
        raise BudgetError(
            f"provider {config.provider} costs money, and no budget is set",
            effect="nothing was rented",
            hint="say how much the run may cost:  cloudft submit --budget 5",
        )


@dataclass(frozen=True)
class Draft:
    """A checked run before it exists: its spec, and the rows and the task that are written beside it."""

    spec: RunSpec
    parts: Split
    task: Task
    notes: tuple[str, ...] = ()


def draft(project: Project, config: Config, progress: Progress) -> Draft:
    """Check data, task and base, and freeze what they say into a spec. Writes nothing.

    Raises:
        ConfigError, DataError, NotFound, ProviderError: what is wrong with any of them.
    """
    progress("check the data")
    task = load_task(config.task, project.root)
    rows = load_rows(project.root / config.data.path)
    facts = describe(rows)
    holdout = config.data.holdout
    parts = split(rows, project.root / holdout if isinstance(holdout, str) else holdout, config.data.seed)
    template = _template(project, config)
    progress("lock the base")
    train, held = _as_bytes(parts.train), _as_bytes(parts.holdout)
    base = lock_base(config.base, config.revision, project.root)
    spec = RunSpec(
        run_id=new_run_id(project),
        project=config.project,
        base=base.model_copy(update={"parameters": count_parameters(base, project.root)}),
        data=Data(
            train=FileRef(path=TRAIN_FILE, sha256=sha256(train).hexdigest(), bytes=len(train)),
            train_rows=len(parts.train),
            holdout_sha256=sha256(held).hexdigest(),
            holdout_rows=len(parts.holdout),
            split_seed=config.data.seed,
        ),
        template=template,
        stages=(resolve_stage(config.train, sum(row.answers for row in parts.train), longest=facts.longest),),
        image=config.image if config.provider != "local" else None,
        machine=config.machine_spec(),
        budget_usd=config.budget if config.rents else None,
        max_hours=config.max_hours,
        seed=config.train.seed,
    )
    return Draft(spec, parts, task, _notes(facts, parts))


def _notes(facts: Facts, parts: Split) -> tuple[str, ...]:
    """What a person should know of the data before money is spent on it."""
    notes = {
        f"{parts.duplicates} rows stand there more than once; each was used once": parts.duplicates,
        f"{parts.contaminated} rows ask what the hold-out asks, and were left out of training": parts.contaminated,
        f"{facts.conflicts} questions have several different answers; the model cannot learn both": facts.conflicts,
    }
    return tuple(note for note, count in notes.items() if count)


def _as_bytes(rows: Iterable[Row]) -> bytes:
    """What ``write_rows`` will write."""
    return b"".join(row.canonical().encode() + b"\n" for row in rows)


def _write_run(project: Project, config: Config, drafted: Draft) -> RunFolder:
    """The run's folder: whole, or not at all."""
    spec = drafted.spec
    building = project.runs / f".new-{spec.run_id}"
    building.mkdir(parents=True)
    try:
        folder = RunFolder(building)
        write_rows(folder.train_data, drafted.parts.train)
        write_rows(folder.holdout, drafted.parts.holdout)
        folder.spec.write_bytes(spec.canonical())
        write_json(folder.task, drafted.task.model_dump(mode="json"))
        record = RunRecord(
            run_id=spec.run_id,
            project=config.project,
            created_at=time.time(),
            provider=config.provider,
            store=config.store_config(),
            spec_sha256=spec.sha256(),
            max_hours=config.max_hours,
            boot_seconds=config.boot_minutes * 60,
        )
        write_record(folder, record, "submit")
        building.rename(project.runs / spec.run_id)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return project.run(spec.run_id)


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


def _upload(session: Session, spec: RunSpec, progress: Progress) -> None:
    folder = base_folder(spec.base.id, session.project.root)
    sources = {spec.data.train.path: session.run.train_data}
    sources |= {base_input(f.path): folder / f.path for f in spec.base.files}
    total = sum(path.stat().st_size for path in sources.values())
    done = 0

    def sent(count: int) -> None:
        nonlocal done
        done += count
        progress("upload", done, total, "bytes")

    for name, path in sources.items():
        session.store.put_file(input_key(spec.run_id, name), path, sent)
