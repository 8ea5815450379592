"""`cloudft init`: a whole project, nothing overwritten, secrets readable by their user alone."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from cloudft.cli import run
from local.config import load_config
from local.scaffold import project_name


def test_a_new_project_is_valid_and_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "My Tickets!"
    assert run(["init", "-C", str(folder)]) == 0
    config = load_config(folder / "cloudft.yaml")
    assert config.project == "my-tickets"
    assert (folder / config.data.path).is_file()
    assert (folder / config.task.json_schema).is_file()
    for name in ("compose.yaml", "Dockerfile.serve", ".dockerignore", ".gitignore"):
        assert (folder / name).is_file(), name
    assert stat.S_IMODE((folder / ".env").stat().st_mode) == 0o600
    key = (folder / ".env").read_text().strip().removeprefix("CLOUDFT_API_KEY=")
    assert len(key) >= 32
    said = capsys.readouterr()
    assert key not in said.out + said.err
    assert "cloudft submit" in said.err
    assert ".env" in (folder / ".gitignore").read_text().splitlines()


def test_nothing_that_is_there_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".env").write_text("CLOUDFT_API_KEY=mine\n")
    (tmp_path / "compose.yaml").write_text("mine\n")
    assert run(["init", "-C", str(tmp_path)]) == 0
    assert (tmp_path / ".env").read_text() == "CLOUDFT_API_KEY=mine\n"
    assert (tmp_path / "compose.yaml").read_text() == "mine\n"
    before = (tmp_path / "cloudft.yaml").read_bytes()
    assert run(["init", "-C", str(tmp_path)]) == 6
    assert (tmp_path / "cloudft.yaml").read_bytes() == before
    assert "is a project already" in capsys.readouterr().err


def test_the_schema_is_json_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", "-C", str(tmp_path / "new"), "--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "cloudft.yaml"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("folder", "name"), [("---", "project"), ("Ünïted", "n-ted"), ("a" * 50, "a" * 32)])
def test_project_names(folder: str, name: str, tmp_path: Path) -> None:
    assert project_name(tmp_path / folder) == name
