"""Runs the heavy work at home (merge, convert, quantise, verify) in a child process and listens to it.

A child, because a crash in native code must be an error and not the end of the command line, because its memory is
given back for sure, and because an already imported ``gguf`` would shadow the converter's own. It ends when this
process ends, however that ends: it watches its standard input.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from cloudft import errors
from cloudft.errors import CloudftError, EnvironmentProblem, VerifyError
from local.progress import Progress

SCRIPT = Path(__file__).with_name("convert_worker.py")
UNCHANGED = "no version was made or changed; run and adapter are untouched"


def run_worker(job: str, arguments: dict[str, Any], folder: Path, progress: Progress) -> dict[str, Any]:
    """Do one of the jobs of ``convert_worker`` in a child process.

    Args:
        job: name of the job.
        arguments: its keyword arguments, as JSON can carry them.
        folder: an existing folder for the job's file and its log.

    Returns:
        What the job returned.

    Raises:
        CloudftError: whichever the job raised; one that names the stage when the child crashed or was killed.
    """
    job_file = folder / "job.json"
    job_file.write_text(json.dumps({"job": job, "arguments": arguments}), encoding="utf-8")
    log = folder / "worker.log"
    with log.open("wb") as err:
        # A session of its own: Ctrl-C reaches this process alone, which then ends the child.
        child = subprocess.Popen(
            [sys.executable, "-P", str(SCRIPT), str(job_file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=err,
            env=_environment(),
            start_new_session=True,
        )
        try:
            return _listen(child, progress, log)
        finally:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()


def _environment() -> dict[str, str]:
    """The child has every file that it needs, so it may not go looking for others."""
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONIOENCODING": "utf-8",
    }


def _listen(child: subprocess.Popen[bytes], progress: Progress, log: Path) -> dict[str, Any]:
    stage = "start"
    assert child.stdout is not None  # it was asked for as a pipe
    for line in child.stdout:
        if not line.endswith(b"\n"):
            break  # it was ended while it spoke
        event = json.loads(line)
        if "progress" in event:
            stage = event["progress"]["what"]
            progress(**event["progress"])
        elif "error" in event:
            raise _error(event["error"]) from RuntimeError(_tail(log))
        elif "result" in event:
            result: dict[str, Any] = event["result"]
            return result
    raise _crash(stage, child.wait()) from RuntimeError(_tail(log))


def _error(event: dict[str, str]) -> CloudftError:
    kind = getattr(errors, event["error"], CloudftError)
    error: CloudftError = kind(event["what"], effect=event["effect"] or UNCHANGED, hint=event["hint"])
    return error


def _crash(stage: str, code: int) -> CloudftError:
    """The child ended without a word: out of memory, or a crash in native code."""
    if code == -signal.SIGKILL:
        return EnvironmentProblem(
            f"{stage}: the process was killed, most likely because this computer ran out of memory",
            effect=UNCHANGED,
            hint="close other programs or use a computer with more memory, then type the same command again",
        )
    how = f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"
    kind = VerifyError if stage.startswith("verify") else CloudftError
    return kind(f"{stage}: the process {how}", effect=UNCHANGED, hint="CLOUDFT_DEBUG=1 shows its last words")


def _tail(log: Path, lines: int = 30) -> str:
    try:
        return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
