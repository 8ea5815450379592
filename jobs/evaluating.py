"""The loss on rows that are not trained on, while a stage goes on: how often, on which rows, and the measuring.

Evaluations take at most ``SHARE`` of the time. Tokens say when one is due, not a clock: a run that was broken off must
evaluate at the same steps as one that was not, or it would end with another adapter. A row costs at most half in it of
what it costs in training, where the same forward pass is followed by a backward one of twice its work.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.model import Tuned
from jobs.runlog import log, say
from jobs.spec import RunSpec, Stage
from jobs.stage_data import encode, load_rows

SHARE, COST = 0.05, 0.5
# In a stage: no more evaluations than this, and so few rows that there may be that many.
MOST, WANTED = 20, 4
# Of the stage's own rows, where there are no others.
MOST_OWN_ROWS = 16
# Rows for one evaluation. With fewer than the least the loss says little; but it is still a measurement.
MOST_ROWS, LEAST_ROWS = 64, 8
# A cpt or dpo stage has no validation file: this share of its own rows is held out, if it has so many.
HELD_OUT, ENOUGH = 0.05, 100


@dataclass(frozen=True)
class Plan:
    """``rows`` to evaluate on, every ``every`` steps and after the last; none at all where there are no rows.

    ``trained_on``: the rows are some of the stage's own. Their loss says nothing about which weights are the best, and
    only shows a training that goes wrong.
    """

    rows: tuple[dict[str, Any], ...] = ()
    every: int = 0
    trained_on: bool = False

    def due(self, step: int, last: int) -> bool:
        """Whether the loss is wanted after that step; before the first it is what the stage begins with."""
        return bool(self.rows) and (step % self.every == 0 or step == last)


def plan(inputs: Path, spec: RunSpec, tuned: Tuned, stage: Stage, dataset: Any) -> tuple[Any, Plan]:
    """What is left of the dataset to train on, and what is evaluated.

    An sft stage is evaluated on the validation rows, encoded as its own; others on some of their own rows.
    """
    if stage.kind == "sft":
        rows = _validation(inputs, spec, tuned, stage, "seq_lengths" in dataset.column_names)
    else:
        dataset, rows = _held_out(dataset, spec.seed)
    per_step = mean_tokens(dataset) * stage.batch_size * stage.gradient_accumulation
    if not rows:
        return dataset, _watching(dataset, per_step, stage.max_steps, spec.seed)
    rows, every = paced([tokens(row) for row in rows], per_step, stage.max_steps, rows)
    log("evaluation", f"every {every}", f"steps, on {len(rows)} rows: at most {SHARE:.0%} of the time")
    return dataset, Plan(tuple(rows), every)


def _watching(dataset: Any, per_step: float, steps: int, seed: int) -> Plan:
    """With no rows to evaluate on: some that are trained on, unless the stage is over before they would tell much."""
    drawn = random.Random(seed).sample(range(len(dataset)), min(len(dataset), MOST_OWN_ROWS))  # noqa: S311
    rows = [dataset[at] for at in drawn]
    rows, every = paced([tokens(row) for row in rows], per_step, steps, rows)
    if every * WANTED > steps:
        log("evaluation", "none", "there are no rows to evaluate on, so the last step counts as the best")
        return Plan()
    log(
        "evaluation",
        f"every {every}",
        f"steps, on {len(rows)} rows that are trained on: they only show a training that goes wrong; "
        "there are no others, so the last step counts as the best",
    )
    return Plan(tuple(rows), every, trained_on=True)


def paced(costs: Sequence[int], per_step: float, steps: int, rows: Sequence[Any]) -> tuple[list[Any], int]:
    """So many of the rows, and so many steps between two evaluations, that they keep to their share.

    Args:
        costs: tokens of each row.
        per_step: tokens of a training step.
        steps: of the stage.
    """
    count = min(len(rows), MOST_ROWS)
    while count > LEAST_ROWS and _interval(costs[:count], per_step, steps) * WANTED > steps:
        count -= 1
    return list(rows[:count]), _interval(costs[:count], per_step, steps)


def _interval(costs: Sequence[int], per_step: float, steps: int) -> int:
    return max(1, math.ceil(steps / MOST), math.ceil(sum(costs) * COST / (SHARE * per_step)))


def tokens(row: dict[str, Any]) -> int:
    """What a row has: of a preference its prompt with either answer."""
    if "input_ids" in row:
        return len(row["input_ids"])
    return 2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])


def mean_tokens(dataset: Any) -> float:
    """Of a row of the dataset, from a sample."""
    sample = random.Random(0).sample(range(len(dataset)), min(len(dataset), 256))  # noqa: S311
    return math.fsum(tokens(dataset[at]) for at in sample) / len(sample)


def _validation(inputs: Path, spec: RunSpec, tuned: Tuned, stage: Stage, packed: bool) -> list[dict[str, Any]]:
    if spec.data.validation is None:
        return []
    rows = load_rows(inputs, spec.data.validation)[:MOST_ROWS]
    examples = encode(rows, tuned, stage, "validation rows").examples
    rows_of = [{"input_ids": list(e.input_ids), "labels": list(e.labels)} for e in examples]
    # A packed stage's collator asks what each row is made of.
    return [{**row, "seq_lengths": [len(row["input_ids"])]} if packed else row for row in rows_of]


def _held_out(dataset: Any, seed: int) -> tuple[Any, list[dict[str, Any]]]:
    """A dataset without some rows, and those, the same ones for the same seed."""
    if len(dataset) < ENOUGH:
        return dataset, []
    count = min(MOST_ROWS, round(len(dataset) * HELD_OUT))
    held = set(random.Random(seed).sample(range(len(dataset)), count))  # noqa: S311
    say(f"{count} of {len(dataset)} rows are held out of the training, to evaluate on")
    rest = [at for at in range(len(dataset)) if at not in held]
    return dataset.select(rest), [dataset[at] for at in sorted(held)]
