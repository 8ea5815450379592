"""Dockerfile.train for builders that are not Docker's: the same image from fewer kinds of instruction.

Modal's builder is one of its own. By public reports it knows no LABEL and no STOPSIGNAL, which say nothing to it
anyway; and an argument before FROM, which ours has for the base, is not relied upon, nor is one in a COPY.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_BASE = re.compile(r"^ARG BASE_IMAGE=.*\nFROM \$\{BASE_IMAGE\}$", re.MULTILINE)
# With the lines that a backslash continues.
_MUTE = re.compile(r"^(?:LABEL|STOPSIGNAL) (?:.*\\\n)*.*\n", re.MULTILINE)


def portable(dockerfile: str, base: str, args: Mapping[str, str]) -> str:
    """The Dockerfile ``FROM base`` with ``args`` filled in, without what other builders do not know."""
    text, found = _BASE.subn(f"FROM {base}", dockerfile)
    assert found == 1, "Dockerfile.train begins otherwise than this expects"
    for name, value in args.items():
        text = re.sub(rf"^ARG {name}=.*\n", "", text, flags=re.MULTILINE).replace(f"${{{name}}}", value)
    return _MUTE.sub("", text)
