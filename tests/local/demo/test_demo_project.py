"""The demo's project is one that the project's own checks accept."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudft.errors import Busy
from local.base import lock_base
from local.config import load_config
from local.demo.demo_project import ROWS, write_demo_project
from local.evaluation.task import load_task
from local.planning.data import load_rows
from local.planning.hyperparameters import StageFacts, resolve_stages
from local.planning.split import split
from local.progress import silent
from tests.jobs.train_fixtures import SETTINGS, demo_base

__all__ = ["demo_base"]  # a fixture


def test_the_project_passes_every_check(demo_base: Path, tmp_path: Path) -> None:
    project = write_demo_project(tmp_path / "demo", silent)
    assert project.root == (tmp_path / "demo").resolve()
    config = load_config(project.config_file)
    task = load_task(config.task, project.root)
    assert task.keys == ("category", "product", "priority")
    assert isinstance(config.data.holdout, float)
    parts = split(load_rows(project.root / config.data.path), config.data.holdout, config.data.seed)
    assert len(parts.train) + len(parts.holdout) == ROWS
    assert len(parts.holdout) == 140
    (stage,) = resolve_stages(config.train, [StageFacts(len(parts.train))])
    # The settings that the trainer's own test proves.
    settings = {name: value for name, value in SETTINGS.items() if name != "origins"}
    assert {name: getattr(stage, name) for name in settings} == settings
    base = lock_base(config.base, config.revision, project.root)
    assert base.source == "folder"


def test_a_second_time_changes_nothing(demo_base: Path, tmp_path: Path) -> None:
    def contents() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in sorted(tmp_path.rglob("*")) if p.is_file()}

    write_demo_project(tmp_path, silent)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "note").write_text("mine")
    before = contents()
    write_demo_project(tmp_path, silent)
    assert contents() == before


def test_somebodys_own_project_is_never_written_over(tmp_path: Path) -> None:
    for name in ("cloudft.yaml", "data/tickets.jsonl"):
        folder = tmp_path / name.partition("/")[0].replace(".", "-")
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("mine")
        with pytest.raises(Busy, match="the demo did not make"):
            write_demo_project(folder, silent)
        assert (folder / name).read_text() == "mine"
        assert [p.name for p in folder.iterdir()] == [name.partition("/")[0]]
