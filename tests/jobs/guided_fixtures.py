"""Work folders with more than one stage, and with rows to evaluate on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.spec import RunSpec, Stage
from local.demo.demo_tickets import tickets
from tests.jobs.train_fixtures import SETTINGS, make_work, ref

ROWS = [ticket.messages() for ticket in tickets(72, 1)]
HELD = [ticket.messages() for ticket in tickets(24, 2)]
TEXTS = [f"{row[-2]['content']}\n{row[-1]['content']}" for row in (ticket.messages() for ticket in tickets(120, 3))]


def guided_work(
    work: Path,
    base: Path,
    *,
    cpt: dict[str, Any] | None = None,
    held: int = 24,
    rows: Sequence[Sequence[dict[str, str]]] = HELD,
    **settings: Any,
) -> Path:
    """An sft stage with the first ``held`` of the rows to evaluate on; behind a cpt stage if its settings are given."""
    make_work(work, base, ROWS, **settings)
    spec = RunSpec.model_validate_json((work / "spec.json").read_bytes())
    stages = list(spec.stages)
    data = spec.data
    if held:
        path = work / "inputs" / "validation.jsonl"
        path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows[:held]), encoding="utf-8")
        data = data.model_copy(update={"validation": ref(path, path.name), "validation_rows": held})
    if cpt is not None:
        path = work / "inputs" / "stage-1-cpt.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
        values = {**SETTINGS, **settings, **cpt, "kind": "cpt", "data": ref(path, path.name), "rows": len(TEXTS)}
        stages.insert(0, Stage(**values))
    spec = spec.model_copy(update={"data": data, "stages": tuple(stages)})
    (work / "spec.json").write_bytes(spec.canonical())
    return work
