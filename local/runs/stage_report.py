"""What the gate found of each stage, in words: for `status`, `pull` and the report.

The values are those of ``trainer.stages`` in ``result.json`` (``jobs.outcome.StageOutcome``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

Stages = Sequence[Mapping[str, Any]]
NONE: Final = "–"

# (key of a measurement, what it is called, whether it is a share)
SHOWN: Final = (
    ("exact_match", "exact match", True),
    ("schema_valid", "schema valid", True),
    ("loss", "loss", False),
    ("general_loss", "loss of the general set", False),
)


def stages_of(result: Mapping[str, Any] | None) -> Stages:
    """Of a result; an older one, or a trainer that did not come so far, has none."""
    return tuple((result or {}).get("trainer", {}).get("stages") or ())


def stage_lines(stages: Stages) -> list[str]:
    """A line for each stage: its steps, what it changed, and whether it was kept."""
    return [f"{_head(stage)}{_changes(stage)}{_note(stage)}" for stage in stages]


def kept_out(stages: Stages) -> list[str]:
    """The stages that made things worse, each with the reason."""
    return [f"{stage['name']}: {stage.get('note', '')}" for stage in stages if not stage.get("kept", True)]


def stage_cells(stages: Stages) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """The same as the columns and rows of a table; a measurement that no stage has makes no column."""
    shown = [entry for entry in SHOWN if any(_change(stage, entry[0], entry[2]) for stage in stages)]
    columns = ("stage", "method", "steps", "mean loss", *(name for _, name, _ in shown), "gate", "note")
    rows = tuple(
        (
            str(stage.get("name", "")),
            str(stage.get("method", "")),
            f"{stage.get('steps_done', 0)} of {stage.get('steps_planned', 0)}",
            NONE if stage.get("train_loss") is None else f"{stage['train_loss']:.4f}",
            *(_change(stage, key, share) or NONE for key, _, share in shown),
            "kept" if stage.get("kept", True) else "kept out",
            str(stage.get("note") or ""),
        )
        for stage in stages
    )
    return columns, rows


def _head(stage: Mapping[str, Any]) -> str:
    kept = "" if stage.get("kept", True) else ", kept out"
    return f"{stage['name']}: {stage['steps_done']} of {stage['steps_planned']} steps{kept}"


def _changes(stage: Mapping[str, Any]) -> str:
    told = [(name, _change(stage, key, share)) for key, name, share in SHOWN]
    return "".join(f"; {name} {change}" for name, change in told if change)


def _change(stage: Mapping[str, Any], key: str, share: bool) -> str:
    values = [(stage.get(side) or {}).get(key) for side in ("before", "after")]
    shown = [f"{value:.1%}" if share else f"{value:.3f}" for value in values if value is not None]
    return " → ".join(shown)


def _note(stage: Mapping[str, Any]) -> str:
    return f" ({stage['note']})" if stage.get("note") else ""
