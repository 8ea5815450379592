"""Submit: checks, split, spec, upload, ticket, machine; each step before the one that costs."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from cloudft.errors import (
    BudgetError,
    Busy,
    CloudftError,
    ConfigError,
    IntegrityError,
    ProviderError,
    StoreError,
    UsageError,
)
from infra.provider import open_provider
from infra.store import Store, open_store, probe
from jobs.spec import RunSpec
from jobs.ticket import AUDIT
from local.base import base_folder
from local.build_image import check_image, read_lock
from local.config import NOTHING_STARTED, Config, Wanted, load_config
from local.files import write_json
from local.image_there import build_there, may_build
from local.planning.backend import check_backend
from local.planning.draft import Draft, draft
from local.planning.here import check_memory_here, memory_here
from local.planning.preview import Preview, preview
from local.planning.quote import Quote, quote, spent_this_month, wishes_of
from local.planning.split import write_rows
from local.planning.tracking import check_tracking
from local.progress import Progress
from local.project import Project, RunFolder
from local.runs.lifecycle import Begin, CancelAsked
from local.runs.manual import start_command
from local.runs.records import ImageBuild, RunRecord, locked, read_record, run_prefix, write_record
from local.runs.runlock import make_lock, write_lock
from local.runs.session import Session, open_session, store_settings, submit_lock
from local.runs.tickets import base_input, input_key


@dataclass(frozen=True)
class Submitted:
    """A run that has begun."""

    run: RunFolder
    spec: RunSpec
    record: RunRecord
    quote: Quote
    preview: Preview
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
    if wanted.gpu and not config.rents:
        raise UsageError(
            f"--gpu {wanted.gpu[0]} asks for a rented GPU, but provider {config.provider} rents nothing",
            effect=NOTHING_STARTED,
            hint="name one that does (--provider runpod, modal or auto), or leave --gpu out: this computer's own GPUs "
            "are machine.gpus in cloudft.yaml",
        )
    return launch(project, config, progress, agree, lambda: draft(project, config, progress))


def launch(
    project: Project,
    config: Config,
    progress: Progress,
    agree: Callable[[Quote], None],
    drafting: Callable[[], Draft],
) -> Submitted:
    """Start the run that ``drafting`` gives, where and within the budget that ``config`` says.

    Raises:
        CloudftError: as ``submit``, and whatever ``drafting`` raises, before anything is rented.
    """
    if config.rents:
        # Said at once, not after data and base were looked at.
        wishes_of(config)
    with submit_lock(project):
        _refuse_second(project, progress)
        _refuse_mismatch(config)
        check_backend(config)
        if note := check_image(project, config):
            progress("image", note=note)
        with _nothing_begun():
            provider = open_provider(config.provider, project.state)
            provider.check()
            store = open_store(store_settings(config.store_config()), project.root)
        drafted = drafting()
        unknown = check_tracking(project, config, drafted.spec.tracking)
        seen = preview(project, drafted, progress)
        if config.provider == "local":
            check_memory_here(seen.work, config.machine.gpus, memory_here())
        progress("quote")
        spent = spent_this_month(project) if config.monthly_budget is not None else 0.0
        quoted = quote(provider, config, seen.work, spent)
        agree(quoted)
        with _nothing_begun():
            # Before an image is built, which takes minutes.
            progress("check the store")
            probe(store, run_prefix(drafted.spec.run_id), time.time() + 60)
        built = build_there(project, config, quoted.ahead, progress) if quoted.ahead else None
        if built:
            drafted = replace(drafted, spec=drafted.spec.model_copy(update={"image": built.image}))
        spec = drafted.spec
        run = write_run(project, config, drafted, seen, built)
        try:
            with _nothing_begun():
                _plan(run, quoted)
                session = open_session(project, run)
                _upload(session, spec, progress)
        except BaseException:
            # Nothing is rented yet, so nothing needs to be kept: the next submit starts clean.
            _forget(store, run)
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
        return Submitted(run, spec, record, quoted, seen, (*drafted.notes, *seen.notes, *unknown), command)


def _begin(session: Session) -> RunRecord:
    """Rent. Ctrl-C here means that the user does not want the machine: none may turn up, or be rented, later."""
    try:
        return session.apply(Begin())
    except KeyboardInterrupt:
        # Written down first; a machine that cannot be ended now is ended by the next look.
        with contextlib.suppress(CloudftError):
            session.apply(CancelAsked(at_once=True))
        raise


@contextlib.contextmanager
def _nothing_begun() -> Iterator[None]:
    """What goes wrong here leaves neither a machine nor a run, whatever the one that says it knows of that."""
    try:
        yield
    except CloudftError as exc:
        exc.effect = "nothing was rented, and no run was made"
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


def _refuse_second(project: Project, progress: Progress) -> None:
    for run_id in project.run_ids():
        try:
            # An ended run's store and provider may be gone for long, and need not answer.
            if read_record(project.run(run_id)).ended:
                continue
        except IntegrityError as exc:
            # Whatever it rented keeps its own deadline, and is found without a record.
            progress(f"run {run_id}", note=f"{exc.what}; whether a machine of it runs:  cloudft reap --dry-run")
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
    if config.image is None and config.provider != "manual" and not may_build(config):
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
            hint="say how much the run may cost, such as:  --budget 5    or set budget in cloudft.yaml",
        )


def write_run(
    project: Project, config: Config, drafted: Draft, seen: Preview, built: ImageBuild | None = None
) -> RunFolder:
    """The run's folder: whole, or not at all."""
    spec = drafted.spec
    building = project.runs / f".new-{spec.run_id}"
    building.mkdir(parents=True)
    try:
        folder = RunFolder(building)
        for name, rows in drafted.files.items():
            write_rows(folder.root / name, rows)
        folder.spec.write_bytes(spec.canonical())
        write_json(folder.task, drafted.task.model_dump(mode="json"))
        if seen.audit.audit is not None:
            write_json(folder.root / AUDIT, seen.audit.audit.as_dict())
        image = read_lock(project)
        contents = image.contents if image is not None and image.image == spec.image else None
        write_lock(folder, make_lock(folder, spec, config.provider, drafted.source, contents))
        record = RunRecord(
            run_id=spec.run_id,
            project=config.project,
            created_at=time.time(),
            provider=config.provider,
            store=config.store_config(),
            spec_sha256=spec.sha256(),
            max_hours=config.max_hours,
            boot_seconds=config.boot_minutes * 60,
            build=built,
        )
        write_record(folder, record, "submit")
        building.rename(project.runs / spec.run_id)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return project.run(spec.run_id)


def _upload(session: Session, spec: RunSpec, progress: Progress) -> None:
    folder = base_folder(spec.base.id, session.project.root)
    sources = {file.path: session.run.root / file.path for file in spec.data_files()}
    sources |= {base_input(f.path): folder / f.path for f in spec.base.files}
    total = sum(path.stat().st_size for path in sources.values())
    done = 0

    def sent(count: int) -> None:
        nonlocal done
        done += count
        progress("upload", done, total, "bytes")

    for name, path in sources.items():
        session.store.put_file(input_key(spec.run_id, name), path, sent)
