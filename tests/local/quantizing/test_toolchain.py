"""The converter: fetched once, checked by hash, used offline, repaired, and a clear error when it can't be had."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import pytest

from cloudft.errors import EnvironmentProblem, IntegrityError
from local.quantizing import toolchain as tools
from local.quantizing.toolchain import PACKAGE, VERSION, cache_folder, ensure_toolchain, require_packages
from tests.local.quantize_fixtures import no_progress


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the converter was really fetched into; copy it to spoil it."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLOUDFT_CACHE", str(cache))
        ensure_toolchain(no_progress)
    return cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test's own, on a computer without any package index."""
    monkeypatch.setenv("CLOUDFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    return tmp_path / "cache"


def test_it_is_the_converter_and_nothing_more(installed: Path) -> None:
    root = installed / "toolchain" / f"{PACKAGE}-{VERSION}"
    assert (root / "conversion" / "base.py").is_file()
    assert (root / "gguf-py" / "gguf" / "__init__.py").is_file()
    assert "MIT" in (root / "LICENSE").read_text()
    assert not list(root.rglob("*.cpp"))
    assert sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) < 4_000_000
    assert [path.name for path in (installed / "toolchain").iterdir() if path.name != ".lock"] == [root.name]


def test_offline_it_is_used_from_the_cache(cache: Path, installed: Path) -> None:
    shutil.copytree(installed, cache)
    said: list[str] = []
    found = ensure_toolchain(lambda what, *_, **__: said.append(what))
    assert found.version == VERSION
    assert found.root.is_relative_to(cache)
    assert said == []


def test_offline_without_it_the_error_says_what_is_missing(cache: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=f"{PACKAGE} {VERSION}.*pip could not fetch it") as caught:
        ensure_toolchain(no_progress)
    assert str(cache) in caught.value.what
    assert [path.name for path in (cache / "toolchain").iterdir()] == [".lock"]


@pytest.mark.parametrize("spoil", ["changed", "gone"])
def test_a_damaged_one_is_not_used(cache: Path, installed: Path, spoil: str) -> None:
    shutil.copytree(installed, cache)
    file = cache / "toolchain" / f"{PACKAGE}-{VERSION}" / "conversion" / "base.py"
    file.unlink() if spoil == "gone" else file.write_text("import os")
    with pytest.raises(EnvironmentProblem, match="pip could not fetch it"):  # it tried to fetch it again
        ensure_toolchain(no_progress)


def test_debris_of_a_killed_install_is_removed(cache: Path) -> None:
    debris = cache / "toolchain" / ".new-killed"
    debris.mkdir(parents=True)
    (debris / "half.tar.gz").write_text("half")
    with pytest.raises(EnvironmentProblem):
        ensure_toolchain(no_progress)
    assert not debris.exists()


def _forged(folder: Path) -> Path:
    """An archive of the right name with other contents."""
    folder.mkdir()
    path = folder / f"llama_cpp_python-{VERSION}.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo(f"llama_cpp_python-{VERSION}/vendor/llama.cpp/conversion/base.py")
        info.size = 4
        tar.addfile(info, io.BytesIO(b"evil"))
    return path


def test_a_forged_archive_is_refused_when_pip_brings_it(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(_forged(tmp_path / "index").parent))
    with pytest.raises(IntegrityError, match="not the pinned archive"):
        ensure_toolchain(no_progress)
    assert not (cache / "toolchain" / f"{PACKAGE}-{VERSION}").exists()


def test_a_forged_archive_is_refused_when_the_user_brings_it(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="its sha256 differs"):
        ensure_toolchain(no_progress, _forged(tmp_path / "index"))
    assert not (cache / "toolchain" / f"{PACKAGE}-{VERSION}").exists()


def test_a_disk_that_is_too_small_is_said_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil._ntuple_diskusage(10**9, 10**9, 10**6)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(EnvironmentProblem, match=r"the converter needs .* are free"):
        ensure_toolchain(no_progress)


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CLOUDFT_CACHE", str(tmp_path / "file"))
    with pytest.raises(EnvironmentProblem, match="can't be written") as caught:
        ensure_toolchain(no_progress)
    assert "CLOUDFT_CACHE" in caught.value.hint


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDFT_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("CLOUDFT_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "cloudft"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "cloudft"


def test_missing_packages_are_named_with_the_command_that_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    require_packages()  # they are all here
    real = tools.find_spec
    monkeypatch.setattr(tools, "find_spec", lambda name: None if name in ("peft", "llama_cpp") else real(name))
    with pytest.raises(EnvironmentProblem, match=f"need peft, {PACKAGE},") as caught:
        require_packages()
    assert "pip install 'cloudft[local]'" in caught.value.hint


def test_another_llama_cpp_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "version", lambda _: "0.2.0")
    with pytest.raises(EnvironmentProblem, match=r"0\.2\.0 is installed, but the converter belongs to"):
        require_packages()
