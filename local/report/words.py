"""Numbers and texts as a reader meets them, and the escaping that keeps a model's answer from becoming markup."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, datetime
from typing import Any, Final

from local.files import human_bytes

MISSING: Final = "not known"

# CommonMark: a backslash before ASCII punctuation makes it plain text.
_SPECIAL: Final = re.compile(r"[\\`*{}\[\]<>#|~&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=[A-Za-z]):(?=//)")
# GitHub makes links of these without being asked; list items and headings begin with the others.
_WWW: Final = re.compile(r"(?i)\bwww(?=\.)")
_BEGINS: Final = re.compile(r"^()([-+](?=\s|$)|-(?=[-\s]*$)|=(?==*$)|\d+[.)](?=\s|$))")


class Raw(str):
    """Text that is Markdown already: the renderer leaves it alone."""

    __slots__ = ()


def plain(text: object) -> Raw:
    """One line of text as Markdown that shows it as it is, wherever it stands: paragraph, list item or table cell."""
    line = " ".join(str(text).split())
    line = _SPECIAL.sub(lambda found: "\\" + found.group(), line)
    line = _WWW.sub(lambda found: found.group() + "\\", line)
    return Raw(_BEGINS.sub(lambda found: found.group(1) + found.group(2)[:-1] + "\\" + found.group(2)[-1], line))


def code(text: object) -> Raw:
    """One line as a code span that nothing inside can end. Not for a table's cell: see ``cell_code``."""
    line = " ".join(str(text).split()) or " "
    ticks = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    gap = " " if line.startswith("`") or line.endswith("`") else ""
    return Raw(f"{ticks}{gap}{line}{gap}{ticks}")


def cell_code(text: object) -> Raw:
    """A code span in a table's cell, where a bar would end the cell even inside of code."""
    return Raw(code(text).replace("|", "\\|"))


def fence(text: object, language: str = "text") -> Raw:
    """A block of code that nothing inside can end."""
    body = str(text)
    ticks = "`" * max(3, max((len(run) for run in re.findall("`+", body)), default=0) + 1)
    return Raw(f"{ticks}{language}\n{body}\n{ticks}")


def clip(text: object, limit: int = 600) -> str:
    """At most so many characters; what is cut is shown as cut."""
    whole = str(text)
    return whole if len(whole) <= limit else whole[: limit - 1].rstrip() + "…"


def sentence(text: str) -> str:
    """With a capital letter and a full stop."""
    return text[:1].upper() + text[1:].rstrip(".") + "."


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def points(change: float) -> str:
    """A difference of two shares, in percentage points."""
    return f"{100 * change:+.1f}".replace("-", "−") + " points"


def number(value: float) -> str:
    """A number with as many digits as mean something."""
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:.4g}"


def money(usd: float) -> str:
    """Dollars; a sum below a cent is not rounded to nothing."""
    return f"${usd:.4f}" if 0 < usd < 0.01 else f"${usd:,.2f}"


def seconds(value: float) -> str:
    whole = round(max(value, 0))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    if minutes:
        return f"{minutes} min {rest:02d} s" if rest else f"{minutes} min"
    return f"{value:.1f} s" if 0 < value < 10 else f"{rest} s"


def moment(epoch: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(epoch))


def day(epoch: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(epoch))


def epoch(iso: str) -> float:
    """Seconds since the epoch of an ISO time; UTC where it names no zone."""
    parsed = datetime.fromisoformat(iso)
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def shown(value: Any) -> str:
    """A setting's value as it would stand in YAML, on one line."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(shown(item) for item in value) or "none"
    if value is None:
        return "none"
    return json.dumps(value, ensure_ascii=False)


size = human_bytes
