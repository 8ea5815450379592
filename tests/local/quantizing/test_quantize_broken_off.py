"""A build that is killed, interrupted or crashes leaves no version, no debris and no child."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock

from cloudft.errors import Busy, CloudftError, EnvironmentProblem
from local.project import Project, RunFolder
from local.quantizing.quantize import quantize_run
from local.serving.versions import current, list_versions
from tests.local.quantize_fixtures import (
    PROMPT,
    Quantised,
    is_worker,
    logits,
    made,
    merged_logits,
    no_progress,
    nothing_left,
    quantised,
    relative_error,
    tiny_adapter,
    tiny_base,
)

__all__ = ["made", "quantised", "tiny_adapter", "tiny_base"]


def test_a_killed_build_leaves_debris_that_the_next_one_removes(
    made: tuple[Project, RunFolder], tiny_base: Path, tiny_adapter: Path
) -> None:
    """kill -9 in the middle: the child ends by itself, nothing is a version, and the next build starts clean.

    The next build is also the one that shows that 16 bits lose nothing of the merge.
    """
    project, run = made
    code = (
        "import sys; from pathlib import Path; from local.project import Project, RunFolder\n"
        "from local.quantizing.quantize import quantize_run\n"
        "def say(what, *a, **k): print(what, flush=True)\n"
        "quantize_run(Project(Path(sys.argv[1])), RunFolder(Path(sys.argv[2])), progress=say)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(project.root), str(run.root)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert parent.stdout is not None
    assert any(line.startswith("merge") for line in parent.stdout)
    (child,) = (c for c in psutil.Process(parent.pid).children(recursive=True) if is_worker(c))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _, alive = psutil.wait_procs([child], timeout=60)
    assert alive == []
    assert list(project.models.glob(".building-*"))
    assert list_versions(project) == []
    version = quantize_run(project, run, type="f16", progress=no_progress)
    assert not list(project.models.glob(".building-*"))
    assert current(project) == version
    wanted = merged_logits(tiny_base, tiny_adapter, PROMPT)
    assert relative_error(logits(version.gguf, PROMPT)[:, : wanted.shape[1]], wanted) < 0.02


@pytest.mark.parametrize("stage", ["check base", "merge", "verify"])
def test_ctrl_c_leaves_nothing(made: tuple[Project, RunFolder], stage: str) -> None:
    project, run = made

    def interrupt(what: str, *_: Any, **__: Any) -> None:
        if what == stage:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)  # the interrupt arrives here

    with pytest.raises(KeyboardInterrupt):
        quantize_run(project, run, progress=interrupt)
    nothing_left(project)


@pytest.mark.parametrize(
    ("signal_", "error", "says"),
    [
        (signal.SIGKILL, EnvironmentProblem, "out of memory"),
        (signal.SIGSEGV, CloudftError, r"(merge|convert): .*SIGSEGV"),
    ],
)
def test_a_crash_in_native_code_is_an_error(
    made: tuple[Project, RunFolder], signal_: signal.Signals, error: type[CloudftError], says: str
) -> None:
    project, run = made

    def crash(what: str, *_: Any, **__: Any) -> None:
        if what == "merge":
            for child in psutil.Process().children():
                if is_worker(child):
                    child.send_signal(signal_)

    with pytest.raises(error, match=says):
        quantize_run(project, run, progress=crash)
    nothing_left(project)


def test_what_a_child_says_while_it_ends_is_not_read_as_an_answer(tmp_path: Path) -> None:
    from local.quantizing.worker import _listen

    said = '{"progress": {"what": "merge", "done": 0, "total": null, "unit": "", "note": ""}}\n{"result": {"a'
    child = subprocess.Popen(["printf", "%s", said], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child, pytest.raises(CloudftError, match="merge: the process ended with code 0"):
        _listen(child, no_progress, tmp_path / "log")


@pytest.mark.parametrize(
    ("cause", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (MemoryError(), "ran out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "ran out of memory"),
        (KeyError("x"), "not foreseen: KeyError"),
    ],
)
def test_what_ends_a_child_is_said_in_words(cause: Exception, says: str) -> None:
    from local.quantizing.convert_worker import _translated

    assert says in _translated(cause).what


def test_two_builds_do_not_mix(made: tuple[Project, RunFolder]) -> None:
    project, run = made
    project.models.mkdir()
    with FileLock(project.models / ".lock"), pytest.raises(Busy, match="another model is being built"):
        quantize_run(project, run, progress=no_progress)


def test_a_damaged_version_is_made_again(quantised: Quantised, tmp_path: Path) -> None:
    shutil.copytree(quantised.project.root, tmp_path / "copy", symlinks=True)
    project = Project(tmp_path / "copy")
    damaged = project.models / quantised.version.name / "model.gguf"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    again = quantize_run(project, project.run("run-1"), progress=no_progress)
    assert again.name == quantised.version.name
    assert again.gguf.read_bytes() == quantised.version.gguf.read_bytes()  # the same inputs give the same bytes
