"""`cloudft toolchain`: what is there, offline too; installed from a file; removed whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from cloudft.cli import run
from local.quantizing.toolchain import PACKAGE, SDIST_SHA256, VERSION, ensure_toolchain
from tests.local.quantize_fixtures import no_progress


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own, on a computer without any package index."""
    monkeypatch.setenv("CLOUDFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    return tmp_path / "cache"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the converter in the cache of whoever runs the suite, for a computer that is offline."""
    source = ensure_toolchain(no_progress).root
    home = tmp_path / "cache" / "toolchain"
    home.mkdir(parents=True)
    shutil.copytree(source, home / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("CLOUDFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return home / source.name


def test_what_is_not_there_is_said_with_the_command_that_installs_it(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["toolchain"]) == 0
    said = capsys.readouterr()
    assert f"{PACKAGE} {VERSION}: not installed" in said.out
    assert "cloudft toolchain install" in said.err
    assert not cache.exists()
    assert run(["toolchain", "install"]) == 12
    assert "pip could not fetch it" in capsys.readouterr().err


def test_what_is_there_is_shown_and_is_enough_offline(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["toolchain", "show", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)["data"]
    assert (data["installed"], data["root"], data["sdist_sha256"]) == (True, str(installed), SDIST_SHA256)
    assert 100 < data["files"] < 300
    assert 1_000_000 < data["bytes"] < 10_000_000
    assert run(["toolchain", "install"]) == 0
    assert f"{PACKAGE} {VERSION}: installed" in capsys.readouterr().out


def test_a_damaged_one_is_said(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (installed / "conversion" / "base.py").write_text("")
    assert run(["toolchain"]) == 0
    assert "damaged, and will be installed again" in capsys.readouterr().out


def test_removing_leaves_nothing_but_the_lock(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (installed.parent / ".new-killed").mkdir()
    assert run(["toolchain", "remove", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["removed"] == [str(installed)]
    assert [path.name for path in installed.parent.iterdir()] == [".lock"]
    assert run(["toolchain", "remove"]) == 0
    assert "removed: nothing" in capsys.readouterr().out


def test_nothing_is_removed_while_it_is_installed(installed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FileLock(installed.parent / ".lock"):
        assert run(["toolchain", "remove"]) == 6
    assert "being installed" in capsys.readouterr().err
    assert installed.is_dir()


def test_an_archive_that_the_user_brings_is_checked(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.tar.gz").write_text("something else")
    assert run(["toolchain", "install", "-C", str(tmp_path), "--sdist", "other.tar.gz"]) == 11
    assert "its sha256 differs" in capsys.readouterr().err
    assert [path.name for path in (cache / "toolchain").iterdir()] == [".lock"]
