"""The table of offers, as `cloudft offers` and `cloudft submit` print it."""

from __future__ import annotations

from collections.abc import Iterator
from time import gmtime, strftime
from typing import TYPE_CHECKING

from cloudft.commands.common import duration

if TYPE_CHECKING:
    from local.planning.quote import Line, Quote


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
    parts = [table, *_made_of(quoted), *_unasked(quoted), f"rule: {quoted.rule}", _build(quoted), _basis(quoted)]
    return "\n".join(filter(None, parts))


def _made_of(quoted: Quote) -> Iterator[str]:
    """What the price of the first offer of each provider is made of, and of each whose price is not told."""
    told = set()
    for line in quoted.lines:
        offer = line.offer
        if line.made_of and (offer.provider not in told or "does not tell" in line.made_of):
            told.add(offer.provider)
            yield f"price: {offer.provider} {offer.name}: {line.made_of}"


def _unasked(quoted: Quote) -> Iterator[str]:
    yield from (f"not asked: {name}: {why}" for name, why in quoted.unasked)


def _build(quoted: Quote) -> str:
    """The image that a submit begins with, where a provider makes it."""
    if quoted.ahead is None:
        return ""
    name, most = quoted.ahead.provider.capitalize(), quoted.ahead.charge.committed()
    return (
        f"image: none is set, so {name} builds it at submit, some minutes the first time and then never again; whether "
        f"it bills them is not told, so ${most:.2f} at most is kept for it, and is in the worst case"
    )


def _row(line: Line) -> tuple[str, ...]:
    offer = line.offer
    name = " ".join(filter(None, (offer.name, offer.cloud.lower(), "spot" if offer.spot else "")))
    end = strftime("%m-%d %H:%M UTC", gmtime(line.latest_end)) if line.latest_end else "-"
    refused = "too dear" if line.would_do is not None else "no image" if line.refusal else "-"
    refused = "too small" if line.too_small else refused
    worst = f"${line.worst_case_usd:.2f}" if line.latest_end else refused
    card = f"{offer.memory_gb} GB" + (" (tight)" if line.tight else "")
    return name, card, f"{offer.rate_usd:.2f}", line.stock, _guess(line), end, worst, offer.why


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
    """What the ranges rest on: the same for all offers, but for what was measured on a card."""
    lines = [memory_line(quoted)] if quoted.memory else []
    bases = dict.fromkeys(line.estimate.basis for line in quoted.lines if line.estimate)
    lines += [f"time and cost are estimates: {basis}; the worst case is the cap" for basis in list(bases)[:1]]
    lines += [f"  and {basis.rpartition(', ')[2]}" for basis in list(bases)[1:] if "measured in run" in basis]
    return "\n".join(lines)


def memory_line(quoted: Quote) -> str:
    """``memory on the card: 9.8 to 12.4 GB (weights 5.4, …)``: the range, and the parts of its middle."""
    assert quoted.memory is not None
    need = quoted.memory
    parts = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in need.parts.items())
    return f"memory on each card: {need.least / 1e9:.1f} to {need.most / 1e9:.1f} GB ({parts})"
