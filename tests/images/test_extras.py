"""What a project adds to the image: found, checked, and never a secret."""

from __future__ import annotations

from pathlib import Path

import pytest

import images.extras as extras_module
from cloudft.errors import ConfigError, EnvironmentProblem
from images.build import with_extras
from images.context import train_context
from images.extras import NONE, OURS, Extras, collect, refuse_secret


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with a requirement file, a package, and things beside them that must stay out."""
    top = tmp_path / "project"
    (top / "code" / "__pycache__").mkdir(parents=True)
    (top / "code" / ".git").mkdir()
    (top / "my needs.txt").write_text("wandb\n")
    (top / "code" / "a.py").write_text("A = 1\n")
    (top / "code" / "__pycache__" / "a.pyc").write_bytes(b"x")
    (top / "code" / ".git" / "config").write_text("x")
    (top / "code" / ".env").write_text("x")
    (tmp_path / "outside.py").write_text("B = 1\n")
    return top


def refused(root: Path, requirements: list[str], files: list[str]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        collect(root, requirements, files)
    assert "nothing was built" in caught.value.effect
    return caught.value


def test_a_folder_brings_its_files_but_no_hidden_ones(root: Path) -> None:
    assert list(collect(root, [], ["code"]).files) == ["code/a.py"]


def test_without_extras_the_context_is_the_plain_one() -> None:
    with train_context() as plain:
        before = (plain.folder / plain.dockerfile).read_bytes()
        assert with_extras(plain, NONE) == plain
        assert (plain.folder / plain.dockerfile).read_bytes() == before


def test_the_layers_of_a_project_lie_above_the_libraries_and_below_our_code(root: Path, repo: Path) -> None:
    plain_lines = (repo / "Dockerfile.train").read_text().splitlines()
    with train_context() as plain:
        context = with_extras(plain, collect(root, ["my needs.txt"], ["code"]))
        lines = (context.folder / context.dockerfile).read_text().splitlines()
        assert (context.folder / "requirements" / "my needs.txt").read_text() == "wandb\n"
        assert (context.folder / "files" / "code" / "a.py").read_text() == "A = 1\n"
        assert context.sha256 != plain.sha256
    added = [line for line in lines if line not in plain_lines]
    assert [line.split()[0] for line in added] == ["COPY", "RUN", "ENV", "COPY"]
    # Everything else is untouched and in its place: added right above our own code.
    at = lines.index(OURS)
    assert lines[at - len(added) : at] == added
    assert lines[: at - len(added)] + lines[at:] == plain_lines
    assert "-c /opt/cloudft/images/${LOCK}-constraints.txt" in added[1]
    assert added[1].endswith("-r '/opt/cloudft/requirements/my needs.txt'")


def test_the_name_of_an_extra_file_changes_the_content(root: Path) -> None:
    with train_context() as plain:
        first = with_extras(plain, collect(root, [], ["code/a.py"])).sha256
    (root / "code" / "a.py").rename(root / "code" / "b.py")
    with train_context() as plain:
        assert with_extras(plain, collect(root, [], ["code/b.py"])).sha256 != first


@pytest.mark.parametrize(
    ("requirements", "files", "says"),
    [
        (["nothing.txt"], [], "is not there"),
        (["code"], [], "is a folder"),
        ([], ["nothing"], "is not there"),
        ([], ["../outside.py"], "lies outside the project"),
        (["../outside.py"], [], "lies outside the project"),
        ([], ["."], "is the project"),
        ([], ["/etc/hosts"], "lies outside the project"),
    ],
)
def test_what_cannot_be_added_is_named(root: Path, requirements: list[str], files: list[str], says: str) -> None:
    error = refused(root, requirements, files)
    assert says in error.what
    assert ("build.requirements" if requirements else "build.files") in error.what


def test_a_link_out_of_the_project_is_refused(root: Path) -> None:
    (root / "code" / "link.py").symlink_to(root.parent / "outside.py")
    assert "link.py" in refused(root, [], ["code"]).what
    (root / "direct.py").symlink_to(root.parent / "outside.py")
    assert "lies outside" in refused(root, [], ["direct.py"]).what


def test_a_name_that_would_break_the_recipe_is_refused(root: Path) -> None:
    (root / "a\nRUN evil.txt").write_text("wandb\n")
    assert "cannot be used" in refused(root, ["a\nRUN evil.txt"], []).what


KEY = "-----BEGIN OPENSSH PRIVATE " + "KEY-----\nabc\n"
SECRETS = [
    (KEY, "private key"),
    ("HF = 'hf_" + "a1B2" * 9 + "'", "Hugging Face"),
    ("key: AKIA" + "ABCD" * 4, "AWS"),
    ("rpa_" + "X1" * 20, "RunPod"),
    ("ghp_" + "x1" * 18, "GitHub"),
    ("sk-proj-" + "x1" * 20, "OpenAI"),
]


@pytest.mark.parametrize(("text", "kind"), SECRETS, ids=[kind for _, kind in SECRETS])
def test_a_secret_in_a_file_is_refused_and_never_shown(root: Path, text: str, kind: str) -> None:
    (root / "code" / "settings.py").write_text(f"# settings\n{text}\n")
    error = refused(root, [], ["code"])
    assert "code/settings.py" in error.what
    assert kind in error.what
    assert text.strip() not in f"{error.what}{error.effect}{error.hint}"
    assert "machine.secrets" in error.hint


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://me:geheim@pip.example.com/simple",
        "mine @ git+https://geheimgeheimgeheim@github.com/me/mine",
        "--extra-index-url https://:geheim@pip.example.com/simple",
    ],
)
def test_a_password_in_a_requirement_is_refused(root: Path, line: str) -> None:
    (root / "needs.txt").write_text(f"wandb\n{line}\n")
    error = refused(root, ["needs.txt"], [])
    assert "address with a password" in error.what
    assert "geheim" not in error.what


@pytest.mark.parametrize(
    "line",
    [
        "mine @ git+ssh://git@github.com/me/mine",
        "mine @ git+https://github.com/me/mine@v1.0",
        "--index-url https://pip.example.com:8443/simple",
        "--index-url https://${PIP_USER}:${PIP_PASSWORD}@pip.example.com/simple",
    ],
)
def test_an_address_without_a_password_is_taken(root: Path, line: str) -> None:
    (root / "needs.txt").write_text(f"{line}\n")
    assert list(collect(root, ["needs.txt"], []).requirements) == ["needs.txt"]


def test_a_comment_in_code_may_show_an_address(root: Path) -> None:
    (root / "code" / "b.py").write_text("# such as postgres://user:password@host/db\n")
    assert "code/b.py" in collect(root, [], ["code"]).files


def test_the_value_of_a_secret_of_this_computer_is_found_wherever_it_stands(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "code" / "b.py").write_text("x = 'some-plain-looking-value'\n")
    assert collect(root, [], ["code"]).files
    monkeypatch.setenv("MY_API_KEY", "some-plain-looking-value")
    error = refused(root, [], ["code"])
    assert "MY_API_KEY" in error.what
    assert "some-plain" not in error.what
    monkeypatch.setenv("MY_API_KEY", "x")
    assert collect(root, [], ["code"]).files


def test_a_secret_on_the_border_of_two_pieces_is_found(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras_module, "_PIECE", 5000)
    token = "hf_" + "a1B2" * 9
    for before in range(4990, 5001, 5):
        (root / "code" / "b.py").write_text(" " * before + token + " " * 5000)
        assert "Hugging Face" in refused(root, [], ["code"]).what


def test_a_file_that_cannot_be_read_is_named(root: Path) -> None:
    missing = Extras(files={"gone.py": root / "gone.py"})
    with pytest.raises(EnvironmentProblem, match=r"gone\.py"), train_context() as plain:
        with_extras(plain, missing)


def test_a_harmless_argument_passes() -> None:
    refuse_secret("build.args.PIP_INDEX_URL", b"https://pip.example.com/simple", addresses=True)
