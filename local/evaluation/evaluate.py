"""Before and after on the same hold-out: the base and the tuned model, quantised alike and served alike.

Both are asked the same messages with the same decoding. Each model renders them with the chat template in its own
file: that is how it was trained to be asked, and how anybody serves it. Only a base that brings no template gets the
one that the run was trained with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.util import find_spec

from filelock import FileLock, Timeout

from cloudft.errors import Busy, EnvironmentProblem, NotFound, UsageError
from local.config import load_config
from local.evaluation.cache import prune
from local.evaluation.endpoint import LLAMA_ENGINES, Endpoint, Failure, as_error, connect
from local.evaluation.holdout import NOTHING_WRITTEN, read_holdout
from local.evaluation.measuring import Question, Settings, Target
from local.evaluation.own_metric import load_own_metrics
from local.evaluation.results import Evaluation, Ground, write_results
from local.evaluation.task import read_task
from local.progress import Progress
from local.project import Project, RunFolder
from local.runs.records import read_spec
from local.serving.versions import TEMPLATE, Version, current, list_versions


def evaluate_run(
    project: Project,
    run: RunFolder,
    *,
    progress: Progress,
    settings: Settings | None = None,
    endpoint: Endpoint | None = None,
    against: Endpoint | None = None,
) -> Evaluation:
    """Measure the base and the tuned model of a run on its hold-out, and write the results beside the run.

    The base is quantised like the tuned model. Nothing is written unless both were measured.

    Args:
        endpoint: a server that serves the tuned model already; None: serve its file for the occasion.
        against: a model to be measured in place of the base, by its endpoint alone. The results then go into files
            of their own.

    Raises:
        NotFound: the hold-out is missing, or the run has no version yet.
        UsageError: a setting makes no sense, or ``endpoint`` serves another model.
        ConfigError: a metric of the user's own fails, or the primary one does not apply to any row.
        DataError: the hold-out is empty or broken, or a row does not fit into the context.
        IntegrityError: the hold-out or a model is not the one that was recorded.
        Busy: the run is being evaluated already.
        EnvironmentProblem: a package is missing.
        Interrupted: Ctrl-C while asking; the answers so far are kept.
        CloudftError: a server failed.
    """
    ground = read_ground(project, run, settings or Settings(), against.model if against else None)
    version = version_of(project, run)
    prune(project.state / "cache")
    with alone(run):
        targets = [
            base_target(project, run, version, progress) if against is None else _other(against),
            Target("after", version.name, version.gguf, endpoint=endpoint),
        ]
        for served, name in ((endpoint, version.name), (against, against.model if against else "")):
            check_served(served, name)
        before, after = (ground.measure(target, progress) for target in targets)
        return write_results(ground, before, after)


def read_ground(project: Project, run: RunFolder, settings: Settings, against: str | None = None) -> Ground:
    """What all models of a run are measured on.

    Raises:
        CloudftError: as ``evaluate_run``, of what is wrong before any model is asked.
    """
    _check(settings)
    spec, task, config = read_spec(run), read_task(run.task), load_config(project.config_file)
    scorer = task.scorer()
    rows = read_holdout(run.holdout, spec.data.holdout_sha256, scorer)
    # The task was frozen at submit; what else is to be measured may be thought of later.
    own = load_own_metrics(project.root, config.task.own_metrics)
    return Ground(
        project,
        run,
        Question(task, scorer, rows[: settings.limit], own),
        settings,
        held_out=len(rows),
        holdout_sha256=spec.data.holdout_sha256,
        context=config.serve.context,
        against=against,
    )


def version_of(project: Project, run: RunFolder) -> Version:
    """The version made from a run: the current one if it is of this run, else the newest.

    Raises:
        NotFound: the run has none.
        IntegrityError: the current version is damaged.
    """
    served = current(project)
    if served is not None and served.manifest.run_id == run.run_id:
        return served
    made = [version for version in list_versions(project) if version.manifest.run_id == run.run_id]
    if not made:
        raise NotFound(
            f"run {run.run_id} has no served file yet, so there is nothing to evaluate",
            effect=NOTHING_WRITTEN,
            hint=f"make it:  cloudft quantize {run.run_id}",
        )
    return made[-1]


def _check(settings: Settings) -> None:
    if find_spec("numpy") is None:
        raise EnvironmentProblem(
            "evaluating needs numpy, which this Python does not have",
            effect=NOTHING_WRITTEN,
            hint="install what home needs:  pip install 'cloudft[local]'",
        )

    def refused(why: str, hint: str = "") -> UsageError:
        return UsageError(why, effect=NOTHING_WRITTEN, hint=hint)

    if settings.limit is not None and settings.limit < 1:
        raise refused(f"cannot evaluate {settings.limit} rows")
    if settings.workers is not None and settings.workers < 1:
        raise refused(f"cannot ask with {settings.workers} workers")
    if settings.repeats < 1 or settings.temperature < 0:
        raise refused("repeats begin at 1 and a temperature at 0")
    if settings.repeats > 1 and settings.temperature == 0:
        raise refused(
            "at temperature 0 every repeat gives the same answer",
            f"say how much chance there is to be:  cloudft eval --repeat {settings.repeats} --temperature 0.7",
        )


def base_target(project: Project, run: RunFolder, version: Version, progress: Progress) -> Target:
    """The base as it is, quantised like the tuned model: same type, imatrix of the same rows, same allowance."""
    from local.quantizing.quantize import quantized_base

    base, manifest = read_spec(run).base, version.manifest
    gguf = quantized_base(
        project,
        base,
        type=manifest.type,
        progress=progress,
        imatrix=run if manifest.imatrix else None,
        max_kl=manifest.verification.kl_limit,
    )
    trained = version.root / TEMPLATE
    template = trained.read_text(encoding="utf-8") if trained.is_file() else None
    return Target("before", f"{base.id}, {version.manifest.type}", gguf, template)


def _other(endpoint: Endpoint) -> Target:
    return Target("before", f"{endpoint.model} at {endpoint.url}", endpoint=endpoint)


def check_served(endpoint: Endpoint | None, model: str) -> None:
    """Refuse to call another model's answers those of the one that is meant."""
    if endpoint is None:
        return
    with connect(endpoint) as client:
        served = client.models()
    if isinstance(served, Failure):
        if endpoint.engine not in LLAMA_ENGINES and served.kind not in ("key", "unreachable"):
            return  # not every service lists its models
        raise as_error(endpoint, served)
    if model not in served:
        raise UsageError(
            f"{endpoint.url} serves {', '.join(served) or 'nothing'}, not {model}",
            effect=NOTHING_WRITTEN,
            hint="start the server again, or evaluate without it:  cloudft eval"
            if endpoint.engine in LLAMA_ENGINES
            else "name one of its models:  --model NAME",
        )


@contextlib.contextmanager
def alone(run: RunFolder) -> Iterator[None]:
    lock = FileLock(run.root / ".eval.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as exc:
        raise Busy(
            f"run {run.run_id} is being evaluated already",
            effect=NOTHING_WRITTEN,
            hint="wait for it to end, then type the same command again",
        ) from exc
    try:
        yield
    finally:
        lock.release()
