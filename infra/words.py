"""A vendor's words, made fit for a message of ours."""

from __future__ import annotations

from collections.abc import Collection


def clean(text: str, secrets: Collection[str]) -> str:
    """A text of the service, fit for a message: on one line, not too long, and without what must stay secret."""
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "***")
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= 500 else f"{text[:500]}…"
