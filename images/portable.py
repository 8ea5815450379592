"""Dockerfile.train for builders that are not Docker's: the same image from fewer kinds of instruction.

Modal's builder is one of its own. By public reports it knows no LABEL and no STOPSIGNAL, which say nothing to it
anyway; and an argument before FROM, which ours has for the base, is not relied upon.
"""

from __future__ import annotations

import re

_BASE = re.compile(r"^ARG BASE_IMAGE=.*\nFROM \$\{BASE_IMAGE\}$", re.MULTILINE)
# With the lines that a backslash continues.
_MUTE = re.compile(r"^(?:LABEL|STOPSIGNAL) (?:.*\\\n)*.*\n", re.MULTILINE)


def portable(dockerfile: str, base: str) -> str:
    """The Dockerfile ``FROM base``, without what other builders do not know."""
    text, found = _BASE.subn(f"FROM {base}", dockerfile)
    assert found == 1, "Dockerfile.train begins otherwise than this expects"
    return _MUTE.sub("", text)
