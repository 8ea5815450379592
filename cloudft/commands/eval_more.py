"""What ``cloudft eval`` may measure besides before and after: the ladder, forgetting, a judge."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from cloudft.commands.common import if_interrupted
from cloudft.errors import ConfigError, Interrupted, UsageError
from cloudft.output import Output

if TYPE_CHECKING:
    from local.config import Config
    from local.evaluation.document.eval_json import Document
    from local.evaluation.document.forgetting import Forgetting
    from local.evaluation.document.judging import Judging
    from local.evaluation.document.ladder import Ladder
    from local.evaluation.document.measurement import Estimate, Metric
    from local.evaluation.judging import JudgePlan
    from local.evaluation.measuring import Settings
    from local.project import Project, RunFolder

KEPT = "before and after are measured and written; the answers so far are kept"


@dataclass(frozen=True)
class More:
    """What the command line asks for. ``judge``: None leaves it to the task: a text task with a judge is judged."""

    ladder: bool
    served: str | None
    general: tuple[str, ...]
    judge: bool | None
    yes: bool

    def check(self, against: str | None) -> None:
        """Refuse what goes together badly, before anything is asked. Raises ``UsageError``."""
        from local.evaluation.suites import check_suites

        check_suites(self.general)
        if self.served and not self.ladder:
            raise UsageError("--served names the last rung of the ladder", hint="add --ladder")
        if against is not None and (self.ladder or self.general or self.judge):
            raise UsageError(
                "--ladder, --general and --judge are about the base and the tuned model, not about another endpoint",
                effect="nothing was measured",
                hint="leave --endpoint out",
            )


def more_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options, as ``more: More``."""

    @click.option("--ladder", is_flag=True, help="Also measure each step from the base to the served endpoint.")
    @click.option("--served", metavar="URL", help="Endpoint of the ladder's last rung; default: what cloudft serves.")
    @click.option(
        "--general",
        multiple=True,
        metavar="SUITE",
        help="Also look for what was forgotten: basics, or lm-eval:TASK. May be given several times.",
    )
    @click.option(
        "--judge/--no-judge", default=None, help="Ask the judge of cloudft.yaml; default: for tasks of free text."
    )
    @click.option("--yes", is_flag=True, help="Do not ask before the judge's requests, which may cost money.")
    @functools.wraps(function)
    def wrapped(
        *args: Any,
        ladder: bool,
        served: str | None,
        general: tuple[str, ...],
        judge: bool | None,
        yes: bool,
        **kwargs: Any,
    ) -> None:
        function(*args, more=More(ladder, served, general, judge, yes), **kwargs)

    return wrapped


def measure_more(
    project: Project, run: RunFolder, document: Document, settings: Settings, more: More, out: Output
) -> Document:
    """Measure what was asked for, one after the other; each is written when it is done."""
    from local.config import load_config
    from local.evaluation.ladder import climb
    from local.evaluation.suites import measure_forgetting

    config = load_config(project.config_file)
    with if_interrupted("interrupted", KEPT, "type the same command again"), out.progress() as progress:
        if more.ladder:
            document = climb(project, run, settings, config.ladder, url=more.served, progress=progress)
        if more.general:
            document = measure_forgetting(project, run, more.general, settings, progress=progress)
    if _judges(more, config, document.task.kind):
        document = _judge(project, run, document, config, settings, more, out)
    return document


def check_judge(more: More, config: Config, kind: str) -> None:
    """Refuse a judge that could not be asked, before hours go into measuring what it is to judge.

    Raises:
        ConfigError: there is no judge, or its key is not in the environment.
    """
    from local.evaluation.judging import check_judge

    if not _judges(more, config, kind):
        return
    if config.judge is None:
        raise ConfigError(
            "cloudft.yaml names no judge",
            effect="nothing was measured",
            hint="add its endpoint:  judge: {url: …, model: …, api_key_env: …}",
        )
    check_judge(config.judge)


def _judges(more: More, config: Config, kind: str) -> bool:
    """Whether a task of this kind is judged: if it was said, or for free text, where there is a judge."""
    return more.judge if more.judge is not None else config.judge is not None and kind == "text"


def _judge(
    project: Project, run: RunFolder, document: Document, config: Config, settings: Settings, more: More, out: Output
) -> Document:
    from local.evaluation.judging import plan_judging, run_judging

    assert config.judge is not None
    plan = plan_judging(project, run, config.judge, use_cache=settings.use_cache)
    out.note(f"\n{cost_text(plan)}")
    if plan.estimate.requests and not more.yes and not _agreed(more, out):
        return document
    with out.progress() as progress:
        return run_judging(run, plan, config.review.pairs, progress=progress)


def _agreed(more: More, out: Output) -> bool:
    """Ask the person; who is none says so beforehand. A judge that nobody named is left out then."""
    if out.as_json or not sys.stdin.isatty():
        if more.judge is None:
            out.note("the judge was not asked, because nobody is here to agree to what it costs; agree with --yes")
            return False
        raise UsageError(
            "the judge is asked only when you agree to what it costs",
            effect=f"{KEPT}; the judge was not asked",
            hint="agree with --yes, or leave the judge out with --no-judge",
        )
    if not click.confirm("Ask the judge?", err=True):
        raise Interrupted("the judge was not asked", effect=KEPT, hint="leave it out:  cloudft eval --no-judge")
    return True


def cents_up(usd: float) -> float:
    """In whole cents, and never less: what is said to be the most must be."""
    return math.ceil(round(usd * 100, 6)) / 100


def cost_text(plan: JudgePlan) -> str:
    """What the judge will cost at most."""
    cost, known = plan.estimate, len(plan.asked) - plan.estimate.requests
    price = (
        "at an unknown price"
        if cost.usd is None
        else f"at most ${cents_up(cost.usd):.2f} at the prices in cloudft.yaml"
    )
    cached = f", {known} known already" if known else ""
    written = (
        "any number to write, since judge.parameters leave max_tokens out"
        if cost.completion_tokens is None
        else f"at most {cost.completion_tokens} to write"
    )
    return (
        f"judge {plan.config.model} at {plan.config.url}: {cost.pairs} pairs, {cost.requests} requests{cached}; about "
        f"{cost.prompt_tokens} tokens to read and {written}, {price}"
    )


def more_text(document: Document) -> str:
    """The sections that there are, as text."""
    parts = [ladder_text(document.ladder, document.metrics[document.ladder.metric])] if document.ladder else []
    parts += [forgetting_text(found) for found in document.forgetting]
    if document.judging:
        parts.append(judging_text(document.judging))
    if document.spot_check:
        parts.append(f"spot check: {document.spot_check.sentence}")
    return "".join(f"\n\n{part}" for part in parts)


def ladder_text(ladder: Ladder, about: Metric) -> str:
    widths = [
        max(len(text) for text in texts) for texts in zip(*[(r.name, r.title) for r in ladder.rungs], strict=True)
    ]
    lines = [f"ladder, {ladder.metric} of {ladder.n} examples"]
    for rung in ladder.rungs:
        value = estimate_text(about, rung.measurement.metrics[ladder.metric])
        lines.append(f"  {rung.name:<{widths[0]}}  {rung.title:<{widths[1]}}  {value:>21}")
        lines += [f"    ({rung.note})"] if rung.note else []
    lines += [f"  {name} was not measured: {why}" for name, why in ladder.missing.items()]
    lines += [f"  {step.sentence}" for step in ladder.steps]
    lines.append(f"  {ladder.sentence}")
    return "\n".join([*lines, *([f"  {ladder.advice}"] if ladder.advice else [])])


def forgetting_text(found: Forgetting) -> str:
    lines = [f"{found.suite} ({found.title})", f"  {found.sentence}"]
    if len(found.parts) > 1 and found.outcome != "nothing to forget":
        parts = [f"{name} {part.before.value:.0%} → {part.after.value:.0%}" for name, part in found.parts.items()]
        lines.append(f"  {', '.join(parts)}")
    for example in found.regressions[:3]:
        answers = f"before {_clip(example.before)}, after {_clip(example.after)}"
        lines.append(f"  lost: {_clip(example.question, 100)}  {answers}")
    return "\n".join(lines)


def judging_text(found: Judging) -> str:
    lines = [f"judge {found.judge.model}", f"  {found.sentence}"]
    # What the sentence says already is not said twice.
    lines += [f"  note: {warning.text}" for warning in found.warnings if not found.position.named]
    if found.standing == "not checked by a person":
        lines.append("  check it yourself:  cloudft review")
    return "\n".join(lines)


def estimate_text(about: Metric, estimate: Estimate) -> str:
    """A value with its interval: a share in per cent, a ratio from 0 to 1, any other number as it is."""
    value, low, high = estimate.value, estimate.low, estimate.high
    if about.unit == "share":
        return f"{value:.1%} [{100 * low:.1f}, {100 * high:.1f}]"
    digits = ".3f" if about.unit == "ratio" else ".4g"
    return f"{value:{digits}} [{low:{digits}}, {high:{digits}}]"


def _clip(text: str, limit: int = 40) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= limit else line[: limit - 1] + "…")
