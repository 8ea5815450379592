"""One model asked all rows: served if need be, asked alike, every answer scored as it comes."""

from __future__ import annotations

import contextlib
import hashlib
import math
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from cloudft.errors import CloudftError, ConfigError, IntegrityError, Interrupted
from local.evaluation.cache import A_DAY, AnswerCache
from local.evaluation.document.measurement import Lineage, ModelUsed, Usage
from local.evaluation.document.outputs import OutputLine
from local.evaluation.endpoint import LLAMA_CPP_SERVER, Endpoint, Failure, Fim, Reply, Sampling, connect
from local.evaluation.fim import fim_of
from local.evaluation.holdout import NOTHING_WRITTEN
from local.evaluation.own_metric import OwnMetric
from local.evaluation.runner import Answered, Asked, ask_all, known_answers, what_is_kept, workers_for
from local.evaluation.task import CodeTask, Task
from local.evaluation.tasks.base import Row, Scored, Scorer
from local.files import sha256_file
from local.progress import Progress
from local.serving.serve_process import serve_in_process, served_name, template_used
from local.serving.versions import read_version


@dataclass(frozen=True)
class Settings:
    """How models are asked; the same for all that are compared.

    ``limit``: only the first rows; ``repeats``: how often each row is asked, with ``seed``, ``seed`` + 1, …;
    ``workers``: requests at the same time, None for what the server takes; ``use_cache``: take answers that were given
    already, and keep new ones; ``timeout``: seconds for one answer.
    """

    limit: int | None = None
    repeats: int = 1
    temperature: float = 0.0
    seed: int = 0
    workers: int | None = None
    use_cache: bool = True
    timeout: float = 600.0

    @property
    def seeds(self) -> tuple[int, ...]:
        """One per repeat."""
        return tuple(range(self.seed, self.seed + self.repeats))

    def sampling(self, seed: int, row: Row) -> Sampling:
        """How a row is asked in the repeat of that seed.

        Each row has a seed of its own, the same before and after: with one for all, an unlikely first number would
        lead all rows astray together, and they would no longer be independent of each other.
        """
        if self.temperature == 0:
            return Sampling()
        digest = hashlib.sha256(f"{seed} {row.number}".encode()).digest()
        return Sampling(self.temperature, int.from_bytes(digest[:4], "big") >> 1)


@dataclass(frozen=True)
class Target:
    """A model to be measured: a GGUF file, an endpoint that serves one, or an endpoint alone.

    ``label``: names the side ("before"); ``template``: used only if the file brings none, or with ``replace_template``;
    ``lora``: a LoRA GGUF file that is added to the model; ``endpoint``: serves the file already, or is all that is
    known.
    """

    label: str
    title: str
    gguf: Path | None = None
    template: str | None = None
    endpoint: Endpoint | None = None
    replace_template: bool = False
    lora: Path | None = None


@dataclass(frozen=True)
class Question:
    """What all models are asked, and how it is scored."""

    task: Task
    scorer: Scorer
    rows: Sequence[Row]
    own: tuple[OwnMetric, ...] = ()


@dataclass(frozen=True)
class Measured:
    """One model's answers and scores, by repeat and then by row; ``own``: those of the user's own metrics."""

    label: str
    model: ModelUsed
    lines: list[OutputLine]
    scores: list[list[Scored]]
    own: list[list[dict[str, float | bool]]]
    seconds: float
    cached: int
    retried: int
    workers: int

    def usage(self) -> Usage:
        answered = [line for line in self.lines if line.error is None]
        latencies = sorted(line.latency for line in answered if line.latency is not None)
        return Usage(
            seconds=round(self.seconds, 1),
            requests=len(self.lines),
            cached=self.cached,
            failed=len(self.lines) - len(answered),
            retried=self.retried,
            workers=self.workers,
            prompt_tokens=sum(line.prompt_tokens or 0 for line in answered),
            completion_tokens=sum(line.completion_tokens or 0 for line in answered),
            latency_median=_quantile(latencies, 0.5),
            latency_p95=_quantile(latencies, 0.95),
        )


def measure_target(
    target: Target, asked: Question, settings: Settings, *, root: Path, state: Path, context: int, progress: Progress
) -> Measured:
    """Ask one model all rows.

    Args:
        root: the project's folder, for names of files.
        state: the project's folder for caches and logs.
        context: tokens of prompt and answer together, of a server that is started here.

    Raises:
        IntegrityError: the file is not the one that was made.
        Interrupted: Ctrl-C; says what is kept.
        CloudftError: the server failed, or the set-up is wrong.
    """
    total = len(asked.rows) * settings.repeats
    progress(f"evaluate {target.label}", 0, total, "rows", "check the file")
    digest = _checked_sha256(target.gguf) if target.gguf else None
    cache = _cache(target, digest, state, context) if settings.use_cache else None
    return _Measuring(target, asked, settings, cache, progress).run(root, state, context, digest)


class _Measuring:
    """One model being measured. Takes answers as they come, in any order, and tells how it goes."""

    def __init__(
        self, target: Target, asked: Question, settings: Settings, cache: AnswerCache | None, progress: Progress
    ) -> None:
        self._target, self._asked, self._settings, self._cache = target, asked, settings, cache
        self._progress = progress
        self._primary = asked.task.primary or asked.scorer.primary
        self._items = [
            (repeat, settings.sampling(seed, row), row)
            for repeat, seed in enumerate(settings.seeds)
            for row in asked.rows
        ]
        self._answers: dict[int, tuple[Answered, Scored, dict[str, float | bool]]] = {}
        self._sum, self._scored = 0.0, 0

    def run(self, root: Path, state: Path, context: int, digest: str | None) -> Measured:
        """Ask what is not known yet. A server is started only if there is any of it."""
        target, started = self._target, time.monotonic()
        fim = _fim(self._asked.task, target)
        questions = [
            Asked(self._asked.scorer.question(row, fim), sampling, f"hold-out row {row.number}")
            for _, sampling, row in self._items
        ]
        engine = target.endpoint.engine if target.endpoint else LLAMA_CPP_SERVER
        try:
            template = self._cache.template() if self._cache else None
            if template or target.endpoint:
                for number, answered in known_answers(questions, self._cache, engine).items():
                    self._take(number, answered)
            endpoint, workers = target.endpoint, 0
            if open_ := {n: question for n, question in enumerate(questions) if n not in self._answers}:
                endpoint, template, workers = self._ask(open_, state, context)
        except KeyboardInterrupt as exc:
            raise self._interrupted() from exc
        name = endpoint.model if endpoint else served_name(target.gguf) if target.gguf else ""
        model = _model(target, root, name, engine, digest, template)
        return self._measured(model, time.monotonic() - started, workers)

    def _ask(
        self, questions: dict[int, Asked], state: Path, context: int
    ) -> tuple[Endpoint, tuple[str, str] | None, int]:
        what = f"evaluate {self._target.label}"
        with contextlib.ExitStack() as stack:
            self._progress(what, len(self._answers), len(self._items), "rows", "start the server")
            endpoint, template = stack.enter_context(_served(self._target, state, context))
            if self._cache and template:
                self._cache.put_template(*template)
            client = stack.enter_context(connect(endpoint, timeout=self._settings.timeout))
            workers = min(workers_for(client, self._settings.workers), len(questions))
            self._tell()
            try:
                ask_all(client, questions, cache=self._cache, workers=workers, on_answer=self._take)
            except CloudftError as exc:
                if self._target.endpoint is None and not client.is_there():
                    # Nobody else can start the server of this occasion.
                    exc.hint = f"see {_log(self._target, state)}, then type the same command again"
                raise
        return endpoint, template, workers

    def _take(self, number: int, answered: Answered) -> None:
        row = self._items[number][2]
        reply = answered.outcome if isinstance(answered.outcome, Reply) else None
        scored = self._asked.scorer.score(reply, row)
        own = {name: value for metric in self._asked.own for name, value in metric.score(reply, row).items()}
        self._answers[number] = (answered, scored, own)
        if self._primary in scored.score:
            self._sum, self._scored = self._sum + scored.score[self._primary], self._scored + 1
        self._tell()

    def _so_far(self) -> str:
        """The primary metric of the answers that there are."""
        return f"{self._primary} {self._sum / self._scored:.1%}" if self._scored else ""

    def _tell(self) -> None:
        so_far = self._so_far()
        note = f"{len(self._answers)}/{len(self._items)}" + (f", {so_far} so far" if so_far else "")
        self._progress(f"evaluate {self._target.label}", len(self._answers), len(self._items), "rows", note)

    def _interrupted(self) -> Interrupted:
        kept = self._cache is not None
        so_far = f" ({self._so_far()} so far)" if self._scored else ""
        return Interrupted(
            f"interrupted: {len(self._answers)} of {len(self._items)} answers were there{so_far}",
            effect=what_is_kept(kept),
            hint="go on:  type the same command again" if kept else "keep them next time:  leave --no-cache out",
        )

    def _measured(self, model: ModelUsed, seconds: float, workers: int) -> Measured:
        """Everything in the order of the questions."""
        ordered = [self._answers[number] for number in range(len(self._items))]
        rows = len(self._asked.rows)
        repeats = [ordered[at : at + rows] for at in range(0, len(ordered), rows)]
        outcomes = [(answered.cached, answered.outcome) for answered, _, _ in ordered]
        return Measured(
            label=self._target.label,
            model=model,
            lines=[_line(*item, *found[:2]) for item, found in zip(self._items, ordered, strict=True)],
            scores=[[scored for _, scored, _ in repeat] for repeat in repeats],
            own=[[own for _, _, own in repeat] for repeat in repeats],
            seconds=seconds,
            cached=sum(cached for cached, _ in outcomes),
            retried=sum(outcome.attempts > 1 for cached, outcome in outcomes if not cached),
            workers=workers,
        )


def _log(target: Target, state: Path) -> Path:
    return state / f"serve-{target.label}.log"


@contextlib.contextmanager
def _served(target: Target, state: Path, context: int) -> Iterator[tuple[Endpoint, tuple[str, str] | None]]:
    """The endpoint, and source and sha256 of the chat template where that is known."""
    if target.endpoint is not None:
        yield target.endpoint, None
        return
    assert target.gguf is not None
    log = _log(target, state)
    key = secrets.token_urlsafe(32)
    with serve_in_process(
        target.gguf,
        api_key=key,
        context=context,
        log=log,
        template=target.template,
        replace_template=target.replace_template,
        lora=target.lora,
    ) as endpoint:
        yield endpoint, template_used(log)


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


def _model(
    target: Target, root: Path, name: str, engine: str, digest: str | None, template: tuple[str, str] | None
) -> ModelUsed:
    gguf, (source, template_sha256) = target.gguf, template or (None, None)
    return ModelUsed.model_validate(
        {
            "title": target.title,
            "name": name,
            "engine": engine,
            "file": _relative(gguf, root),
            "sha256": digest,
            "template_source": source,
            "template_sha256": template_sha256,
            "url": target.endpoint.url if target.endpoint and gguf is None else None,
            "lineage": _lineage(gguf) if gguf else None,
            "lora": _relative(target.lora, root),
            "lora_sha256": sha256_file(target.lora) if target.lora else None,
        }
    )


def _relative(path: Path | None, root: Path) -> str | None:
    return str(path.relative_to(root) if path.is_relative_to(root) else path) if path else None


def _lineage(gguf: Path) -> Lineage:
    manifest = read_version(gguf.parent).manifest
    return Lineage(
        version=manifest.version,
        base_id=manifest.base_id,
        base_revision=manifest.base_revision,
        type=manifest.type,
        run_id=manifest.run_id,
        adapter_sha256=manifest.adapter_sha256,
        spec_sha256=manifest.spec_sha256,
    )


def _cache(target: Target, digest: str | None, state: Path, context: int) -> AnswerCache:
    """The answers of this model, by all that decides about them but the question."""
    endpoint, folder = target.endpoint, state / "cache"
    if digest is None:
        assert endpoint is not None
        return AnswerCache(folder, {"url": endpoint.url, "model": endpoint.model}, longest=A_DAY)
    identity = {
        "sha256": digest,
        "engine": endpoint.engine if endpoint else LLAMA_CPP_SERVER,
        "llama_cpp_python": metadata.version("llama-cpp-python"),
        "template": hashlib.sha256(target.template.encode()).hexdigest() if target.template else None,
        "context": context,
        **({"template_replaced": True} if target.replace_template else {}),
        **({"lora": sha256_file(target.lora)} if target.lora else {}),
    }
    return AnswerCache(folder, identity)


def _fim(task: Task, target: Target) -> Fim | None:
    if not isinstance(task, CodeTask) or task.ask != "fim":
        return None
    fim = Fim(*task.fim) if task.fim else fim_of(target.gguf) if target.gguf else None
    if fim is None:
        raise ConfigError(
            f"{target.title} names no tokens for fill-in-the-middle, so it was not trained for it",
            effect=NOTHING_WRITTEN,
            hint="set task.ask to chat, or name its tokens as task.fim in cloudft.yaml",
        )
    return fim


def _line(repeat: int, sampling: Sampling, row: Row, answered: Answered, scored: Scored) -> OutputLine:
    outcome = answered.outcome
    fields: dict[str, Any] = {"answer": None}
    if isinstance(outcome, Failure):
        fields["error"] = f"{outcome.kind}: {outcome.message}"
    else:
        fields = {
            "answer": outcome.text,
            "tool_calls": outcome.tool_calls,
            "finish": outcome.finish,
            "latency": round(outcome.latency, 4),
            "prompt_tokens": outcome.prompt_tokens,
            "completion_tokens": outcome.completion_tokens,
        }
    return OutputLine(
        row=row.number,
        repeat=repeat,
        seed=sampling.seed,
        prompt=row.prompt,
        prompt_sha256=row.prompt_sha256,
        expected=row.expected,
        score=dict(scored.score),
        problem=scored.problem,
        **fields,
    )


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    """The nearest rank."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None
