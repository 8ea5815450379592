"""The supervisor as a real process with a small stand-in for the trainer; URLs are files of a folder store."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.ticket import (
    ADAPTER,
    ATTEMPT_OUTPUTS,
    CHECKPOINT,
    ENV_DEADLINE,
    ENV_TICKET,
    ENV_WORK,
    RESULT,
    RUN_OUTPUTS,
    Input,
    Output,
    Ticket,
)

REPO = Path(__file__).resolve().parents[2]

# Behaves like jobs.train towards the supervisor: same files, same signals, no torch.
TRAINER = """
import json, signal, sys, time
from pathlib import Path
work = Path(sys.argv[sys.argv.index("--work") + 1]); out = work / "out"; out.mkdir(exist_ok=True)
mode = json.loads((work / "spec.json").read_text())["mode"]
asked = []
if mode == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
from jobs import ready
if mode == "broken": sys.exit("boom: no such library")
print("libraries are here", flush=True)
ready.wait(work, lambda: bool(asked))
if asked:
    (out / "trainer.json").write_text(json.dumps({"status": "stopped", "reason": "SIGTERM while it waited"}))
    sys.exit()
print("trainer begins", (work / "inputs" / "train.jsonl").read_text().strip(), flush=True)
def save():
    folder = out / "adapter"; folder.mkdir(exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights"); (folder / "adapter_config.json").write_text("{}")
steps = {"quick": 3, "keeps": 100}.get(mode, 10_000)
if mode == "crash": sys.exit("boom: no memory")
if mode == "deaf": save()
from jobs.checkpoints import seal, sealed
found = sealed(work / "checkpoints")
began = found[0].step if found else 0
lines = (found[0].path / "metrics.jsonl").read_text() if found else ""
(out / "metrics.jsonl").write_text(lines)
print("trainer goes on from", began, flush=True)
def checkpoint(step):
    folder = work / "checkpoints" / f"checkpoint-{step}"; folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text((out / "metrics.jsonl").read_text())
    (folder / "adapter_model.safetensors").write_bytes(b"weights of step %d" % step)
    (folder / "adapter_config.json").write_text("{}")
    seal(folder, step, "spec", time.time())
for step in range(began + 1, steps + 1):
    line = json.dumps({"step": step, "max_steps": steps, "loss": 1 / step})
    with (out / "metrics.jsonl").open("a") as f: f.write(line + "\\n")
    time.sleep(0.02)
    if mode == "keeps" and step < steps and (asked or step % 5 == 0): checkpoint(step)
    if asked: break
save()
status = "stopped" if asked else "completed"
(out / "trainer.json").write_text(json.dumps({"status": status, "reason": "", "steps_done": step}))
"""


@dataclass
class Machine:
    """A supervisor under test, with its store on disk."""

    root: Path
    mode: str = "quick"
    seconds: float = 60.0
    reserve: float = 10.0
    rented: bool = False
    work: str = "work"
    python: str = sys.executable

    def __post_init__(self) -> None:
        self.store = self.root / "store"
        self.store.mkdir(parents=True, exist_ok=True)
        (self.root / "trainer.py").write_text(TRAINER)
        data = b'{"messages": []}\n'
        (self.store / "train.jsonl").write_bytes(data)
        self.input_sha = hashlib.sha256(data).hexdigest()
        self.input_bytes = len(data)
        self.deadline = time.time() + self.seconds

    def write_ticket(self, **changes: Any) -> None:
        outputs = {name: self.output(name) for name in (*ATTEMPT_OUTPUTS, *RUN_OUTPUTS)}
        values: dict[str, Any] = {
            "run_id": "run-1",
            "attempt": 1,
            "name": "cloudft-run-1-a1-1",
            "deadline": self.deadline,
            "save_reserve": self.reserve,
            "heartbeat_every": 0.1,
            "spec": {"mode": self.mode},
            "inputs": (Input("train.jsonl", self.url("train.jsonl"), self.input_sha, self.input_bytes),),
            "outputs": outputs,
            "stop": self.url("stop"),
            "rented": self.rented,
        }
        (self.store / "ticket.json").write_bytes(Ticket(**(values | changes)).to_json())

    def url(self, name: str) -> str:
        return (self.store / name).as_uri()

    def output(self, name: str) -> Output:
        return Output(put=self.url(name), get=self.url(name))

    def start(self) -> subprocess.Popen[str]:
        code = (
            "import sys; from pathlib import Path; from jobs.supervisor import Supervisor; import os;"
            f"Supervisor(float(os.environ['{ENV_DEADLINE}']), os.environ['{ENV_TICKET}'],"
            f" Path(os.environ['{ENV_WORK}']), [{self.python!r}, {str(self.root / 'trainer.py')!r}]).run()"
        )
        env = os.environ | {
            ENV_DEADLINE: str(self.deadline),
            ENV_TICKET: self.url("ticket.json"),
            ENV_WORK: str(self.root / self.work),
            "PYTHONPATH": str(REPO),
        }
        return subprocess.Popen(
            [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self) -> str:
        process = self.start()
        text, _ = process.communicate(timeout=60)
        assert process.returncode == 0, text
        return text

    def wait_for(self, name: str, text: str) -> None:
        give_up = time.monotonic() + 30
        while time.monotonic() < give_up:
            path = self.store / name
            if path.exists() and text in path.read_text():
                return
            time.sleep(0.02)
        raise AssertionError(f"{text!r} never came into {name}")

    def json(self, name: str) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.store / name).read_text())
        return value

    def has(self, name: str) -> bool:
        return (self.store / name).exists()


def test_a_run_ends_with_a_verified_adapter_and_the_result_last(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.write_ticket()
    machine.run()
    result = machine.json(RESULT)
    assert (result["status"], result["attempt"], result["trainer"]["steps_done"]) == ("completed", 1, 3)
    artifact = result["artifacts"]["adapter"]
    tar_bytes = (machine.store / ADAPTER).read_bytes()
    assert artifact["sha256"] == hashlib.sha256(tar_bytes).hexdigest()
    assert artifact["bytes"] == len(tar_bytes)
    with tarfile.open(machine.store / ADAPTER) as tar:
        inside = {m.name: hashlib.sha256(tar.extractfile(m).read()).hexdigest() for m in tar}  # type: ignore[union-attr]
    assert inside == artifact["files"]
    assert machine.json("outcome.json") == result
    assert set(result["phases"]) >= {"boot", "fetch", "train", "upload"}
    order = ["metrics.jsonl", "outcome.json", RESULT]
    times = [(machine.store / name).stat().st_mtime_ns for name in order]
    assert times == sorted(times)
    assert "trainer begins" in (machine.store / "train.log").read_text()
    assert machine.json("heartbeat.json")["progress"]["step"] == 3


def test_a_restarted_container_finds_its_outcome_and_does_not_train_again(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.write_ticket()
    machine.run()
    (machine.store / ADAPTER).unlink()
    text = machine.run()
    assert "has ended before" in text
    assert not machine.has(ADAPTER)


@pytest.mark.parametrize("how", ["sigterm", "stop object"])
def test_a_soft_stop_saves_what_is_trained(tmp_path: Path, how: str) -> None:
    machine = Machine(tmp_path, mode="long")
    machine.write_ticket()
    process = machine.start()
    machine.wait_for("metrics.jsonl", '"step": 5')
    if how == "sigterm":
        process.send_signal(signal.SIGTERM)
    else:
        (machine.store / "stop").write_text("stop")
    process.communicate(timeout=30)
    result = machine.json(RESULT)
    assert result["status"] == "stopped"
    assert ("SIGTERM" if how == "sigterm" else "cancelled") in result["reason"]
    assert result["trainer"]["steps_done"] >= 5


def test_training_is_stopped_in_time_to_save_before_the_deadline(tmp_path: Path) -> None:
    machine = Machine(tmp_path, mode="long", seconds=8, reserve=5)
    machine.write_ticket()
    machine.run()
    result = machine.json(RESULT)
    assert (result["status"], result["reason"]) == ("stopped", "the deadline is near")
    assert result["ended_at"] < machine.deadline


def test_a_trainer_that_does_not_stop_is_killed_and_its_last_adapter_kept(tmp_path: Path) -> None:
    machine = Machine(tmp_path, mode="deaf", seconds=8, reserve=6)
    machine.write_ticket()
    machine.run()
    result = machine.json(RESULT)
    assert result["status"] == "stopped"
    assert result["artifacts"]["adapter"]["files"]
    assert result["ended_at"] < machine.deadline


def steps(machine: Machine) -> list[int]:
    return [json.loads(line)["step"] for line in (machine.store / "metrics.jsonl").read_text().splitlines()]


def taken_away(root: Path) -> Machine:
    """A rented machine that its provider took away in the middle of training."""
    machine = Machine(root, mode="keeps", rented=True)
    machine.write_ticket()
    process = machine.start()
    machine.wait_for("metrics.jsonl", '"step": 12')
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=30)
    assert "takes this machine away" in text
    return machine


def test_a_rented_machine_that_is_taken_away_leaves_a_checkpoint_and_the_next_one_goes_on(tmp_path: Path) -> None:
    first = taken_away(tmp_path)
    assert not first.has("outcome.json")
    assert not first.has(RESULT)
    assert not first.has(ADAPTER)
    left = first.json(CHECKPOINT)["step"]
    beat = first.json("heartbeat.json")
    assert left >= 12
    assert (beat["leaving"], beat["checkpoint"]["step"], beat["progress"]["step"]) == (True, left, left)
    assert set(beat["phases"]) >= {"boot", "fetch", "train"}

    second = Machine(tmp_path, mode="keeps", rented=True, work="elsewhere")
    second.write_ticket(attempt=2)
    second.run()
    result = second.json(RESULT)
    assert (result["status"], result["resumed_from"], result["attempt"]) == ("completed", left, 2)
    assert f"trainer goes on from {left}\n" in (second.store / "train.log").read_text()
    assert steps(second) == list(range(1, 101))
    assert second.json("heartbeat.json")["leaving"] is False


def test_what_an_earlier_machine_trained_is_saved_when_the_next_one_fails(tmp_path: Path) -> None:
    left = taken_away(tmp_path).json(CHECKPOINT)["step"]
    second = Machine(tmp_path, mode="crash", rented=True, work="elsewhere")
    second.write_ticket(attempt=2)
    second.run()
    result = second.json(RESULT)
    assert result["status"] == "stopped"
    assert "exit code 1" in result["reason"]
    with tarfile.open(second.store / ADAPTER) as tar:
        weights = tar.extractfile("adapter_model.safetensors")
        assert weights is not None
        assert weights.read() == b"weights of step %d" % left


def test_a_trainer_that_is_killed_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    machine = Machine(tmp_path, mode="keeps")
    machine.write_ticket()
    process = machine.start()
    machine.wait_for("metrics.jsonl", '"step": 12')
    (child,) = psutil.Process(process.pid).children()
    child.kill()
    process.communicate(timeout=30)
    assert machine.json(RESULT)["status"] == "completed"
    assert (machine.store / "train.log").read_text().count("trainer goes on from") == 2
    assert steps(machine) == list(range(1, 101))


def test_a_trainer_that_cannot_be_started_ends_the_run_with_the_reason(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.python = str(tmp_path / "no-python")
    machine.write_ticket()
    assert "the trainer cannot be started" in machine.run()
    outcome = machine.json("outcome.json")
    assert outcome["status"] == "failed"
    assert "no-python" in outcome["reason"]


def test_a_container_that_is_started_again_goes_on_from_its_disk(tmp_path: Path) -> None:
    machine = Machine(tmp_path, mode="keeps")
    machine.write_ticket()
    process = machine.start()
    machine.wait_for("metrics.jsonl", '"step": 12')
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children()]
    for member in family:
        member.kill()
    process.communicate()
    (machine.store / CHECKPOINT).unlink(missing_ok=True)
    machine.run()
    result = machine.json(RESULT)
    assert result["status"] == "completed"
    assert result["resumed_from"] >= 10
    assert steps(machine) == list(range(1, 101))


def test_a_checkpoint_that_the_store_refuses_does_not_stop_the_training(tmp_path: Path) -> None:
    machine = Machine(tmp_path, mode="keeps")
    outputs = {name: machine.output(name) for name in (*ATTEMPT_OUTPUTS, *RUN_OUTPUTS)}
    outputs |= {name: machine.output(f"train.jsonl/{name}") for name in RUN_OUTPUTS if name != RESULT}
    machine.write_ticket(outputs=outputs)
    machine.run()
    assert machine.json(RESULT)["status"] == "completed"
    assert "the store did not take the checkpoint" in (machine.store / "train.log").read_text()


def test_a_crash_is_recorded_with_the_log_and_without_a_result(tmp_path: Path) -> None:
    machine = Machine(tmp_path, mode="crash")
    machine.write_ticket()
    machine.run()
    assert machine.json("outcome.json")["status"] == "failed"
    assert "exit code 1" in machine.json("outcome.json")["reason"]
    assert "boom: no memory" in (machine.store / "train.log").read_text()
    assert not machine.has(RESULT)


def test_a_wrong_input_is_never_trained_on(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.input_sha = "0" * 64
    machine.write_ticket()
    text = machine.run()
    assert machine.json("outcome.json")["status"] == "failed"
    assert "sha256" in machine.json("outcome.json")["reason"]
    assert "trainer begins" not in text
    assert not machine.has(RESULT)


def test_an_input_cannot_leave_the_work_folder(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    url = machine.url("train.jsonl")
    machine.write_ticket(inputs=(Input("../../escaped", url, machine.input_sha, machine.input_bytes),))
    machine.run()
    assert "outside" in machine.json("outcome.json")["reason"]
    assert not (tmp_path / "escaped").exists()


def test_no_ticket_means_no_training_and_an_end(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    assert "cannot read the ticket" in machine.run()
    (machine.store / "ticket.json").write_text('{"schema_version": 99}')
    assert "version 99" in machine.run()


def test_without_a_deadline_nothing_starts() -> None:
    env = {k: v for k, v in os.environ.items() if k != ENV_DEADLINE} | {"PYTHONPATH": str(REPO)}
    done = subprocess.run([sys.executable, "-m", "jobs.supervisor"], env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert ENV_DEADLINE in done.stderr


def test_the_supervisor_is_standard_library_only() -> None:
    """It must work on a machine where nothing else does: no site-packages are visible here."""
    code = (
        "import sys; import jobs.supervisor;"
        "extra = {m.partition('.')[0] for m in sys.modules} - set(sys.stdlib_module_names) - {'jobs', '__main__'};"
        "print(sorted(extra))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(REPO)!r}); {code}"],
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_a_trainer_does_not_outlive_its_supervisor() -> None:
    """Killed, a supervisor can end nobody; a trainer without one keeps no deadline."""
    code = (
        "import subprocess, sys, time;"
        "p = subprocess.Popen([sys.executable, '-c', 'from jobs.environment import end_with_parent; import time;"
        " end_with_parent(); print(1, flush=True); time.sleep(60)'], start_new_session=True);"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(REPO)}, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    lines = {parent.stdout.readline().strip(), parent.stdout.readline().strip()}
    (child,) = (int(line) for line in lines if line != "1")
    parent.kill()
    parent.wait()
    give_up = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < give_up
        time.sleep(0.05)
