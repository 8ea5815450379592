"""One key of cloudft.yaml is set; every other character stays as the user wrote it."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from cloudft.errors import ConfigError
from local.config import load_config
from local.pin import pin_image
from local.project import Project

IMAGE = "ghcr.io/me/cloudft-train@sha256:" + "0af1" * 16
OLD = "ghcr.io/me/cloudft-train@sha256:" + "1" * 64
NEEDED = "project: tickets\nbase: org/model\ndata: {path: d.jsonl}\ntask: {schema: s.json}\n"


def changed(tmp_path: Path, text: str) -> list[str]:
    """Pin, and return what changed: the lines taken away, with -, and added, with +."""
    project = Project(tmp_path)
    project.config_file.write_bytes(text.encode())
    before = load_config(project.config_file)
    assert pin_image(project, IMAGE)
    after = load_config(project.config_file)
    assert after.image == IMAGE
    assert after == before.model_copy(update={"image": IMAGE})
    now = project.config_file.read_bytes().decode()
    diff = difflib.ndiff(text.splitlines(keepends=True), now.splitlines(keepends=True))
    return [line for line in diff if line[0] in "+-"]


@pytest.mark.parametrize(
    ("line", "becomes"),
    [
        (f"image: {OLD}", f"image: {IMAGE}"),
        (f"image: {OLD}   # built on Monday", f"image: {IMAGE}   # built on Monday"),
        (f"image:    '{OLD}'  # x", f"image:    {IMAGE}  # x"),
        (f'image: "{OLD}"', f"image: {IMAGE}"),
        ("image:", f"image: {IMAGE}"),
        ("image:   # not yet", f"image: {IMAGE}   # not yet"),
        ("image: null # not yet", f"image: {IMAGE} # not yet"),
        ("image: ~", f"image: {IMAGE}"),
        (f'"image": {OLD}', f'"image": {IMAGE}'),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "windows"])
def test_the_value_is_replaced_and_its_comment_stays(tmp_path: Path, line: str, becomes: str, end: str) -> None:
    text = f"# mine: image: none\n{NEEDED}{line}\n\n# the end\ngpu: [A10G, 24GB]   # in this order\n".replace("\n", end)
    assert changed(tmp_path, text) == [f"- {line}{end}", f"+ {becomes}{end}"]


def test_without_the_key_it_comes_after_the_provider(tmp_path: Path) -> None:
    text = f"# top\n{NEEDED}provider: docker   # here\n# comment\nstore: s3://b\n"
    assert changed(tmp_path, text) == [f"+ image: {IMAGE}\n"]
    lines = (tmp_path / "cloudft.yaml").read_text().splitlines()
    assert lines.index(f"image: {IMAGE}") == lines.index("provider: docker   # here") + 1


@pytest.mark.parametrize("text", [NEEDED, f"{NEEDED}serve:\n  port: 9000\n"], ids=["flat", "after a section"])
def test_without_both_it_comes_last(tmp_path: Path, text: str) -> None:
    assert changed(tmp_path, text) == [f"+ image: {IMAGE}\n"]


def test_a_file_without_an_end_of_line(tmp_path: Path) -> None:
    changed(tmp_path, f"{NEEDED}provider: docker")
    assert (tmp_path / "cloudft.yaml").read_text() == f"{NEEDED}provider: docker\nimage: {IMAGE}\n"


def test_an_image_key_of_another_section_is_not_meant(tmp_path: Path) -> None:
    text = f"{NEEDED}machine:\n  secrets: {{image: x}}\n"
    assert changed(tmp_path, text) == [f"+ image: {IMAGE}\n"]


def test_letters_of_all_kinds_stay(tmp_path: Path) -> None:
    text = f"# Größe, 名前, 🚀\n{NEEDED}gpu: A10G # 🚀\nimage: {OLD}\n"
    assert changed(tmp_path, text) == [f"- image: {OLD}\n", f"+ image: {IMAGE}\n"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.yaml").write_text(NEEDED)
    project = Project(tmp_path)
    project.config_file.symlink_to("real.yaml")
    assert pin_image(project, IMAGE)
    assert project.config_file.is_symlink()
    assert (tmp_path / "real.yaml").read_text() == f"{NEEDED}image: {IMAGE}\n"


def test_what_is_pinned_already_is_not_written_again(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.config_file.write_text(f"{NEEDED}image: {IMAGE}\n")
    before = project.config_file.stat()
    assert not pin_image(project, IMAGE)
    assert project.config_file.stat() == before


@pytest.mark.parametrize(
    "text",
    [
        "{project: tickets, base: org/model, data: {path: d.jsonl}, task: {schema: s.json}}\n",
        f"{NEEDED}...\n",
        f"{NEEDED}image: &anchor {OLD}\nrevision: *anchor\n",
    ],
    ids=["one line of braces", "an end mark", "an anchor"],
)
def test_a_file_that_cannot_be_changed_safely_is_left_alone(tmp_path: Path, text: str) -> None:
    project = Project(tmp_path)
    project.config_file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        pin_image(project, IMAGE)
    assert project.config_file.read_text() == text
    assert f"image: {IMAGE}" in caught.value.hint
    assert "as it was" in caught.value.effect
    assert [p.name for p in tmp_path.iterdir()] == ["cloudft.yaml"]
