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
