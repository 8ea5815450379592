"""Measures what a fine-tune forgot, by the general suites that are asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from cloudft.errors import UsageError
from local.evaluation.basics import BASICS, ask_basics
from local.evaluation.document.eval_json import Document, read_document
from local.evaluation.document.measurement import LABELS, Label
from local.evaluation.document.outputs import output_bytes, outputs_path
from local.evaluation.evaluate import alone, base_target, read_ground, version_of
from local.evaluation.forgetting import GeneralAnswers, conclude
from local.evaluation.harness import ask_harness
from local.evaluation.measuring import Settings, Target
from local.evaluation.results import Ground
from local.evaluation.sections import write_sections
from local.progress import Progress
from local.project import Project, RunFolder

LM_EVAL: Final = "lm-eval:"
LEAST_CONTEXT: Final = 1024  # tokens; a task's own may be smaller
_TASK: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def measure_forgetting(
    project: Project, run: RunFolder, suites: Sequence[str], settings: Settings, *, progress: Progress
) -> Document:
    """Ask the models of a run's evaluation general questions, and add what is found to the evaluation.

    They are decoded greedily and all asked, whatever the hold-out was: numbers of several runs are to be compared.

    Args:
        suites: "basics", or "lm-eval:<task>" for a task of lm-evaluation-harness.

    Raises:
        UsageError: there is no such suite.
        NotFound: the run was not evaluated.
        EnvironmentProblem: lm-evaluation-harness is not installed.
        CloudftError: as ``evaluate_run``.
    """
    check_suites(suites)
    read_document(run)
    plain = Settings(workers=settings.workers, use_cache=settings.use_cache, timeout=settings.timeout)
    ground, version = read_ground(project, run, plain), version_of(project, run)
    ground = replace(ground, context=max(ground.context, LEAST_CONTEXT))
    with alone(run):
        base = base_target(project, run, version, progress)
        targets: dict[Label, Target] = {
            "before": replace(base, label="general-before"),
            "after": Target("general-after", version.name, version.gguf),
        }
        found, files = {}, []
        for suite in dict.fromkeys(suites):
            asked = _ask(suite, ground, targets, progress)
            paths: dict[Label, Path] = {label: outputs_path(run, f"{_name(suite)}-{label}") for label in LABELS}
            found[suite] = conclude(asked, {label: path.name for label, path in paths.items()})
            files += [(paths[label], output_bytes(asked.lines[label])) for label in LABELS]
        kept = tuple(old for old in read_document(run).forgetting if old.suite not in found)
        return write_sections(run, files, forgetting=(*kept, *found.values()))


def check_suites(suites: Sequence[str]) -> None:
    """Raises ``UsageError`` for one that there is not."""
    for suite in suites:
        task = suite.removeprefix(LM_EVAL)
        if suite != BASICS and (task == suite or not _TASK.fullmatch(task)):
            raise UsageError(
                f"no general suite {suite!r}",
                effect="nothing was measured",
                hint=f"there are {BASICS}, and {LM_EVAL}TASK for a task of lm-evaluation-harness",
            )


def _ask(suite: str, ground: Ground, targets: dict[Label, Target], progress: Progress) -> GeneralAnswers:
    if suite == BASICS:
        return ask_basics(ground, targets, progress)
    return ask_harness(suite.removeprefix(LM_EVAL), ground, targets, progress)


def _name(suite: str) -> str:
    """For a file's name."""
    return suite.replace(":", "-")
