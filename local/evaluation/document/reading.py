"""Reading what an evaluation wrote, with errors that say how to get it again."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from cloudft.errors import IntegrityError, NotFound
from local.project import RunFolder


def read_bytes(run: RunFolder, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as exc:
        raise NotFound(
            f"{path} is not there: run {run.run_id} was not evaluated", hint=f"measure it:  cloudft eval {run.run_id}"
        ) from exc
    except OSError as exc:
        raise IntegrityError(f"{path} cannot be read: {exc.strerror}") from exc


def first_problem(exc: Exception) -> str:
    """The first thing that is wrong, in one line."""
    if isinstance(exc, ValidationError):
        error = exc.errors()[0]
        return f"{'.'.join(str(part) for part in error['loc'])}: {error['msg']}"
    return f"it lacks {exc}" if isinstance(exc, KeyError) else str(exc)
