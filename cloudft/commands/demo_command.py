"""``cloudft demo``: the user's own commands, one after the other, on a tiny model made here."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cloudft.commands.common import cloudft_command, if_interrupted
from cloudft.commands.eval_command import evaluation_text
from cloudft.errors import CloudftError, Interrupted
from cloudft.output import Output

if TYPE_CHECKING:
    from local.project import Project

COMMANDS = ("submit", "pull", "quantize", "eval")


@cloudft_command("demo")
def command(out: Output, directory: Path) -> None:
    """Run the whole path on this computer, with a tiny model: no account, no GPU, no network.

    Makes a project in the folder given with -C (default: the present one), trains on support tickets, brings the
    adapter home, quantises, and shows before and after. Costs nothing and takes a few minutes.
    """
    from local.demo.demo_project import write_demo_project
    from local.scaffold import write_serving_files

    again = f"cloudft demo -C {shlex.quote(str(directory))}"
    kept = "what was made so far is kept, a training that has begun goes on by itself, and the next demo is quicker"
    with if_interrupted("interrupted", kept, again):
        with out.progress() as progress:
            project = write_demo_project(directory, progress)
        write_serving_files(project.root)
        out.note(f"a project in {project.root}: a tiny base model, support tickets, and cloudft.yaml")
        for name in _needed(project):
            _run(name, project, out)
        _show(project, out)


def _needed(project: Project) -> tuple[str, ...]:
    """All commands; without the submit if an interrupted demo left its run training."""
    from cloudft.commands.common import open_run

    unfinished = project.run_ids() and not open_run(project.root, None).observe().ended
    return COMMANDS[1:] if unfinished else COMMANDS


def _run(name: str, project: Project, out: Output) -> None:
    """Run one command the way the user would, in the project's folder; its output is shown as it comes."""
    out.note(f"\n$ cloudft {name}")
    # The demo's standard output is for its own result; what the commands say is shown beside it.
    done = subprocess.run(
        [sys.executable, "-m", "cloudft", name],
        cwd=project.root,
        stdout=subprocess.DEVNULL if out.as_json else sys.stderr,
        stderr=subprocess.DEVNULL if out.as_json else None,
    )
    if done.returncode == Interrupted.exit_code:
        raise KeyboardInterrupt
    if done.returncode != 0:
        error = CloudftError(f"the demo ended at `cloudft {name}`", effect="nothing was rented, and nothing is lost")
        error.exit_code = done.returncode
        raise error


def _show(project: Project, out: Output) -> None:
    from local.demo.question import ask_served
    from local.evaluation.document.eval_json import read_document

    out.note("\n$ cloudft serve")
    example = ask_served(project)
    run = project.pick_run(None)
    found = read_document(run)
    asked = f"question  {example.question}\nanswer    {example.answer}   (expected: {example.expected})"
    report = run.report / "report.html"
    text = f"\n{evaluation_text(found)}\n\n{asked}\n\nreport    {report}"
    data = {
        "project": str(project.root),
        "run_id": run.run_id,
        "n": found.n,
        "before": found.before,
        "after": found.after,
        "example": {"question": example.question, "answer": example.answer, "expected": example.expected},
        "report": str(report),
    }
    out.result(data, text)
    out.next_commands(
        *_reachable(),
        f"cd {shlex.quote(str(project.root))}",
        "cloudft serve",
        "cloudft status",
        "cloudft init -C my-project",
    )


def _reachable() -> tuple[str, ...]:
    """What makes the shell find ``cloudft``, where it does not: ``make demo`` installs it into a folder of its own."""
    here = Path(sys.executable).parent
    if shutil.which("cloudft") or not (here / "cloudft").exists():
        return ()
    return (f'export PATH="{here}:$PATH"',)
