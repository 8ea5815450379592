"""Pull: whole or not at all, resumable, and never something other than what was trained."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudft.cli import run
from cloudft.errors import EnvironmentProblem, IntegrityError, RunFailed, StoreError
from jobs.ticket import ADAPTER, RESULT
from local.config import StoreConfig
from local.progress import silent
from local.runs.pull import pull
from local.runs.records import attempt_prefix, run_prefix
from local.runs.session import Session
from tests.local.run_fixtures import RUN_ID, make_project, make_run, put_adapter
from tests.services.s3 import S3Server

KEY = f"{attempt_prefix(RUN_ID, 1)}/{ADAPTER}"


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return make_run(make_project(tmp_path / "project"))


def files_of(session: Session) -> list[str]:
    return sorted(p.name for p in session.run.root.iterdir())


def test_the_adapter_comes_home_whole(session: Session, tmp_path: Path) -> None:
    result = put_adapter(session, tmp_path)
    pulled = pull(session, silent)
    for name, sha256 in result["artifacts"]["adapter"]["files"].items():
        assert hashlib.sha256((pulled.folder / name).read_bytes()).hexdigest() == sha256
    assert (pulled.complete, pulled.already_here) == (True, False)
    assert (session.run.root / "train.log").read_text() == "one\ntwo\n"
    assert session.record().status == "completed"
    again = pull(session, silent)
    assert again.already_here
    (pulled.folder / "adapter_config.json").write_text("changed by hand")
    assert not pull(session, silent).already_here
    assert (pulled.folder / "adapter_config.json").read_text() == "{}"


def test_a_broken_pull_goes_on_where_it_was(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_adapter(session, tmp_path)
    offsets: list[int] = []
    real = session.store.read

    def breaks_once(key: str, offset: int = 0) -> Iterator[bytes]:
        offsets.append(offset)
        for number, piece in enumerate(real(key, offset)):
            if number == 1 and len(offsets) == 1:
                raise StoreError("the connection broke")
            yield piece

    monkeypatch.setattr(session.store, "read", breaks_once)
    with pytest.raises(StoreError):
        pull(session, silent)
    assert not session.run.adapter.exists()
    pull(session, silent)
    assert offsets == [0, 1 << 20]
    assert session.run.adapter.is_dir()
    assert [name for name in files_of(session) if "part" in name or "new" in name] == []


def test_a_result_in_several_objects_comes_home_and_goes_on_inside_of_one(session: Session, tmp_path: Path) -> None:
    result = put_adapter(session, tmp_path, piece_bytes=1 << 20)
    names = result["artifacts"]["adapter"]["pieces"]
    assert len(names) == 4
    whole = b"".join(session.store.get_bytes(f"{attempt_prefix(RUN_ID, 1)}/{name}") or b"" for name in names)
    (session.run.root / ".adapter.tar.part").write_bytes(whole[:1_500_000])
    pulled = pull(session, silent)
    assert (pulled.folder / "adapter_model.safetensors").stat().st_size == 3 << 20
    shutil.rmtree(session.run.adapter)
    session.store.put_bytes(f"{KEY}.2", b"short")
    with pytest.raises(IntegrityError, match=r"adapter\.tar\.2 has 5 bytes instead of 1048576"):
        pull(session, silent)


def test_the_next_command_is_about_the_run_that_was_named(
    session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a name it would be about the latest, which may be another one."""
    put_adapter(session, tmp_path)
    root = str(session.project.root)
    for name, of in (((RUN_ID,), f" {RUN_ID}"), ((), "")):
        told = []
        for command in ("status", "pull", "status"):
            assert run([command, *name, "-C", root]) == 0
            told.append(capsys.readouterr().err.partition("next:\n")[2].split("\n")[0])
        first = f"  cloudft pull{of} && cloudft quantize{of}" if name else "  cloudft quantize"
        assert told == [first, f"  cloudft quantize{of}", f"  cloudft quantize{of}"]


def test_ctrl_c_keeps_what_came_and_says_so(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put_adapter(session, tmp_path)

    def interrupted(*_: object) -> Iterator[bytes]:
        yield b"some"
        raise KeyboardInterrupt

    monkeypatch.setattr("infra.store_folder.FolderStore.read", interrupted)
    assert run(["pull", "-C", str(session.project.root)]) == 130
    said = capsys.readouterr().err
    assert "goes on from there" in said
    assert not session.run.adapter.exists()
    monkeypatch.undo()


@pytest.mark.parametrize("damage", ["truncated", "changed", "missing"])
def test_a_damaged_object_is_refused(session: Session, tmp_path: Path, damage: str) -> None:
    put_adapter(session, tmp_path)
    data = bytearray(session.store.get_bytes(KEY) or b"")
    data[len(data) // 2] ^= 1
    if damage == "missing":
        session.store.delete(KEY)
    else:
        session.store.put_bytes(KEY, bytes(data) if damage == "changed" else bytes(data[:-1000]))
    with pytest.raises(IntegrityError, match="not the one that was trained") as caught:
        pull(session, silent)
    assert "nothing was written" in caught.value.effect
    assert not session.run.adapter.exists()


def test_a_full_disk_is_refused_before_and_reported_during(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_adapter(session, tmp_path)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("local.files.shutil.disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(EnvironmentProblem, match=r"only 1\.0 MB are free"):
        pull(session, silent)
    monkeypatch.undo()

    def full(*_: object) -> Iterator[bytes]:
        yield b"some"
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("infra.store_folder.FolderStore.read", full)
    with pytest.raises(EnvironmentProblem, match="No space left") as caught:
        pull(session, silent)
    assert "stays in the store" in caught.value.effect
    assert not session.run.adapter.exists()


def test_a_run_without_a_result_is_no_success(session: Session, tmp_path: Path) -> None:
    """The machine is gone and the outcome claims an adapter, but the marker was never written."""
    put_adapter(session, tmp_path)
    session.store.delete(f"{run_prefix(RUN_ID)}/{RESULT}")
    with pytest.raises(RunFailed, match="without an adapter"):
        pull(session, silent)
    assert session.record().status == "failed"


def test_a_lost_machine_is_called_lost(session: Session) -> None:
    with pytest.raises(RunFailed, match="left no outcome") as caught:
        pull(session, silent)
    assert "cloudft logs" in caught.value.hint
    assert session.record().status == "lost"


def test_a_stopped_run_brings_its_adapter_and_says_that_it_is_not_complete(session: Session, tmp_path: Path) -> None:
    put_adapter(session, tmp_path, status="stopped")
    pulled = pull(session, silent)
    assert (pulled.complete, pulled.reason) == (False, "cancelled by the user")


def test_from_a_bucket(tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    store = StoreConfig(url=f"s3://{s3_server.create_bucket()}/x", endpoint_url=s3_server.endpoint)
    session = make_run(make_project(tmp_path / "project"), store)
    put_adapter(session, tmp_path)
    assert pull(session, silent).complete
