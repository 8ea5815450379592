"""The trainer starts beside the download and waits: what comes first, and what ends the wait. No test reads a clock."""

from __future__ import annotations

import contextlib
import http.server
import json
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs import fetching, ready
from jobs.ticket import ADAPTER, RESULT, Input
from jobs.transfer import TransferError
from tests.jobs.test_supervisor import Machine, taken_away
from tests.jobs.train_fixtures import make_work, outcome, trainer
from tests.local.hub_fixture import COMMIT, REPOSITORY, FakeHub

CONTENT = b'{"messages": []}\n'
WAITS = "libraries are here"
BEGINS = "trainer begins"


@dataclass
class SlowStore:
    """Answers a GET once it is told to, with ``status``; ``asked`` counts the requests that are waiting or answered."""

    status: int = 200
    asked: int = 0
    go: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        store = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                store.asked += 1
                store.go.wait()
                with contextlib.suppress(OSError):  # whoever asked has been killed
                    self.send_response(store.status)
                    self.send_header("Content-Length", str(len(CONTENT)))
                    self.end_headers()
                    self.wfile.write(CONTENT)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{name}"


@pytest.fixture
def slow() -> Iterator[SlowStore]:
    store = SlowStore()
    yield store
    store.go.set()
    store.server.shutdown()
    store.server.server_close()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A repository with what a model needs, the weights a second time, and more."""
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors", "consolidated.safetensors", "README.md"):
        (folder / name).write_bytes(name.encode())
    found = FakeHub(folder)
    monkeypatch.setenv("HF_ENDPOINT", found.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    yield found
    found.stop()


def until(what: str, condition: Callable[[], Any], seconds: float = 60) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, f"{what} never came"
        time.sleep(0.02)


@dataclass
class Waiting:
    """A machine whose inputs do not come, and whose trainer waits for them."""

    machine: Machine
    process: subprocess.Popen[str]

    @property
    def log(self) -> str:
        path = self.machine.root / self.machine.work / "train.log"
        return path.read_text() if path.exists() else ""

    def end(self) -> None:
        """Wait for it; nothing that it started is left."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        assert self.process.wait(timeout=60) == 0
        until("the trainer's end", lambda: all(_gone(member) for member in family))


def _gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def waiting(machine: Machine, slow: SlowStore, names: tuple[str, ...] = ("train.jsonl",), word: str = WAITS) -> Waiting:
    inputs = tuple(Input(name, slow.url(name), machine.input_sha, len(CONTENT)) for name in names)
    machine.write_ticket(inputs=inputs)
    found = Waiting(machine, machine.start())
    until(word, lambda: word in found.log and slow.asked)
    return found


def test_libraries_are_there_before_the_inputs_which_come_side_by_side(tmp_path: Path, slow: SlowStore) -> None:
    names = ("train.jsonl", "validation.jsonl", "base/model.safetensors")
    found = waiting(Machine(tmp_path), slow, names)
    # Not one of them is answered, and all are asked for.
    until("the third request", lambda: slow.asked == len(names))
    assert BEGINS not in found.log
    assert "fetch" in found.log
    slow.go.set()
    found.end()
    assert found.machine.json(RESULT)["status"] == "completed"
    assert found.log.index(WAITS) < found.log.index("supervisor: train") < found.log.index(BEGINS)
    for name in names:
        assert (tmp_path / "work" / "inputs" / name).read_bytes() == CONTENT


@pytest.mark.parametrize("how", ["sigterm", "stop object"])
def test_a_stop_while_the_trainer_waits_ends_all_of_it(tmp_path: Path, slow: SlowStore, how: str) -> None:
    found = waiting(Machine(tmp_path), slow)
    if how == "sigterm":
        found.process.send_signal(signal.SIGTERM)
    else:
        (found.machine.store / "stop").write_text("stop")
    found.end()
    told = found.machine.json("outcome.json")
    assert told["status"] == "stopped"
    assert ("SIGTERM" if how == "sigterm" else "cancelled") in told["reason"]
    assert BEGINS not in found.log
    assert not found.machine.has(RESULT)


def test_a_rented_machine_that_is_taken_away_while_its_trainer_waits_just_ends(tmp_path: Path, slow: SlowStore) -> None:
    found = waiting(Machine(tmp_path, rented=True), slow)
    found.process.send_signal(signal.SIGTERM)
    found.end()
    assert "takes this machine away" in found.log
    assert not found.machine.has("outcome.json")


def test_the_deadline_comes_while_the_trainer_waits(tmp_path: Path, slow: SlowStore) -> None:
    found = waiting(Machine(tmp_path, seconds=10, reserve=3), slow)
    found.end()
    told = found.machine.json("outcome.json")
    assert (told["status"], told["reason"]) == ("stopped", "the deadline came before training began")
    assert told["ended_at"] < found.machine.deadline


def test_an_input_that_cannot_be_had_ends_a_trainer_that_waits(tmp_path: Path) -> None:
    slow = SlowStore(status=403)
    found = waiting(Machine(tmp_path), slow)
    slow.go.set()
    found.end()
    told = found.machine.json("outcome.json")
    assert told["status"] == "failed"
    assert "cannot fetch the input train.jsonl" in told["reason"]
    assert BEGINS not in found.log
    slow.server.shutdown()
    slow.server.server_close()


def test_a_trainer_that_breaks_ends_the_run_before_its_inputs_are_here(tmp_path: Path, slow: SlowStore) -> None:
    found = waiting(Machine(tmp_path, mode="broken"), slow, word="no such library")
    found.end()
    told = found.machine.json("outcome.json")
    assert (told["status"], "exit code 1" in told["reason"]) == ("failed", True)


def test_what_an_earlier_machine_trained_is_saved_when_the_next_trainer_breaks(tmp_path: Path, slow: SlowStore) -> None:
    left = taken_away(tmp_path).json("checkpoint.json")["step"]
    second = Machine(tmp_path, mode="broken", rented=True, work="elsewhere")
    waiting(second, slow, word="no such library").end()
    assert second.json(RESULT)["status"] == "stopped"
    with tarfile.open(second.store / ADAPTER) as tar:
        weights = tar.extractfile("adapter_model.safetensors")
        assert weights is not None
        assert weights.read() == b"weights of step %d" % left


def test_what_an_earlier_machine_trained_is_saved_when_an_input_cannot_be_had(tmp_path: Path) -> None:
    left = taken_away(tmp_path).json("checkpoint.json")["step"]
    second = Machine(tmp_path, mode="keeps", rented=True, work="elsewhere")
    second.input_sha = "0" * 64
    second.write_ticket(attempt=2)
    second.run()
    assert second.json(RESULT)["status"] == "stopped"
    assert "sha256" in second.json(RESULT)["reason"]
    assert second.json(RESULT)["adapter_step"] == left


def test_a_trainer_that_waits_does_not_outlive_its_supervisor(tmp_path: Path, slow: SlowStore) -> None:
    """The stand-in asks the kernel for nothing: it sees by itself that its parent is gone."""
    found = waiting(Machine(tmp_path), slow)
    (child,) = psutil.Process(found.process.pid).children()
    found.process.kill()
    found.process.communicate()
    until("the trainer's end", lambda: _gone(child))
    assert BEGINS not in found.log


def test_the_word_of_an_earlier_life_counts_no_more(tmp_path: Path, slow: SlowStore) -> None:
    machine = Machine(tmp_path)
    (tmp_path / "work").mkdir()
    ready.announce(tmp_path / "work")
    found = waiting(machine, slow)
    assert BEGINS not in found.log
    slow.go.set()
    found.end()
    assert found.log.index("supervisor: train") < found.log.index(BEGINS)


def test_a_base_of_the_hub_comes_before_the_trainer_begins(tmp_path: Path, hub: FakeHub) -> None:
    machine = Machine(tmp_path)
    base = {"source": "hub", "id": REPOSITORY, "revision": COMMIT}
    machine.write_ticket(spec={"mode": "quick", "base": base})
    machine.run()
    log = (machine.store / "train.log").read_text()
    assert machine.json(RESULT)["status"] == "completed"
    assert log.index(f"the base {REPOSITORY} is here") < log.index(BEGINS)
    assert set(hub.served) == {"model.safetensors", "config.json", "tokenizer.json"}


def test_a_base_that_does_not_come_is_left_to_the_trainer(tmp_path: Path, hub: FakeHub) -> None:
    machine = Machine(tmp_path)
    base = {"source": "hub", "id": "owner/nowhere", "revision": COMMIT}
    machine.write_ticket(spec={"mode": "quick", "base": base})
    machine.run()
    assert machine.json(RESULT)["status"] == "completed"
    assert "the base owner/nowhere did not come beside the imports" in (machine.store / "train.log").read_text()


def test_a_download_of_the_base_that_nobody_waits_for_is_ended(tmp_path: Path, slow: SlowStore) -> None:
    env = {"HF_ENDPOINT": slow.url("")[:-1], "HF_HUB_CACHE": str(tmp_path / "cache")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        fetching.fetch_base((REPOSITORY, COMMIT), tmp_path / "log", lambda: not slow.asked)
    assert not [p for p in psutil.Process().children() if "jobs.base_download" in p.cmdline()]


def test_the_first_failure_ends_the_wait_and_starts_nothing_more() -> None:
    begun, held = [], threading.Event()

    def fails() -> None:
        begun.append("fails")
        raise TransferError("gone", final=True)

    def holds() -> None:
        begun.append("holds")
        held.wait()

    def never() -> None:
        begun.append("never")

    with pytest.raises(TransferError, match="gone"):
        fetching.side_by_side([holds, fails, never, never], at_once=2)
    held.set()
    for thread in threading.enumerate():
        if thread.name == "fetch":
            thread.join()
    assert sorted(begun) == ["fails", "holds"]


@pytest.mark.train
def test_the_real_trainer_waits_with_its_libraries_and_leaves_what_is_there(tmp_path: Path) -> None:
    work = make_work(tmp_path / "work", "owner/none", [[{"role": "user", "content": "?"}]])
    adapter = work / "out" / "adapter"
    adapter.mkdir(parents=True)
    with trainer(work, "--wait") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "libraries and device took" in line:
                break
        process.send_signal(signal.SIGTERM)
        text, errors = process.communicate(timeout=60)
    assert process.returncode == 0, text + errors
    assert outcome(work)["status"] == "stopped"
    assert adapter.is_dir()


def test_it_waits_for_the_word_alone(tmp_path: Path) -> None:
    asked = iter([False, False, True])
    assert ready.wait(tmp_path, lambda: next(asked)) > 0
    ready.announce(tmp_path)
    said = float((tmp_path / ready.NAME).read_text())
    assert ready.wait(tmp_path, lambda: False) == said
    assert json.loads((tmp_path / ready.NAME).read_text()) == said
    assert [path.name for path in tmp_path.iterdir()] == [ready.NAME]
