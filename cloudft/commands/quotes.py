"""The table of offers, as `cloudft offers` and `cloudft submit` print it."""

from __future__ import annotations

from time import gmtime, strftime
from typing import TYPE_CHECKING

from cloudft.commands.common import duration

if TYPE_CHECKING:
    from local.quote import Line, Quote


def quote_table(quoted: Quote) -> str:
    """Every offer that matches, in the order in which it would be tried; empty where nothing is rented."""
    if not quoted.lines:
        return ""
    head = ("GPU", "VRAM", "$/h", "stock", "time and cost", "ends at the latest", "worst case", "")
    rows = [head, *(_row(line) for line in quoted.lines)]
    if quoted.provider == "auto":
        whose = ("provider", *(line.offer.provider for line in quoted.lines))
        rows = [(name, *row) for name, row in zip(whose, rows, strict=True)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    table = "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
    unasked = "".join(f"\nnot asked: {name}: {why}" for name, why in quoted.unasked)
    return f"{table}{unasked}\nrule: {quoted.rule}\n{_basis(quoted)}".rstrip()


def _row(line: Line) -> tuple[str, ...]:
    offer = line.offer
    name = " ".join(filter(None, (offer.name, offer.cloud.lower(), "spot" if offer.spot else "")))
    end = strftime("%m-%d %H:%M UTC", gmtime(line.latest_end)) if line.latest_end else "-"
    worst = f"${line.worst_case_usd:.2f}" if line.latest_end else "too dear" if line.refusal else "-"
    return name, f"{offer.memory_gb} GB", f"{offer.rate_usd:.2f}", line.stock, _guess(line), end, worst, offer.why


def _guess(line: Line) -> str:
    guess = line.estimate
    if guess is None:
        return "unknown"
    rate = line.offer.rate_usd / 3600
    return (
        f"{duration(guess.least_seconds)} to {duration(guess.most_seconds)}, "
        f"${guess.least_seconds * rate:.2f} to ${guess.most_seconds * rate:.2f}"
    )


def _basis(quoted: Quote) -> str:
    guess = next((line.estimate for line in quoted.lines if line.estimate), None)
    return f"time and cost are estimates: {guess.basis}; the worst case is the cap" if guess else ""
