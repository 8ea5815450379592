"""The machine's own end, on a server that restarts whatever exits and bills until a pod is terminated."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import teardown
from jobs.ticket import ENV_DEADLINE, ENV_TICKET, ENV_WORK, RESULT
from tests.doubles.helpers import until
from tests.doubles.runpod import DockerRunner, Pod, PodRequest, ProcessRunner, RunpodDouble, bridge_address
from tests.doubles.runpod.runners import ProcessContainer
from tests.jobs.test_supervisor import Machine
from tests.services.engine import DockerEngine

REPO = Path(__file__).resolve().parents[2]
MAIN = [sys.executable, "-P", "-m", "jobs.supervisor"]
NO_TICKET = "http://127.0.0.1:9/ticket"
PATHS = {"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": str(REPO)}


@contextlib.contextmanager
def double(*command: str, pod_key_rest: bool = False) -> Iterator[RunpodDouble]:
    """RunPod, whose containers are this command as a process; the supervisor by default."""
    with RunpodDouble(runner=ProcessRunner(command or MAIN, env=PATHS), pod_key_rest=pod_key_rest) as server:
        yield server
        assert server.defects == []


def rent(server: RunpodDouble, **env: object) -> Pod:
    request = PodRequest(name="p", image="i", gpu_id="NVIDIA L4", env={k: str(v) for k, v in env.items()})
    return server.service.create(request)


def until_gone(server: RunpodDouble, pod: Pod) -> None:
    """By its own key, and by no other; the server notes a call after it has answered it."""
    until(lambda: pod.gone, "the pod's own end", 60)
    until(lambda: bool(_heard(server)), "the note of the call")
    assert _heard(server) == {"pod"}


def _heard(server: RunpodDouble) -> set[str]:
    return {call.by for call in server.calls if call.status in (200, 204)}


def process_of(pod: Pod) -> int:
    """The process that is PID 1 of the pod's container."""
    until(lambda: isinstance(pod.container, ProcessContainer), "the container")
    assert isinstance(pod.container, ProcessContainer)
    return pod.container.process.pid


def test_elsewhere_it_returns_at_once_and_touches_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(teardown.ENV_POD, raising=False)
    before = signal.getsignal(signal.SIGTERM)
    teardown.end_own_machine()
    teardown.end_when_overdue(0)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({}, f"'{ENV_DEADLINE}' is missing"),
        ({ENV_DEADLINE: "soon", ENV_TICKET: NO_TICKET}, "'soon' is missing or no number"),
        ({ENV_DEADLINE: "nan", ENV_TICKET: NO_TICKET}, f"{ENV_DEADLINE}=nan"),
        ({ENV_DEADLINE: "inf", ENV_TICKET: NO_TICKET}, f"{ENV_DEADLINE}=inf"),
        ({ENV_DEADLINE: "4e9"}, f"'{ENV_TICKET}' is missing"),
        ({ENV_DEADLINE: "1", ENV_TICKET: NO_TICKET}, "the end of this machine"),
        ({ENV_DEADLINE: "4e9", ENV_TICKET: NO_TICKET, ENV_WORK: "/dev/null/work"}, "NotADirectoryError"),
        ({ENV_DEADLINE: "4e9", ENV_TICKET: "file:///no/such/ticket"}, "cannot read the ticket"),
    ],
)
def test_a_start_that_fails_says_why_ends_the_machine_and_is_never_restarted(env: dict[str, str], said: str) -> None:
    with double() as server:
        pod = rent(server, **env)
        until_gone(server, pod)
        assert said in server.log_of(pod)
        assert pod.starts == 1


def test_a_ticket_that_never_comes_is_waited_for_no_longer_than_the_deadline() -> None:
    with double() as server:
        pod = rent(server, **{ENV_DEADLINE: time.time() + 3, ENV_TICKET: NO_TICKET})
        until_gone(server, pod)
        assert pod.starts == 1
        assert "cannot read the ticket" in server.log_of(pod)


def supervisor_with(trainer: Path) -> list[str]:
    """The entry point with a small stand-in for the trainer."""
    code = (
        "import sys; from jobs import supervisor;"
        f"supervisor.Supervisor.__init__.__defaults__ = ([sys.executable, {str(trainer)!r}],);"
        "sys.exit(supervisor.main())"
    )
    return [sys.executable, "-c", code]


def test_a_whole_life_ends_with_the_result_and_then_the_machine(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.write_ticket()
    with double(*supervisor_with(tmp_path / "trainer.py")) as server:
        pod = rent(server, **{ENV_DEADLINE: machine.deadline, ENV_TICKET: machine.url("ticket.json")})
        until_gone(server, pod)
        log = server.log_of(pod)
        assert pod.terminated_at is not None
        assert machine.json(RESULT)["ended_at"] < pod.terminated_at
        assert log.index("end: completed") < log.index(f"the end of this machine, pod {pod.id}")
        assert pod.api_key not in log


def test_a_restart_before_the_end_does_not_train_again_and_asks_on(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.write_ticket()
    with double(*supervisor_with(tmp_path / "trainer.py")) as server:
        server.faults.bad_gateway("podTerminate", times=None)
        pod = rent(server, **{ENV_DEADLINE: machine.deadline, ENV_TICKET: machine.url("ticket.json")})
        until(lambda: "asked 2 times" in server.log_of(pod), "two tries")
        first = machine.json(RESULT)
        os.kill(process_of(pod), signal.SIGKILL)
        until(lambda: "has ended before" in server.log_of(pod), "the second start")
        assert not pod.gone
        server.faults.clear()
        until_gone(server, pod)
        assert pod.starts == 2
        assert machine.json(RESULT) == first


def test_sigterm_does_not_end_the_one_that_must_end_the_machine() -> None:
    with double() as server:
        server.faults.bad_gateway("podTerminate", times=None)
        pod = rent(server)
        until(lambda: "asked 1 times" in server.log_of(pod), "the first try")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            os.kill(process_of(pod), number)
        until(lambda: "asked 2 times" in server.log_of(pod), "more tries")
        assert (pod.starts, pod.exit_codes) == (1, [])
        server.faults.clear()
        until_gone(server, pod)


@pytest.mark.parametrize("fault", ["bad_gateway", "drop_request", "rate_limit"])
def test_it_asks_until_it_is_heard(fault: str) -> None:
    with double() as server:
        struck = getattr(server.faults, fault)("podTerminate", times=2)
        pod = rent(server)
        until_gone(server, pod)
        assert struck.hits == 2
        assert pod.starts == 1


def test_an_end_that_was_accepted_and_lost_is_asked_for_again() -> None:
    with double() as server:
        lost = server.faults.slow_terminate(times=2)
        pod = rent(server)
        until_gone(server, pod)
        assert lost.hits == 2


def test_rest_is_the_other_way_when_graphql_is_down() -> None:
    with double(pod_key_rest=True) as server:
        server.faults.bad_gateway("podTerminate", times=None)
        pod = rent(server)
        until_gone(server, pod)
        assert [call.by for call in server.calls_of("deletePod") if call.status == 204] == ["pod"]


def test_a_stuck_supervisor_is_overruled() -> None:
    code = (
        "import sys, time; from jobs import supervisor, teardown; teardown.OVERDUE = 0.2;"
        "supervisor.Supervisor.run = lambda self: time.sleep(600); sys.exit(supervisor.main())"
    )
    with double(sys.executable, "-c", code) as server:
        deadline = time.time() + 1
        pod = rent(server, **{ENV_DEADLINE: deadline, ENV_TICKET: NO_TICKET})
        until_gone(server, pod)
        assert time.time() > deadline


def test_a_closed_console_and_a_broken_address_do_not_end_the_loop() -> None:
    code = (
        "import os, sys, threading, time; from jobs import teardown;"
        "base = os.environ['RUNPOD_API_BASE_URL']; os.environ['RUNPOD_API_BASE_URL'] = 'nonsense';"
        "threading.Timer(1.5, lambda: os.environ.__setitem__('RUNPOD_API_BASE_URL', base + '/')).start();"
        "sys.stdout.close(); teardown.end_own_machine(); os._exit(3)"
    )
    with double(sys.executable, "-c", code) as server:
        pod = rent(server)
        until_gone(server, pod)
        assert (pod.starts, pod.exit_codes) == (1, [])


def test_what_is_said_never_holds_the_key() -> None:
    """A server that repeats what it was sent."""
    code = (
        "import http.server, os, threading; from jobs import teardown\n"
        "class Echo(http.server.BaseHTTPRequestHandler):\n"
        "    def do_POST(self):\n"
        "        self.send_response(500, 'no'); self.end_headers()\n"
        "        self.wfile.write(self.headers['Authorization'].encode())\n"
        "    do_DELETE = do_POST\n"
        "    def log_message(self, *a): pass\n"
        "server = http.server.HTTPServer(('127.0.0.1', 0), Echo)\n"
        "threading.Thread(target=server.serve_forever, daemon=True).start()\n"
        "os.environ['RUNPOD_API_BASE_URL'] = f'http://127.0.0.1:{server.server_port}'\n"
        "teardown.end_own_machine()"
    )
    with double(sys.executable, "-c", code) as server:
        pod = rent(server)
        until(lambda: "asked 2 times" in server.log_of(pod), "two tries")
        assert "HTTP 500 Bearer ***" in server.log_of(pod)
        assert pod.api_key not in server.log_of(pod)


def test_the_pods_id_cannot_change_the_question(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def note(method: str, path: str, body: bytes | None = None) -> str:
        asked.append(f"{method} {path} {json.loads(body)['query'] if body else ''}".strip())
        return ""

    monkeypatch.setattr(teardown, "_ask", note)
    teardown._ask_graphql('a"}) { id } }')
    teardown._ask_rest("../pods?x")
    assert asked == [
        'POST /graphql mutation { podTerminate(input: {podId: "a\\"}) { id } }"}) }',
        "DELETE /v2/pods/..%2Fpods%3Fx",
    ]


@pytest.fixture
def supervisor_image(docker_engine: DockerEngine, base_image: str, tmp_path: Path) -> Iterator[str]:
    """The supervisor alone, in an image as small as it can be."""
    import shutil

    shutil.copytree(REPO / "jobs", tmp_path / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "Dockerfile").write_text(
        f"FROM {base_image}\nCOPY jobs /opt/cloudft/jobs\n"
        "ENV PYTHONPATH=/opt/cloudft PYTHONUNBUFFERED=1 CLOUDFT_WORK=/tmp/work\n"
        'ENTRYPOINT ["python", "-m", "jobs.supervisor"]\n'
    )
    tag = f"cloudft-supervisor:test-{os.getpid()}"
    docker_engine.build(tmp_path, tag, dockerfile="Dockerfile", args={})
    yield tag
    docker_engine.run("rmi", "-f", tag)


def test_as_pid_1_of_a_real_container(docker_engine: DockerEngine, supervisor_image: str) -> None:
    with RunpodDouble(runner=DockerRunner(), hosts=("127.0.0.1", bridge_address())) as server:
        server.faults.bad_gateway("podTerminate", times=None)
        request = PodRequest(name="p", image=supervisor_image, gpu_id="NVIDIA L4")
        pod = server.service.create(request)
        until(lambda: "asked 1 times" in server.log_of(pod), "the first try", 120)
        label = server.runner.label  # type: ignore[attr-defined]
        found = docker_engine.run("ps", "-q", "--filter", f"label=cloudft.double={label}").stdout.split()
        docker_engine.run("kill", "--signal", "TERM", *found)
        until(lambda: "asked 2 times" in server.log_of(pod), "more tries", 60)
        assert (pod.starts, pod.exit_codes) == (1, [])
        server.faults.clear()
        until_gone(server, pod)
        assert server.defects == []
