"""What a machine tells beside its training: GPU, the curve of the loss, the audit, the trackers' files."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest

from jobs.curve import POINTS, curve, parse_lines, read_lines
from jobs.gpu import MIB, GpuWatch
from jobs.ticket import AUDIT, METRICS, RESULT, TRACKING
from tests.jobs.test_supervisor import TRAINER, Machine

# The lines of a real `nvidia-smi --query-gpu=name,utilization.gpu,memory.used,memory.total,power.draw
# --format=csv,noheader,nounits`.
TWO_CARDS = "NVIDIA A10G, 97, 15123, 23028, 151.23\\nNVIDIA A10G, 91, 15001, 23028, [N/A]\\n"


def tool(folder: Path, said: str, code: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "nvidia-smi"
    path.write_text(f'#!/bin/sh\ncase "$1" in --query-gpu=name,*) printf "{said}";; esac\nexit {code}\n')
    path.chmod(0o755)
    return path


def test_the_cards_are_told_in_bytes_percent_and_watts(tmp_path: Path) -> None:
    watch = GpuWatch(str(tool(tmp_path, TWO_CARDS)))
    assert watch.report() == {}
    assert watch.sample() == {
        "name": "NVIDIA A10G",
        "cards": 2,
        "utilisation": 94.0,
        "memory_bytes": 15123 * MIB,
        "memory_total_bytes": 23028 * MIB,
        "power_watts": 151.23,
        "peak_memory_bytes": 15123 * MIB,
        "mean_utilisation": 94.0,
    }
    tool(tmp_path, "NVIDIA A10G, 20, 900, 23028, 60\\n")
    told = watch.sample()
    assert (told["utilisation"], told["mean_utilisation"], told["memory_bytes"]) == (20.0, 57.0, 900 * MIB)
    assert told["peak_memory_bytes"] == 15123 * MIB


@pytest.mark.parametrize("said", ["", "No devices were found\\n", "garbage, of, another, kind\\n"])
def test_a_tool_that_tells_nothing_is_no_gpu(tmp_path: Path, said: str) -> None:
    assert GpuWatch(str(tool(tmp_path, said))).sample() == {}


def test_no_tool_or_one_that_fails_is_no_gpu(tmp_path: Path) -> None:
    assert GpuWatch(str(tmp_path / "nowhere")).sample() == {}
    assert GpuWatch(str(tool(tmp_path, TWO_CARDS, code=9))).sample() == {}
    (tmp_path / "nvidia-smi").write_text("not a program")
    assert GpuWatch(str(tmp_path / "nvidia-smi")).sample() == {}


def test_what_a_card_does_not_tell_is_left_out(tmp_path: Path) -> None:
    told = GpuWatch(str(tool(tmp_path, "NVIDIA GB10, [N/A], [N/A], [N/A], 30.1\\n"))).sample()
    assert (told["utilisation"], told["memory_bytes"], told["peak_memory_bytes"]) == (None, None, None)


def test_a_curve_keeps_its_shape_in_few_points() -> None:
    lines = [{"step": n, "loss": 1000 - n} for n in range(1000)]
    points = curve(lines)
    assert len(points) == POINTS
    assert points == sorted(points, reverse=True)
    # Each point is a mean, so together they are the mean of all.
    assert sum(points) / POINTS == pytest.approx(sum(1000 - n for n in range(1000)) / 1000, rel=0.001)
    assert curve([{"loss": 2.0}, {"eval_loss": 1.0}, {"loss": None}]) == [2.0]
    assert curve([]) == []


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 2.0}\n[1]\n{"step": 2, "lo')
    assert read_lines(path) == parse_lines(path.read_bytes()) == [{"step": 1, "loss": 2.0}]
    assert read_lines(tmp_path / "nowhere") == []


REPORTING = TRAINER.replace(
    "save()\nstatus",
    """(out / "audit.json").write_text('{"where": "machine"}')
folder = out / "tracking" / "tensorboard"; folder.mkdir(parents=True); (folder / "events").write_text("events")
time.sleep(0.5)
save()
status""",
)


def test_all_of_it_reaches_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path / "bin", TWO_CARDS)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    machine = Machine(tmp_path)
    (tmp_path / "trainer.py").write_text(REPORTING)
    machine.write_ticket()
    machine.run()
    beat, result = machine.json("heartbeat.json"), machine.json(RESULT)
    assert beat["losses"] == [1.0, 0.5, 0.33333]
    assert beat["progress"]["step"] == len((machine.store / METRICS).read_text().splitlines()) == 3
    assert beat["gpu"]["name"] == "NVIDIA A10G"
    assert result["gpu"]["peak_memory_bytes"] == 15123 * MIB
    assert machine.json(AUDIT) == {"where": "machine"}
    with tarfile.open(machine.store / TRACKING) as tar:
        assert tar.getnames() == ["tensorboard/events"]


def test_trackers_files_that_are_too_many_stay_there(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    (tmp_path / "trainer.py").write_text(REPORTING.replace('write_text("events")', "open('wb').truncate(201 << 20)"))
    machine.write_ticket()
    machine.run()
    assert not machine.has(TRACKING)
    assert json.loads((machine.store / RESULT).read_text())["status"] == "completed"
    assert "the files of the trackers stay here" in (machine.store / "train.log").read_text()


def test_a_ticket_of_an_older_client_gets_neither(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    (tmp_path / "trainer.py").write_text(REPORTING)
    known = ("outcome.json", "heartbeat.json", "train.log", METRICS, "adapter.tar", RESULT)
    machine.write_ticket(outputs={name: machine.output(name) for name in known})
    machine.run()
    assert machine.json(RESULT)["status"] == "completed"
    assert not machine.has(AUDIT)
    assert not machine.has(TRACKING)
