"""What an evaluation found, put together and written down: all files of it, or none."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from cloudft import __version__
from cloudft.errors import ConfigError
from local.evaluation.document.eval_json import Document, TaskUsed
from local.evaluation.document.measurement import Decoding, Estimate, Label, Measurement, OutputsRef
from local.evaluation.document.outputs import OutputLine, output_bytes, outputs_path
from local.evaluation.endpoint import LLAMA_SERVER, Sampling
from local.evaluation.holdout import NOTHING_WRITTEN
from local.evaluation.measuring import Measured, Question, Settings, Target, measure_target
from local.evaluation.own_metric import own_metric_defs
from local.evaluation.sections import document_bytes, keep_sections
from local.evaluation.tasks.base import MetricDef
from local.evaluation.verdict import caveats, verdict
from local.files import atomic_open
from local.progress import Progress
from local.project import Project, RunFolder


@dataclass(frozen=True)
class Ground:
    """What both sides were measured on.

    ``held_out``: rows of the whole hold-out; ``context``: tokens of the served context; ``against``: the model that
    stands in the place of the base, if one does.
    """

    project: Project
    run: RunFolder
    question: Question
    settings: Settings
    held_out: int
    holdout_sha256: str
    context: int
    against: str | None = None

    def measure(self, target: Target, progress: Progress, question: Question | None = None) -> Measured:
        """Ask one model; ``question``: another one than the hold-out's."""
        return measure_target(
            target,
            question or self.question,
            self.settings,
            root=self.project.root,
            state=self.project.state,
            context=self.context,
            progress=progress,
        )

    @property
    def mark(self) -> str:
        """What is added to the names of files where the base was not measured."""
        return f"-against-{re.sub(r'[^A-Za-z0-9._-]+', '-', self.against)[:60]}" if self.against else ""


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and the paths of what was written."""

    document: Document
    record: Path
    outputs: tuple[Path, Path]

    @property
    def n(self) -> int:
        return self.document.n

    @property
    def before(self) -> dict[str, float]:
        return self.document.before

    @property
    def after(self) -> dict[str, float]:
        return self.document.after


def write_results(ground: Ground, before: Measured, after: Measured) -> Evaluation:
    """Write answers and numbers: all of them or none.

    Raises:
        ConfigError: a metric of the user's own is not the same for all rows, or the primary one applies to none.
    """
    metrics, (before, after) = with_own(ground.question, (before, after))
    lines: dict[Label, list[OutputLine]] = {"before": before.lines, "after": after.lines}
    document = keep_sections(ground.run, _document(ground, metrics, (before, after)), lines)
    root, mark = ground.run.root, ground.mark
    record = ground.run.evaluation.with_stem(f"{ground.run.evaluation.stem}{mark}")
    outputs = tuple(root / side.outputs.path for side in document.sides.values())
    contents = [
        (record, document_bytes(document)),
        (outputs[0], output_bytes(before.lines)),
        (outputs[1], output_bytes(after.lines)),
    ]
    with contextlib.ExitStack() as stack:
        # All are written in full before the first takes its place. The stack unwinds backwards, so eval.json,
        # which tells that there is a result, comes last.
        for file, raw in [(stack.enter_context(atomic_open(path)), raw) for path, raw in contents]:
            file.write(raw)
            file.flush()
    return Evaluation(document, record, (outputs[0], outputs[1]))


def _document(ground: Ground, metrics: Mapping[str, MetricDef], measured: Sequence[Measured]) -> Document:
    """The contents of ``eval.json``."""
    from local.evaluation.analysis import analyse

    question, n = ground.question, len(ground.question.rows)
    primary = question.task.primary or question.scorer.primary
    before, after = (side.scores for side in measured)
    found = analyse(metrics, before, after, primary) if primary in metrics else None
    if found is None or primary not in found.after:
        raise ConfigError(
            f"task.primary: {primary} does not apply to any row of the hold-out",
            effect=NOTHING_WRITTEN,
            hint=f"there are {', '.join(found.after if found else metrics)}",
        )
    about = {name: metrics[name].about for name in found.after}
    names = (ground.mark.removeprefix("-") or "before", f"after{ground.mark}")
    estimates = (found.before, found.after)
    sides = {
        side.label: measurement(question, side, made, outputs_path(ground.run, name).name)
        for side, made, name in zip(measured, estimates, names, strict=True)
    }
    first, second = (made[primary] for made in estimates)
    said = verdict(n, primary, about[primary], first, second, found.comparisons)
    cut_off = {side.label: sum(line.finish == "length" for line in side.lines) for side in measured}
    return Document.model_validate(
        {
            "n": n,
            "before": sides["before"].values(),
            "after": sides["after"].values(),
            "run_id": ground.run.run_id,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "verdict": said,
            "warnings": tuple(caveats(n, ground.held_out, said, about, found.comparisons, sides, cut_off)),
            "primary": primary,
            "metrics": about,
            "comparisons": found.comparisons,
            "changes": found.changes,
            "held_out_rows": ground.held_out,
            "holdout_sha256": ground.holdout_sha256,
            "task": TaskUsed(
                kind=question.task.kind,
                settings=question.task.model_dump(mode="json", exclude={"kind"}),
                code_sha256={metric.file: metric.sha256 for metric in question.own},
            ),
            "decoding": _decoding(ground),
            "sides": sides,
            "software": {"cloudft": __version__, "llama-cpp-python": metadata.version("llama-cpp-python")},
        }
    )


def measurement(question: Question, side: Measured, metrics: dict[str, Estimate], path: str) -> Measurement:
    """What one model scored, for a document. ``path``: of the file with its answers, relative to the run."""
    from local.evaluation.analysis import confusion, tables

    scorer, raw = question.scorer, output_bytes(side.lines)
    return Measurement(
        metrics=metrics,
        model=side.model,
        usage=side.usage(),
        outputs=OutputsRef(path=path, sha256=hashlib.sha256(raw).hexdigest(), lines=len(side.lines)),
        tables=tables(scorer.tables, side.scores),
        confusion=confusion(scorer.matrices, side.scores),
    )


def _decoding(ground: Ground) -> Decoding:
    settings = ground.settings
    sent = Sampling(settings.temperature).parameters(LLAMA_SERVER)
    return Decoding(
        temperature=settings.temperature,
        seeds=settings.seeds,
        max_tokens=ground.question.task.max_tokens,
        context=ground.context,
        parameters={name: value for name, value in sent.items() if name not in ("temperature", "seed", "stream")},
    )


def with_own(question: Question, sides: Sequence[Measured]) -> tuple[dict[str, MetricDef], list[Measured]]:
    """All metrics, and the sides with the scores of the user's own; a failed request, which their functions never see,
    has 0 in each."""
    known = question.scorer.metrics
    own = own_metric_defs(question.own, [score for side in sides for repeat in side.own for score in repeat])
    if clash := own.keys() & known.keys():
        raise ConfigError(
            f"task.metric: {', '.join(clash)} is the name of a metric that there is already", effect=NOTHING_WRITTEN
        )
    return {**known, **own}, [_completed(side, tuple(own)) for side in sides] if own else list(sides)


def _completed(side: Measured, own: Sequence[str]) -> Measured:
    scores = [
        [
            replace(scored, score={**scored.score, **{name: float(given.get(name, 0)) for name in own}})
            for scored, given in zip(*both, strict=True)
        ]
        for both in zip(side.scores, side.own, strict=True)
    ]
    flat = [scored for repeat in scores for scored in repeat]
    lines = [
        line.model_copy(update={"score": dict(scored.score)}) for line, scored in zip(side.lines, flat, strict=True)
    ]
    return replace(side, scores=scores, lines=lines)
