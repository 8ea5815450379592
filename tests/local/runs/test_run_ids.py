"""A command without a run id means the latest run, also when two were made within one second."""

from __future__ import annotations

from pathlib import Path

from local.planning.draft import new_run_id
from local.project import Project


def test_a_new_id_sorts_behind_all_others(tmp_path: Path) -> None:
    project = Project(tmp_path)
    made = []
    for _ in range(12):
        run_id = new_run_id(project)
        (project.runs / run_id).mkdir(parents=True)
        (project.runs / run_id / "run.json").touch()
        made.append(run_id)
    assert made == sorted(made) == project.run_ids()
    assert len(set(made)) == 12
    assert project.pick_run(None).run_id == made[-1]
