"""Before and after on the same hold-out: the base and the tuned model, quantised alike and served alike.

Both are asked the same messages in the same order, one at a time, decoded greedily. Each model renders them with
the chat template in its own file: that is how it was trained to be asked, and how anybody serves it. Only a base
that brings no template gets the one that the run was trained with.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from cloudft.errors import Busy, CloudftError, DataError, IntegrityError, NotFound, UsageError
from local.config import load_config
from local.endpoint import Client, Endpoint, Failure, as_error, connect
from local.files import sha256_file
from local.metrics import JsonScorer, parse_object
from local.progress import Progress
from local.project import Project, RunFolder
from local.records import read_spec
from local.results import NOTHING_WRITTEN, Answer, Evaluation, Measured, Row, Side, write_results
from local.serve_process import serve_in_process, template_used
from local.task import Task, read_task
from local.versions import TEMPLATE, Version, current, list_versions, read_version


def evaluate_run(
    project: Project,
    run: RunFolder,
    *,
    progress: Progress,
    limit: int | None = None,
    endpoint: Endpoint | None = None,
    timeout: float = 600.0,
) -> Evaluation:
    """Measure the base and the tuned model of a run on its hold-out, and write the results beside the run.

    The base is quantised like the tuned model. Nothing is written unless both were measured.

    Args:
        limit: use only the first rows of the hold-out; the results then say so.
        endpoint: a server that serves the tuned model already; None: serve its file for the occasion.
        timeout: seconds that one answer may take; a row that takes longer counts as failed.

    Raises:
        NotFound: the hold-out is missing, or the run has no version yet.
        UsageError: ``limit`` is below one, or ``endpoint`` serves another model.
        DataError: the hold-out is empty or broken, or a row does not fit into the context.
        IntegrityError: the hold-out or a model is not the one that was recorded.
        Busy: the run is being evaluated already.
        CloudftError: a server failed.
    """
    from local.quantize import quantized_base

    if limit is not None and limit < 1:
        raise UsageError(f"cannot evaluate {limit} rows", effect=NOTHING_WRITTEN)
    spec, task = read_spec(run), read_task(run.task)
    rows = read_holdout(run.holdout, spec.data.holdout_sha256, task)
    version = version_of(project, run)
    with _alone(run):
        base = quantized_base(project, spec.base, type=version.manifest.type, progress=progress)
        trained = version.root / TEMPLATE
        template = trained.read_text(encoding="utf-8") if trained.is_file() else None
        before = Side("before", base, f"{spec.base.id}, {version.manifest.type}", template)
        after = Side("after", version.gguf, version.name, endpoint=endpoint)
        _check_served(endpoint, version.name)
        context = load_config(project.config_file).serve.context
        measured = [
            _measure(side, rows[:limit], task, context, project.state, timeout, progress) for side in (before, after)
        ]
        return write_results(project, run, measured[0], measured[1], len(rows), task, context)


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


def read_holdout(path: Path, sha256: str, task: Task) -> list[Row]:
    """The hold-out rows, checked: what is measured must be what was held out.

    Raises:
        NotFound: there is no such file.
        IntegrityError: it is not the file that was put aside at submit.
        DataError: it is empty, or a line is not a conversation with an expected answer that keeps to the task.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError as exc:
        raise NotFound(
            f"{path} is not there: the run has no hold-out", effect=NOTHING_WRITTEN, hint="restore it from a backup"
        ) from exc
    if hashlib.sha256(raw).hexdigest() != sha256:
        raise IntegrityError(
            f"{path} was changed after submit: the model may have been trained on what is in it now",
            effect=NOTHING_WRITTEN,
            hint="restore the file, or submit again",
        )
    scorer = JsonScorer(task.json_schema, task.keys)
    # Not splitlines(): it also cuts at characters that may stand inside a JSON string.
    lines = enumerate(raw.split(b"\n"), start=1)
    rows = [_read_row(path, number, line, scorer) for number, line in lines if line.strip()]
    if not rows:
        raise DataError(
            f"{path} is empty: there is nothing to measure",
            effect=NOTHING_WRITTEN,
            hint="hold out some rows: data.holdout in cloudft.yaml, then submit again",
        )
    return rows


def _read_row(path: Path, number: int, line: bytes, scorer: JsonScorer) -> Row:
    def broken(why: str) -> DataError:
        return DataError(f"{path}, line {number}: {why}", effect=NOTHING_WRITTEN)

    try:
        *prompt, answer = json.loads(line)["messages"]
        role, content = answer["role"], answer["content"]
    except (ValueError, KeyError, TypeError) as exc:
        raise broken(f"this is no conversation ({exc!r})") from exc
    if role != "assistant" or not prompt or not isinstance(content, str):
        raise broken("the last message must be the expected answer, as text, after at least one other")
    expected, problem = parse_object(content)
    problem = problem or scorer.schema_problem(expected)
    if expected is None or problem:
        raise broken(f"the expected answer does not keep to the task's schema: {problem}")
    return Row(number, tuple(prompt), expected)


def _check_served(endpoint: Endpoint | None, version: str) -> None:
    """Refuse to call another model's answers the tuned one's."""
    if endpoint is None:
        return
    with connect(endpoint) as client:
        served = client.models()
    if isinstance(served, Failure):
        raise as_error(endpoint, served)
    if version not in served:
        raise UsageError(
            f"{endpoint.url} serves {', '.join(served)}, not {version}",
            effect=NOTHING_WRITTEN,
            hint="start the server again, or evaluate without it:  cloudft eval",
        )


def _measure(
    side: Side, rows: Sequence[Row], task: Task, context: int, state: Path, timeout: float, progress: Progress
) -> Measured:
    """Serve one side, unless it is served already, and ask it all rows."""
    what = f"evaluate {side.label}"
    progress(what, 0, len(rows), "rows", "check the file")
    digest = _checked_sha256(side.gguf)
    started, log = time.monotonic(), state / f"serve-{side.label}.log"
    with contextlib.ExitStack() as stack:
        endpoint, template = side.endpoint, None
        if endpoint is None:
            progress(what, 0, len(rows), "rows", "start the server")
            key = secrets.token_urlsafe(32)
            endpoint = stack.enter_context(
                serve_in_process(side.gguf, api_key=key, context=context, log=log, template=side.template)
            )
            template = template_used(log)
        client = stack.enter_context(connect(endpoint, timeout=timeout))
        answers = tuple(_ask_all(client, rows, task, what, progress))
    return Measured(side, digest, endpoint.engine, template, answers, time.monotonic() - started)


def _checked_sha256(gguf: Path) -> str:
    """The file's sha256, which must be the one that was noted when it was made."""
    digest = sha256_file(gguf)
    if digest != read_version(gguf.parent).manifest.gguf_sha256:
        raise IntegrityError(
            f"{gguf} is not the file that was made and verified",
            effect=NOTHING_WRITTEN,
            hint=f"remove the folder {gguf.parent} and make it again:  cloudft quantize",
        )
    return digest


def _ask_all(client: Client, rows: Sequence[Row], task: Task, what: str, progress: Progress) -> Iterator[Answer]:
    """Ask one row after the other. What a row is to blame for counts as failed; what the set-up is, raises."""
    scorer = JsonScorer(task.json_schema, task.keys)
    right = 0
    for done, row in enumerate(rows):
        progress(what, done, len(rows), "rows", f"{right} right")
        reply = client.chat(row.prompt, max_tokens=task.max_tokens)
        if isinstance(reply, Failure):
            if reply.kind in ("key", "unreachable", "overflow"):
                raise _set_up_error(client.endpoint, row, reply)
            yield Answer(row, None, f"{reply.kind}: {reply.message}", scorer.score(None, row.expected))
            continue
        score = scorer.score(reply.text, row.expected)
        right += score.exact
        yield Answer(row, reply, None, score)
    progress(what, len(rows), len(rows), "rows", f"{right} right")


def _set_up_error(endpoint: Endpoint, row: Row, failure: Failure) -> CloudftError:
    """A failure that would repeat for other rows: a number made from it would say nothing about the model."""
    error = as_error(endpoint, failure)
    return type(error)(f"hold-out row {row.number}: {error.what}", effect=NOTHING_WRITTEN, hint=error.hint)


@contextlib.contextmanager
def _alone(run: RunFolder) -> Iterator[None]:
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
