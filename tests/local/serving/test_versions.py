"""Versions are whole or not there, and the link to the current one is replaced in one step."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudft.errors import EnvironmentProblem, IntegrityError, NotFound
from local.project import Project
from local.quantizing.verify import Verification
from local.serving.versions import Manifest, current, list_versions, promote, read_version


def make_version(project: Project, name: str, created: str = "2026-01-01T00:00:00.000+00:00") -> Path:
    root = project.models / name
    root.mkdir(parents=True)
    (root / "model.gguf").write_bytes(b"GGUF")
    manifest = Manifest(
        version=name,
        run_id="run-1",
        base_id="base",
        base_revision="0" * 64,
        adapter_sha256="1" * 64,
        spec_sha256="2" * 64,
        type="Q4_K_M",
        gguf_sha256="3" * 64,
        gguf_bytes=4,
        llama_cpp_python="0.3.36",
        created_at=created,
        verification=Verification(architecture="qwen2", conversations=1, tokens=2, end_of_turn="<|im_end|>"),
    )
    (root / "manifest.json").write_text(manifest.model_dump_json())
    return root


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_before_the_first_there_is_none(project: Project) -> None:
    assert current(project) is None
    assert list_versions(project) == []
    with pytest.raises(NotFound, match="no version 'a'") as caught:
        promote(project, "a")
    assert "none" in caught.value.hint


def test_the_link_is_relative_and_is_replaced(project: Project) -> None:
    make_version(project, "a")
    make_version(project, "b", "2026-01-02T00:00:00.000+00:00")
    promote(project, "b")
    assert project.current_model.readlink() == Path("b")
    promoted = promote(project, "a")
    assert project.current_model.readlink() == Path("a")
    served = current(project)
    assert served is not None
    assert served.name == promoted.name == "a"
    assert [version.name for version in list_versions(project)] == ["a", "b"]
    assert sorted(path.name for path in project.models.iterdir()) == ["a", "b", "current"]


def test_only_versions_can_be_promoted(project: Project) -> None:
    make_version(project, "a")
    promote(project, "a")
    make_version(project, "bases/b")
    for name in ("", "..", "current", "bases", "bases/b", "missing"):
        with pytest.raises(NotFound) as caught:
            promote(project, name)
        assert caught.value.hint == "the versions are: a"
    assert project.current_model.readlink() == Path("a")


def test_a_damaged_version_is_not_served(project: Project) -> None:
    make_version(project, "a")
    promote(project, "a")
    (make_version(project, "short") / "model.gguf").write_bytes(b"GG")
    (make_version(project, "empty") / "model.gguf").unlink()
    (make_version(project, "broken") / "manifest.json").write_text("{")
    for name in ("short", "empty", "broken"):
        with pytest.raises(IntegrityError):
            promote(project, name)
    assert project.current_model.readlink() == Path("a")
    assert [version.name for version in list_versions(project)] == ["a"]


def test_a_link_that_leads_nowhere_is_said(project: Project) -> None:
    project.models.mkdir()
    project.current_model.symlink_to("gone")
    with pytest.raises(NotFound):
        current(project)


def test_somebodys_folder_is_not_replaced(project: Project) -> None:
    make_version(project, "a")
    project.current_model.mkdir()
    with pytest.raises(EnvironmentProblem, match="no symbolic link"):
        promote(project, "a")
    assert project.current_model.is_dir()


def test_a_manifest_of_a_newer_cloudft_is_read_as_far_as_it_is_known(project: Project) -> None:
    root = make_version(project, "a")
    text = (root / "manifest.json").read_text()
    (root / "manifest.json").write_text(text.replace('"run_id"', '"new_key": 1, "run_id"'))
    assert read_version(root).manifest.run_id == "run-1"
    (root / "manifest.json").write_text(text.replace('"schema_version":1', '"schema_version":2'))
    with pytest.raises(IntegrityError):
        read_version(root)
