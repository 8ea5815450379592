"""The loss so far in a few points, small enough to travel with every heartbeat. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

POINTS = 60


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``; one that is being written is left out."""
    try:
        return parse_lines(path.read_bytes())
    except OSError:
        return []


def parse_lines(raw: bytes) -> list[dict[str, Any]]:
    """The same, of what came from elsewhere."""
    lines = []
    for line in raw.decode(errors="replace").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            lines.append(value)
    return lines


def curve(lines: Sequence[dict[str, Any]], points: int = POINTS) -> list[float]:
    """Training losses, in order, each the mean of as many steps as it stands for; ``points`` of them at most."""
    losses = [float(line["loss"]) for line in lines if isinstance(line.get("loss"), int | float)]
    if len(losses) <= points:
        return [round(loss, 5) for loss in losses]
    edges = [round(i * len(losses) / points) for i in range(points + 1)]
    groups = [losses[a:b] for a, b in pairwise(edges)]
    return [round(sum(group) / len(group), 5) for group in groups]
