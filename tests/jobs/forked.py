"""Several trainings for the price of one import: each is forked from a process that has the libraries already.

    python tests/jobs/forked.py PLAN.json

``PLAN.json`` is a list of ``{"argv", "log", "hook"}``: what ``jobs.train`` is told (``now+9`` is the epoch 9 seconds
after its start), where its output goes, and the name of a function of ``tests.jobs.hooks`` that is called first, or "".
The exit codes come out as one line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Training:
    """One of them: its work folder, the trainer's other options, and a hook of ``tests.jobs.hooks``."""

    work: Path
    options: tuple[str, ...] = ()
    hook: str = ""

    @property
    def log(self) -> Path:
        return self.work / "log"


def run_all(trainings: list[Training]) -> list[int]:
    """Run them in turn; their exit codes."""
    plan = trainings[0].work.parent / "plan.json"
    plan.write_text(
        json.dumps(
            [{"argv": ["--work", str(t.work), *t.options], "log": str(t.log), "hook": t.hook} for t in trainings]
        )
    )
    done = subprocess.run(
        [sys.executable, __file__, str(plan)],
        env={**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    codes: list[int] = json.loads(done.stdout.splitlines()[-1])
    return codes


def _forked(argv: list[str], log: str, hook: str) -> int:
    from jobs import train

    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        if hook:
            import tests.jobs.hooks

            getattr(tests.jobs.hooks, hook)()
        now = time.time()
        code = train.main([str(now + float(each[4:])) if each.startswith("now+") else each for each in argv])
    except BaseException:
        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    os._exit(code)


def main(plan: Path) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import jobs.guide
    import jobs.trainers  # noqa: F401

    print(json.dumps([_forked(**each) for each in json.loads(plan.read_text())]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
