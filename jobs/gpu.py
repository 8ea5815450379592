"""How busy the machine's GPUs are, as NVIDIA's own tool tells it. Standard library only; no GPU, no word."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass, field
from typing import Any

QUERY = ("name", "utilization.gpu", "memory.used", "memory.total", "power.draw")
MIB = 1 << 20
# A driver that hangs must not hold up the heartbeat for long.
TIMEOUT = 5.0


@dataclass
class GpuWatch:
    """Samples, and what they come to. Utilisation in percent, memory in bytes, power in watts, over all cards.

    ``utilisation`` of the last sample is the mean of the cards; ``peak_memory_bytes`` the most on one card so far.
    """

    tool: str = "nvidia-smi"
    last: dict[str, Any] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    samples: int = 0
    busy_sum: float = 0.0

    def sample(self) -> dict[str, Any]:
        """Look once; the same as ``report``."""
        cards = self._ask()
        if cards:
            busy = [card["utilisation"] for card in cards if card["utilisation"] is not None]
            used = [card["memory_bytes"] for card in cards if card["memory_bytes"] is not None]
            self.peak_memory_bytes = max(self.peak_memory_bytes, *used, 0)
            utilisation = sum(busy) / len(busy) if busy else None
            if utilisation is not None:
                self.samples, self.busy_sum = self.samples + 1, self.busy_sum + utilisation
            self.last = {
                "name": cards[0]["name"],
                "cards": len(cards),
                "utilisation": utilisation,
                "memory_bytes": max(used, default=None),
                "memory_total_bytes": cards[0]["memory_total_bytes"],
                "power_watts": sum(card["power_watts"] or 0.0 for card in cards) or None,
            }
        return self.report()

    def report(self) -> dict[str, Any]:
        """The last sample with the peak and the mean so far; {} where there is no GPU."""
        if not self.last:
            return {}
        mean = self.busy_sum / self.samples if self.samples else None
        return {**self.last, "peak_memory_bytes": self.peak_memory_bytes or None, "mean_utilisation": mean}

    def _ask(self) -> list[dict[str, Any]]:
        tool = shutil.which(self.tool)
        if tool is None:
            return []
        command = [tool, f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
        try:
            told = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.TimeoutExpired):
            return []
        if told.returncode != 0:
            return []
        rows = [[cell.strip() for cell in line.split(",")] for line in told.stdout.splitlines()]
        return [_card(row) for row in rows if len(row) == len(QUERY)]


def _card(row: list[str]) -> dict[str, Any]:
    """One line of the tool; what a card does not tell ("[N/A]") is None."""
    name, busy, used, total, power = row
    memory, whole = _number(used), _number(total)
    return {
        "name": name,
        "utilisation": _number(busy),
        "memory_bytes": None if memory is None else int(memory * MIB),
        "memory_total_bytes": None if whole is None else int(whole * MIB),
        "power_watts": _number(power),
    }


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
