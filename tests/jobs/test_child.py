"""What the end of a trainer means, by what its processes wrote."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from jobs import child
from jobs.child import TRAINER, End, command, ended

FAILED = {"status": "failed", "reason": "no such row", "cause": ""}
LOST = {"status": "failed", "reason": "Connection reset by peer", "cause": "peer"}
NO_MEMORY = {"status": "failed", "reason": "memory ran out", "cause": "memory"}
DIVERGED = {"status": "failed", "reason": "the loss became nan", "cause": "diverged"}


def end(tmp_path: Path, code: int, *reports: dict[str, str] | None) -> End:
    """Of a trainer whose processes left these reports, the first of them first; None for one that left none."""
    for rank, report in enumerate(reports):
        if report is not None:
            (tmp_path / (f"rank-{rank}.json" if rank else "trainer.json")).write_text(json.dumps(report))
    return ended(code, tmp_path, len(reports))


def test_a_process_of_its_own_is_killed_or_says_why_it_failed(tmp_path: Path) -> None:
    assert end(tmp_path, -9, None).killed
    assert "killed (signal 9)" in end(tmp_path, -9, None).reason
    assert end(tmp_path, -11, None).reason == "the trainer ended with signal 11; see the log"
    failed = end(tmp_path, 1, FAILED)
    assert (failed.killed, failed.again, failed.final, failed.reason) == (False, False, False, "no such row")


@pytest.mark.parametrize(
    ("reports", "killed", "again", "reason"),
    [
        ((LOST, None), True, False, "one of the trainer's processes was killed"),
        ((None, LOST), True, False, "one of the trainer's processes was killed"),
        ((None, None), True, False, "one of the trainer's processes was killed"),
        ((LOST, FAILED), False, False, "no such row"),
        ((FAILED, None), False, False, "no such row"),
        ((LOST, NO_MEMORY), False, True, "memory ran out"),
        ((NO_MEMORY, None), False, True, "memory ran out"),
    ],
)
def test_of_several_the_one_that_knows_why_is_believed(
    tmp_path: Path, reports: tuple[dict[str, str] | None, ...], killed: bool, again: bool, reason: str
) -> None:
    # torchrun ends with 1 in every case.
    found = end(tmp_path, 1, *reports)
    assert (found.killed, found.again) == (killed, again)
    assert reason in found.reason


def test_a_training_that_diverged_is_final_whether_something_good_was_saved_or_not(tmp_path: Path) -> None:
    assert end(tmp_path, 1, DIVERGED).final
    assert end(tmp_path, 0, {**DIVERGED, "status": "stopped"}).final
    assert end(tmp_path, 1, DIVERGED, None).final
    assert not end(tmp_path, 0, {"status": "completed", "reason": "", "cause": ""}).final


def test_a_launcher_starts_it_once_for_each_gpu(tmp_path: Path) -> None:
    assert command(TRAINER, tmp_path, 1, None) == [*TRAINER, "--work", str(tmp_path), "--wait"]
    several = command((*TRAINER, "--first-checkpoint", "0"), tmp_path, 4, 12.5)
    assert several[:5] == [sys.executable, "-P", "-m", "jobs.launch", "4"]
    assert several[5:] == ["--first-checkpoint", "0", "--work", str(tmp_path), "--wait", "--until", "12.5"]


def test_a_report_that_is_not_whole_is_none(tmp_path: Path) -> None:
    (tmp_path / "trainer.json").write_text('{"status": "comple')
    assert child.read_report(tmp_path / "trainer.json") == {}
    (tmp_path / "trainer.json").write_text("[]")
    assert child.read_report(tmp_path / "trainer.json") == {}
