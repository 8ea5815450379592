"""The ladder: from the base to the served endpoint, one change at a time, each rung on the same hold-out.

The base, the base with examples, the adapter and the merge are measured in 16 bit (F16: it keeps more digits than
BF16, and merged weights have use for them), by the same server. So what differs between two rungs is what the step
is named after. The large files that this takes are removed as soon as they were measured.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from cloudft.errors import ConfigError, DataError, IntegrityError
from local.evaluation.analysis import Scores, measure
from local.evaluation.document.comparison import Caveat
from local.evaluation.document.eval_json import Document, read_document
from local.evaluation.document.ladder import Ladder, Rung, RungName
from local.evaluation.document.outputs import output_bytes
from local.evaluation.endpoint import Endpoint
from local.evaluation.eval_config import LadderConfig
from local.evaluation.evaluate import alone, base_target, read_ground, version_of
from local.evaluation.fewshot import Examples, draw_examples
from local.evaluation.measuring import Measured, Settings, Target
from local.evaluation.results import Ground, measurement, with_own
from local.evaluation.sections import write_sections
from local.evaluation.served import find_served
from local.evaluation.steps import Cost, advice, compare_rungs, worth_it
from local.evaluation.task import CodeTask
from local.evaluation.vocab import template_in
from local.progress import Progress
from local.project import Project, RunFolder
from local.quantizing.quantize import merged_unserved, quantize_adapter, quantized_base
from local.runs.records import read_spec
from local.serving.versions import LADDER, Version, current

SIXTEEN: Final = "F16"
WHOLE: Final = ("F16", "BF16", "F32")


def climb(
    project: Project,
    run: RunFolder,
    settings: Settings,
    config: LadderConfig,
    *,
    url: str | None = None,
    progress: Progress,
) -> Document:
    """Measure all rungs, and add the ladder to the run's evaluation.

    Args:
        url: the endpoint of the last rung; None: what `cloudft serve` serves now, if anything.

    Raises:
        NotFound: the run was not evaluated.
        EnvironmentProblem: the disk has no room for a file of 16 bit.
        CloudftError: as ``evaluate_run``.
    """
    read_document(run)
    ground = read_ground(project, run, settings)
    with alone(run):
        found = _Rungs(ground, config, url, progress)
        found.measure()
        document = write_sections(run, found.files(), ladder=found.ladder())
        for name in found.missing:  # of an earlier ladder
            (run.root / _file(name)).unlink(missing_ok=True)
        return document


class _Rungs:
    """Measures one rung after the other. What cannot be measured is noted with its reason, and the rest goes on."""

    def __init__(self, ground: Ground, config: LadderConfig, url: str | None, progress: Progress) -> None:
        self.ground, self.config, self.url, self.progress = ground, config, url, progress
        self.project, self.run = ground.project, ground.run
        self.spec = read_spec(self.run)
        self.version: Version = version_of(self.project, self.run)
        self.measured: dict[RungName, Measured] = {}
        self.missing: dict[RungName, str] = {}
        self.notes: dict[RungName, str] = {}
        self.examples: Examples | None = None

    def measure(self) -> None:
        with self._sixteen_bits(
            lambda: quantized_base(self.project, self.spec.base, type=SIXTEEN, folder=LADDER, progress=self.progress)
        ) as base:
            fallback = base_target(self.project, self.run, self.version, self.progress).template
            title = f"{self.spec.base.id}, 16 bit"
            self._take("base", Target("ladder-base", title, base, fallback))
            self._few_shot(Target("ladder-few-shot", f"{title}, with examples", base, fallback))
            self._adapter(base)
        kind = self.version.manifest.type
        after = Target("ladder-quantised", f"{self.version.name}, {kind}", self.version.gguf)
        if kind in WHOLE:
            self._take("merge", replace(after, label="ladder-merge"))
            self.missing["quantised"] = f"the served file has 16 bits or more ({kind})"
        else:
            with self._sixteen_bits(
                lambda: merged_unserved(self.project, self.run, type=SIXTEEN, progress=self.progress)
            ) as merged:
                self._take("merge", Target("ladder-merge", "merged, 16 bit", merged))
            self._take("quantised", after)
        self._served()

    @contextmanager
    def _sixteen_bits(self, make: Callable[[], Path]) -> Iterator[Path]:
        """A large file, gone when it was measured. One that a broken-off ladder left is used."""
        path = make()
        yield path
        shutil.rmtree(path.parent, ignore_errors=True)
        with suppress(OSError):
            path.parent.parent.rmdir()  # if it was the last

    def _take(self, name: RungName, target: Target, ground: Ground | None = None) -> None:
        self.measured[name] = (ground or self.ground).measure(target, self.progress)

    def _few_shot(self, target: Target) -> None:
        """As many examples as fit into the context, of those that are wanted."""
        wanted = self.config.examples
        task = self.ground.question.task
        if wanted == 0 or (isinstance(task, CodeTask) and task.ask == "fim"):
            self.missing["few-shot"] = "not wanted" if wanted == 0 else "fill-in-the-middle takes no examples"
            return
        try:
            examples = draw_examples(self.run, self.spec.data.train.sha256, wanted, self.config.seed)
        except (IntegrityError, DataError) as exc:
            self.missing["few-shot"] = exc.what
            return
        while examples.lines:
            rows = [examples.before(row) for row in self.ground.question.rows]
            asked = replace(self.ground, question=replace(self.ground.question, rows=rows))
            try:
                self._take("few-shot", target, asked)
            except DataError:
                examples = examples.first(len(examples.lines) // 2)
                continue
            self.examples = examples
            if len(examples.lines) < wanted:
                self.notes["few-shot"] = f"{wanted} examples do not fit into serve.context, {len(examples.lines)} do"
            return
        self.missing["few-shot"] = "not one example fits into serve.context beside a question and its answer"

    def _adapter(self, base: Path) -> None:
        try:
            lora = quantize_adapter(self.project, self.run, progress=self.progress)
        except ConfigError as exc:
            self.missing["adapter"] = exc.what
            return
        template = template_in(self.version.gguf)
        title = f"{self.spec.base.id} and the adapter beside it, 16 bit"
        self._take("adapter", Target("ladder-adapter", title, base, template, replace_template=True, lora=lora))

    def _served(self) -> None:
        serves = current(self.project)
        if self.url is None and (serves is None or serves.name != self.version.name):
            name = serves.name if serves else "nothing"
            self.missing["served"] = f"models/current serves {name}, not {self.version.name}"
            return
        endpoint = find_served(self.project, self.version.name, self.url)
        if endpoint is None:
            # Not the answers of the rung before: "serving changed nothing" must not be said of what nobody asked.
            self.missing["served"] = (
                "nothing is served now; run cloudft serve in another terminal and type the same command again (the "
                "other answers are kept)"
            )
            return
        # A measurement of this endpoint must be one: no answer is taken from the cache.
        fresh = replace(self.ground, settings=replace(self.ground.settings, use_cache=False))
        self._take("served", _served_target(endpoint, self.version, self.url), fresh)

    def files(self) -> list[tuple[Path, bytes]]:
        """The answers of all rungs."""
        return [(self.run.root / _file(name), output_bytes(made.lines)) for name, made in self._complete().items()]

    def _complete(self) -> dict[RungName, Measured]:
        """With the scores of the user's own metrics."""
        _, sides = with_own(self.ground.question, list(self.measured.values()))
        return dict(zip(self.measured, sides, strict=True))

    def ladder(self) -> Ladder:
        question, n = self.ground.question, len(self.ground.question.rows)
        metrics, _ = with_own(question, list(self.measured.values()))
        primary = question.task.primary or question.scorer.primary
        sides, about = self._complete(), metrics[primary].about
        scores: dict[RungName, Scores] = {name: made.scores for name, made in sides.items()}
        rungs = tuple(
            Rung(
                name=name,
                title=made.model.title,
                measurement=measurement(question, made, measure(metrics, made.scores), _file(name)),
                note=self.notes.get(name, ""),
            )
            for name, made in sides.items()
        )
        steps = compare_rungs({primary: metrics[primary]}, primary, scores, n)
        values = {rung.name: rung.measurement.metrics[primary].value for rung in rungs}
        k = len(self.examples.lines) if self.examples else 0
        worth, sentence = worth_it(steps, k, about, values, self._cost())
        said = advice(steps, about, self.config.max_loss, self.version.manifest.type, self.run.run_id)
        return Ladder(
            metric=primary,
            n=n,
            rungs=rungs,
            steps=steps,
            few_shot=self.examples.about() if self.examples else None,
            missing=self.missing,
            bar=self.config.max_loss,
            advice=said,
            worth_it=worth,
            sentence=sentence,
            warnings=(Caveat(code="quantisation", text=said),) if said else (),
        )

    def _cost(self) -> Cost:
        """Tokens of the average prompt with examples, and without."""

        def average(name: RungName) -> float:
            made = self.measured.get(name)
            told = [line.prompt_tokens for line in made.lines if line.prompt_tokens is not None] if made else []
            return sum(told) / len(told) if told else 0.0

        return Cost(average("few-shot"), average("merge"))


def _served_target(endpoint: Endpoint, version: Version, url: str | None) -> Target:
    """What a URL serves is only known by its name."""
    title = f"{endpoint.model} at {endpoint.url}"
    return Target("ladder-served", title, None if url else version.gguf, endpoint=endpoint)


def _file(name: RungName) -> str:
    """Of a rung's answers, in the run's folder."""
    return f"outputs-ladder-{name}.jsonl"
