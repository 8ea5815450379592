"""Pods that really run: as processes, and as containers of the Docker engine."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import client_of
from .helpers import create, until
from .runpod import DockerRunner, PodRequest, ProcessRunner, RunpodDouble, bridge_address

L4 = "NVIDIA L4"

# What a machine does at its end: it asks GraphQL, with its own key and an agent's name, to be taken down.
END_MYSELF = """
import json, os, time, urllib.request
body = {"query": 'mutation { podTerminate(input: {podId: "%s"}) }' % os.environ["RUNPOD_POD_ID"]}
headers = {"Authorization": "Bearer " + os.environ["RUNPOD_API_KEY"], "User-Agent": "supervisor/1",
           "Content-Type": "application/json"}
url = os.environ["RUNPOD_API_BASE_URL"] + "/graphql"
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
print(opener.open(urllib.request.Request(url, json.dumps(body).encode(), headers)).read().decode(), flush=True)
time.sleep(600)
"""
NOTE_AND_EXIT = 'import os, sys; print("start", os.listdir("."), *sys.argv[1:]); open("note", "w").close()'


def run(server: RunpodDouble, **more: Any) -> str:
    request = PodRequest(name="p", image="i", gpu_id=L4, **more)
    return server.service.create(request).id


def test_a_process_that_exits_is_started_again_on_a_fresh_disk() -> None:
    with RunpodDouble(runner=ProcessRunner([sys.executable, "-c", NOTE_AND_EXIT])) as server:
        pod = server.service.get(run(server, args="--mode 'two words'"))
        until(lambda: server.log_of(pod).count("start") >= 3, "three starts")
        lines = server.log_of(pod).splitlines()
        assert set(lines) == {"start [] --mode two words"}
        assert set(pod.exit_codes) == {0}


def test_a_process_sees_the_pods_environment_and_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "ours")
    show = "import os, time; print(sorted(os.environ), flush=True); time.sleep(600)"
    with RunpodDouble(runner=ProcessRunner([sys.executable, "-c", show])) as server:
        server.secrets["hf"] = "hf_SECRET"
        pod = server.service.get(run(server, env={"HF_TOKEN": "{{ RUNPOD_SECRET_hf }}"}))
        until(lambda: "HF_TOKEN" in server.log_of(pod), "the printed environment")
        printed = server.log_of(pod)
    for name in ("RUNPOD_POD_ID", "RUNPOD_API_KEY", "RUNPOD_API_BASE_URL"):
        assert name in printed
    assert "AWS_SECRET_ACCESS_KEY" not in printed


def test_a_process_ends_its_own_pod() -> None:
    with RunpodDouble(runner=ProcessRunner([sys.executable, "-c", END_MYSELF])) as server:
        pod_id = run(server)
        until(lambda: not server.live_pods(), "the pod's own end")
        with client_of(server, server.api_key) as http:
            assert http.get(f"/v2/pods/{pod_id}").status_code == 404
        assert server.calls_of("podTerminate")[0].by == "pod"


def test_terminate_ends_the_whole_process_group_and_its_folder(tmp_path: Path) -> None:
    child = "import os, subprocess, sys, time; p = subprocess.Popen(['sleep', '600']); "
    child += "print('pids', os.getpid(), p.pid, os.getcwd(), flush=True); time.sleep(600)"
    with RunpodDouble(runner=ProcessRunner([sys.executable, "-c", child])) as server:
        pod = server.service.get(run(server))
        until(lambda: "pids" in server.log_of(pod), "the child")
        _, parent, grandchild, folder = server.log_of(pod).split()
        server.service.terminate(pod.id)
        for pid in (parent, grandchild):
            until(lambda pid=pid: not _alive(int(pid)), f"the end of {pid}")  # type: ignore[misc]
        until(lambda: not Path(folder).exists(), "the folder's end")


def test_a_preempted_process_has_its_five_seconds(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    script = f"""
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(saved)!r}).write_text("yes"), sys.exit(0)))
print("ready", flush=True)
time.sleep(600)
"""
    with RunpodDouble(runner=ProcessRunner([sys.executable, "-c", script])) as server:
        pod = server.service.get(run(server))
        until(lambda: "ready" in server.log_of(pod), "the handler")
        server.preempt(pod.id)
        until(saved.exists, "the save")
        assert (pod.status, pod.starts) == ("EXITED", 1)


def test_a_command_that_is_not_there_stays_starting() -> None:
    with RunpodDouble(runner=ProcessRunner(["/no/such/program"])) as server:
        pod = server.service.get(run(server))
        until(lambda: pod.starts >= 2, "the second try")
        assert "cannot start" in server.log_of(pod)
        assert not pod.container_runs


def test_closing_the_server_ends_everything() -> None:
    script = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    with RunpodDouble(runner=ProcessRunner([sys.executable, "-c", script])) as server:
        pod = server.service.get(run(server))
        until(lambda: server.log_of(pod).strip() != "", "the process id")
        pid = int(server.log_of(pod))
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    """Zombies are dead: in a container nobody may be there to reap a grandchild."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # the latter, when it ends while it is read
        return False
    return state != "Z"


@pytest.fixture
def image(base_image: str) -> str:
    """An image with python in it."""
    return base_image


@pytest.fixture
def docker_double(image: str) -> Iterator[RunpodDouble]:
    """A double that containers can reach."""
    with RunpodDouble(runner=DockerRunner(), hosts=("127.0.0.1", bridge_address())) as server:
        yield server
        assert server.defects == []


def test_a_container_is_restarted_and_ends_its_own_pod(docker_double: RunpodDouble, image: str) -> None:
    import docker

    label = docker_double.runner.label  # type: ignore[attr-defined]
    script = "import os; print('start', os.path.exists('/note'), flush=True); open('/note', 'w').close()"
    with client_of(docker_double, docker_double.api_key) as http:
        once = create(http, "once", image=image, args=shlex.join(["python3", "-c", script]))
        pod = docker_double.service.get(once["id"])
        until(lambda: docker_double.log_of(pod).count("start") >= 2, "the restart", 120)
        assert set(docker_double.log_of(pod).splitlines()) == {"start False"}
        assert http.delete(f"/v2/pods/{once['id']}").status_code == 204
        ending = create(http, "ending", image=image, args=shlex.join(["python3", "-c", END_MYSELF]))
        until(lambda: not docker_double.live_pods(), "the pod's own end", 120)
        assert http.get(f"/v2/pods/{ending['id']}").status_code == 404
    docker_double.close()
    left = docker.from_env().containers.list(all=True, filters={"label": f"cloudft.double={label}"})
    assert left == []


def test_an_image_that_is_not_there_stays_starting(docker_double: RunpodDouble) -> None:
    with client_of(docker_double, docker_double.api_key) as http:
        pod_id = create(http, image="cloudft-no-such-image:1")["id"]
        pod = docker_double.service.get(pod_id)
        until(lambda: pod.starts >= 2, "the second try", 120)
        shown = http.get(f"/v2/pods/{pod_id}").json()
    assert (shown["status"], shown["runtime"]) == ("STARTING", None)
    assert "error" in docker_double.log_of(pod)
