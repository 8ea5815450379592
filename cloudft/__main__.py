"""The entry point: guards our packages, runs the command line, and turns errors into messages and exit codes."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType


def _guard_imports() -> None:
    """Put our own root first on ``sys.path``.

    The package names are general: a user's ``infra/`` or ``jobs/`` in the working folder or on PYTHONPATH must
    not be imported in place of ours.
    """
    root = str(Path(__file__).resolve().parent.parent)
    sys.path[:] = [root, *(p for p in sys.path if p != root)]


def _terminated(number: int, frame: FrameType | None) -> None:
    """A closed terminal or a polite kill ends like Ctrl-C: children are stopped, temporary files removed."""
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line; never shows a traceback unless CLOUDFT_DEBUG=1."""
    _guard_imports()
    from cloudft.cli import run

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminated)
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # `cloudft logs | head`: nobody reads any more, and that is no error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


if __name__ == "__main__":
    main()
