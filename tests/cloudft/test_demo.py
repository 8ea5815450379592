"""`cloudft demo`, broken off: what is there stays whole, and it says how to go on. Its whole path: test_whole_path."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cloudft.commands.demo_command import _reachable

REPO = Path(__file__).resolve().parents[2]


@pytest.mark.train
def test_ctrl_c_keeps_what_was_made_and_says_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    options: Any = {"env": os.environ | {"PYTHONPATH": str(REPO)}, "text": True, "cwd": tmp_path}
    argv = [sys.executable, "-m", "cloudft"]
    # A terminal sends Ctrl-C to the demo and to the command that it runs at the moment.
    process = subprocess.Popen([*argv, "demo", "-C", "demo"], stderr=subprocess.PIPE, start_new_session=True, **options)
    assert process.stderr is not None
    said = ""
    while "start the machine" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    os.killpg(process.pid, signal.SIGINT)
    _, rest = process.communicate(timeout=120)
    said += rest
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "what was made so far is kept" in said
    assert "cloudft demo -C demo" in said
    assert (folder / "cloudft.yaml").is_file()
    # Whatever the command was at, a machine that goes on is in the records, and can be ended.
    if list((folder / "runs").glob("2*")):
        ended = subprocess.run([*argv, "cancel", "--now", "--json", "-C", "demo"], capture_output=True, **options)
        assert json.loads(ended.stdout)["data"]["billed_now"] is False, ended.stderr


def test_the_next_commands_can_be_typed_where_cloudft_is_not_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cloudft").touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", "/usr/bin")
    assert _reachable() == (f'export PATH="{tmp_path}:$PATH"',)
    monkeypatch.setenv("PATH", f"/usr/bin:{tmp_path}")
    assert _reachable() == ()
