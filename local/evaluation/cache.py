"""Answers that were given already, by content: the same model, asked the same, answers the same.

One file per answer, whole or absent, under ``.cloudft/cache/answers-v1``; the folder may be deleted at any time.
Requests that failed are never kept. What nobody has used for ``UNUSED`` goes, so that the folder does not grow for
ever. Bump the number in the name whenever an answer would be read otherwise.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from local.evaluation.endpoint import Reply
from local.files import write_text

FOLDER = "answers-v1"
_TEMPLATE: Mapping[str, Any] = {"what": "the chat template"}
A_DAY = 24 * 3600.0
"""How long the answers of an endpoint are good, behind whose name another model may stand tomorrow."""
UNUSED = 90 * A_DAY


def canonical(value: Any) -> bytes:
    """JSON that is the same for the same value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True)
class AnswerCache:
    """The answers of one model.

    Args:
        root: the project's folder for caches.
        identity: all that decides about an answer besides the request: the model file's sha256, the engine and its
            version, the chat template. For an endpoint without a file, its address and the model's name.
        longest: seconds that an answer is good; None: for ever.
    """

    root: Path
    identity: Mapping[str, Any]
    longest: float | None = None

    def get(self, request: Mapping[str, Any]) -> Reply | None:
        """The answer to a request, if it was given. A damaged file is no answer, and will be replaced."""
        path = self._path(request)
        try:
            if self.longest is not None and time.time() - path.stat().st_mtime > self.longest:
                return None
            found = json.loads(path.read_bytes())
            reply = Reply(**{**found, "tool_calls": tuple(found["tool_calls"])})
            if self.longest is None:  # else its age counts, not its use
                os.utime(path)
            return reply
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def put(self, request: Mapping[str, Any], reply: Reply) -> None:
        write_text(self._path(request), json.dumps(asdict(reply)))

    def template(self) -> tuple[str, str] | None:
        """The chat template that the answers were given with: whether "own" or "given", and its sha256."""
        try:
            source, sha256 = json.loads(self._path(_TEMPLATE).read_bytes())
            os.utime(self._path(_TEMPLATE))
            return str(source), str(sha256)
        except (OSError, ValueError, TypeError):
            return None

    def put_template(self, source: str, sha256: str) -> None:
        write_text(self._path(_TEMPLATE), json.dumps([source, sha256]))

    def _path(self, request: Mapping[str, Any]) -> Path:
        key = hashlib.sha256(canonical([self.identity, request])).hexdigest()
        return self.root / FOLDER / key[:2] / f"{key}.json"


def prune(root: Path, unused: float = UNUSED) -> int:
    """Remove the answers that were not used for ``unused`` seconds, and all of other formats; returns how many.

    Args:
        root: the project's folder for caches.
    """
    oldest, gone = time.time() - unused, 0
    for path in (*root.glob("answers-*/*/*.json"), *root.glob("lm-eval/*")):
        with contextlib.suppress(OSError):  # another evaluation prunes too
            other = path.suffix == ".json" and path.parts[-3] != FOLDER
            if other or path.stat().st_mtime < oldest:
                path.unlink()
                gone += 1
    return gone
