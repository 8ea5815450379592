"""What earlier runs measured on the cards that they rented: it corrects the next run's estimate.

One small file for all projects of this user, since a card's speed is no project's: ``speeds.json`` in ``CLOUDFT_DATA``,
or in ``cloudft`` of ``XDG_DATA_HOME``, or in ``~/.local/share/cloudft``. It is safe to delete; estimates grow wider.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import Field, ValidationError

from jobs.backends import Backend
from jobs.progress import stage_name
from jobs.spec import Frozen, RunSpec, Stage
from local.files import write_json
from local.planning.shape import Shape
from local.runs.phases import BOOT, DOWNLOAD, START, phases_of
from local.runs.records import RunRecord

KEEP = 200
# Fewer steps say more of the start than of the speed.
LEAST_STEPS = 10
WARM_SHARE = 0.1


class Speed(Frozen):
    """One attempt's speed on its card, and the training that had it.

    ``seconds`` for one pass over ``tokens`` (padding not counted) in ``rows`` rows on each of ``cards`` cards;
    ``checkpointing`` is None where the machine decided about it. ``peak_bytes`` of memory were in use on one card;
    ``before`` are the seconds from the machine's creation to the first step; None where nobody looked. ``shape`` is
    that of the base.
    """

    run_id: str
    attempt: int
    at: float
    provider: str
    gpu: str
    cards: int = Field(gt=0)
    base: str
    shape: Shape
    backend: Backend = "trl"
    method: str
    rank: int
    rows: int
    length: int
    wide: bool
    checkpointing: bool | None = None
    tokens: float = Field(gt=0, allow_inf_nan=False)
    seconds: float = Field(gt=0, allow_inf_nan=False)
    peak_bytes: float | None = None
    before: float | None = None

    @property
    def tokens_per_second(self) -> float:
        return self.tokens * self.cards / self.seconds


def table_path() -> Path:
    """Where the table lies; it need not exist."""
    own = os.environ.get("CLOUDFT_DATA")
    if own:
        return Path(own).expanduser() / "speeds.json"
    shared = os.environ.get("XDG_DATA_HOME")
    return (Path(shared) if shared else Path.home() / ".local" / "share") / "cloudft" / "speeds.json"


def read_speeds(path: Path | None = None) -> tuple[Speed, ...]:
    """All that was measured, oldest first. A file that cannot be read is none: it only corrects estimates."""
    try:
        rows = json.loads((path or table_path()).read_text(encoding="utf-8"))["speeds"]
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    speeds = []
    for row in rows if isinstance(rows, list) else []:
        try:
            speeds.append(Speed.model_validate(row))
        except ValidationError:  # of another version
            continue
    return tuple(speeds)


def keep_speed(speed: Speed, path: Path | None = None) -> None:
    """Add one; the same attempt's takes the place of what was known of it. A folder that can't be written is let be."""
    path = path or table_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock"), timeout=10):
            known = [s for s in read_speeds(path) if (s.run_id, s.attempt) != (speed.run_id, speed.attempt)]
            write_json(path, {"speeds": [s.model_dump(mode="json") for s in [*known, speed][-KEEP:]]})
    except (OSError, Timeout):
        return


def steady(lines: Sequence[dict[str, Any]], first_step: int = 0) -> tuple[float, float] | None:
    """Seconds and tokens of one optimiser step, from the lines of ``metrics.jsonl`` behind ``first_step``.

    The first steps of a machine, in which kernels are chosen and memory is found, stay out. None: too few are left.
    """
    steps = [line for line in lines if "loss" in line and line.get("step", 0) > first_step]
    steps = steps[max(1, round(len(steps) * WARM_SHARE)) :]
    if len(steps) < LEAST_STEPS:
        return None
    begin, end = steps[0], steps[-1]
    count = end["step"] - begin["step"]
    seconds, tokens = end["elapsed_s"] - begin["elapsed_s"], end["tokens"] - begin["tokens"]
    return (seconds / count, tokens / count) if count > 0 and seconds > 0 and tokens > 0 else None


def speed_of(
    record: RunRecord, spec: RunSpec, shape: Shape, lines: Sequence[dict[str, Any]], told: dict[str, Any]
) -> Speed | None:
    """What a run's last attempt measured, in the first of its stages that took long enough; None if none did.

    Args:
        shape: of the base.
        lines: of its ``metrics.jsonl``.
        told: the machine's own account (outcome, result or heartbeat): the card's name, the memory, the phases.
    """
    if not record.attempts:
        return None
    attempt = record.attempt
    gpu: dict[str, Any] = told.get("gpu") or {}
    found = _steady_stage(spec, lines, int(told.get("resumed_from") or 0))
    name = gpu_name(attempt.offer.name, gpu)
    if found is None or not name:
        return None
    stage, step = found
    passes = stage.gradient_accumulation
    return Speed(
        run_id=record.run_id,
        attempt=attempt.number,
        at=time.time(),
        provider=attempt.offer.provider,
        gpu=name,
        cards=attempt.offer.count,
        base=spec.base.id,
        shape=shape,
        backend=spec.backend,
        method=stage.method,
        rank=stage.lora_r or 0,
        rows=stage.batch_size * (2 if stage.kind == "dpo" else 1),
        length=stage.max_length,
        checkpointing=stage.activation_checkpointing,
        wide=stage.dtype == "float32",
        seconds=step[0] / passes,
        tokens=step[1] / passes / attempt.offer.count,
        # Of several stages nobody knows whose it was.
        peak_bytes=gpu.get("peak_memory_bytes") if len(spec.stages) == 1 else None,
        before=_before(attempt.created_at, told),
    )


def _steady_stage(
    spec: RunSpec, lines: Sequence[dict[str, Any]], first_step: int
) -> tuple[Stage, tuple[float, float]] | None:
    """A stage with what ``steady`` says of its own steps: stages have other rows, and the gate measures between."""
    for number, stage in enumerate(spec.stages):
        name = stage_name(spec, number)
        if step := steady([line for line in lines if line.get("stage") == name], first_step):
            return stage, step
    return None


def gpu_name(offer: str, gpu: dict[str, Any]) -> str:
    """What we call a card: by the name that its own driver tells, else by the offer's; "" for none that is known."""
    from infra.gpus import find_gpu

    for name in (str(gpu.get("name", "")), offer.partition(":")[0]):
        known = find_gpu(name) or find_gpu(name.removeprefix("NVIDIA ").removeprefix("Tesla "))
        if known:
            return known.name
    return ""


def _before(created_at: float, told: dict[str, Any]) -> float | None:
    """Seconds from the order to the first step, but for the gate's measurements, which are estimated on their own."""
    if not (told.get("trainer") or {}).get("phases"):
        return None
    phases = phases_of(created_at, told)
    return math.fsum(phases.get(name, 0.0) for name in (BOOT, DOWNLOAD, START))


def relevant(speeds: Iterable[Speed], gpu: str, cards: int) -> list[Speed]:
    """Those of this card, newest first."""
    return sorted((s for s in speeds if s.gpu == gpu and s.cards == cards), key=lambda s: -s.at)
