"""The command line itself: light, guarded, documented, and polite about mistakes."""

from __future__ import annotations

import errno
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from cloudft import errors
from cloudft.cli import COMMANDS, cli, run
from cloudft.errors import CloudftError

REPO = Path(__file__).resolve().parents[2]
HEAVY = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "boto3",
    "botocore",
    "pydantic",
    "runpod",
    "modal",
    "docker",
    "httpx",
    "jinja2",
    "huggingface_hub",
)


def cloudft(*args: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cloudft", *args],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(REPO)} | env,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("args", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    code = (
        f"import sys; from cloudft.cli import run; assert run({args!r}) == 0;"
        f"print('loaded', sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "loaded []", done.stdout + done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_stands_in_the_readme_and_takes_json(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.name == name
    assert command.help
    assert f"| `cloudft {name}` |" in (REPO / "README.md").read_text()
    options = {option: parameter for parameter in command.params for option in parameter.opts}
    assert "--json" in options
    assert "--directory" in options
    undocumented = [p.name for p in command.params if isinstance(p, click.Option) and not p.help]
    assert undocumented == []


def test_exit_codes_are_distinct_and_documented() -> None:
    tree = [e for _, e in inspect.getmembers(errors, inspect.isclass) if issubclass(e, CloudftError)]
    codes = {e.__name__: e.exit_code for e in tree}
    assert len(set(codes.values())) == len(codes)
    table = (REPO / "docs" / "exit-codes.md").read_text()
    documented = {name: int(code) for code, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", table, re.M)}
    assert documented == codes
    for name, code in codes.items():
        assert re.search(rf"\b{name}\s+{code}\b", errors.__doc__ or "")


def test_a_users_packages_of_the_same_names_do_not_shadow_ours(tmp_path: Path) -> None:
    for name in ("infra", "jobs", "local", "images"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong package was imported')")
    done = cloudft("init", "-C", str(tmp_path / "new"), cwd=tmp_path, PYTHONPATH=f"{tmp_path}:{REPO}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new" / "cloudft.yaml").exists()
    # The detached supervisor is started with the same protection.
    done = cloudft("status", "-C", str(tmp_path / "new"), cwd=tmp_path, PYTHONPATH=f"{tmp_path}:{REPO}")
    assert "has no runs yet" in done.stderr


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["sumbit"], "no such command"),
        (["submit", "--detatch"], "no such option"),
        (["quantize", "a", "b"], "unexpected extra argument"),
        (["submit", "--max-rate", "nan"], "no number"),
        (["eval", "--temperature", "nan"], "no number"),
        (["eval", "--temperature", "inf"], "no number"),
        (["quantize", "--max-kl", "nan"], "no number"),
    ],
)
def test_a_typing_mistake_is_code_2_with_a_way_out(
    args: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(args) == 2
    said = capsys.readouterr()
    assert says in said.err
    assert "--help" in said.err
    assert said.out == ""


def test_outside_a_project_every_command_says_how_to_make_one(tmp_path: Path) -> None:
    plain = ("submit", "status", "logs", "cancel", "pull", "quantize", "eval", "report", "serve")
    for args in (*((name,) for name in plain), ("diff", "a", "b"), ("reproduce", "a")):
        done = cloudft(*args, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (3, ""), args
        assert "no cloudft.yaml" in done.stderr
        assert "cloudft init" in done.stderr
        assert "Traceback" not in done.stderr


def test_errors_are_json_on_standard_error_with_json(tmp_path: Path) -> None:
    done = cloudft("status", "--json", cwd=tmp_path)
    said = json.loads(done.stderr)
    assert (done.stdout, said["error"], said["exit_code"], done.returncode) == ("", "ConfigError", 3, 3)
    assert said["hint"]


def test_a_bug_is_a_message_without_a_traceback_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(_: Path) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("local.project.find_project", broken)
    assert run(["status", "-C", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "ZeroDivisionError: oops" in said
    assert "CLOUDFT_DEBUG=1" in said
    assert "Traceback" not in said
    monkeypatch.setenv("CLOUDFT_DEBUG", "1")
    assert run(["status", "-C", str(tmp_path)]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m cloudft init --schema | head -n 1"
    done = subprocess.run(command, shell=True, cwd=REPO, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("{\n", "")


def test_version() -> None:
    done = cloudft("--version")
    assert done.stdout.strip() == "cloudft, version 0.1.0"


def test_a_folder_that_cannot_be_written_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def read_only(_: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "runs/x/.lock")

    monkeypatch.setattr("local.project.find_project", read_only)
    assert run(["status", "-C", str(tmp_path)]) == 12
    said = capsys.readouterr().err
    assert "runs/x/.lock cannot be written: Read-only file system" in said
    assert "bug" not in said
