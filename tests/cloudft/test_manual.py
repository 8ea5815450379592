"""`cloudft submit --provider manual`: one command, run on machines that have none of our code."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import teardown
from jobs.backends import Backend
from jobs.start import ENV_END, MACHINES, missing_libraries
from local.demo.demo_project import write_demo_project
from local.progress import silent
from local.project import Project
from local.runs.manual import pack_code
from tests.conftest import REPO
from tests.doubles.helpers import until
from tests.doubles.runpod import Pod, PodRequest, ProcessRunner, RunpodDouble
from tests.services.engine import DockerEngine
from tests.services.s3 import S3Server
from tests.test_whole_path import cloudft


@pytest.fixture
def project(tmp_path: Path, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Project:
    project = write_demo_project(tmp_path / "demo", silent)
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    config = yaml.safe_load(project.config_file.read_text())
    config["store"] = {"url": f"s3://{s3_server.create_bucket()}/x", "endpoint_url": s3_server.endpoint}
    config["train"]["max_steps"] = 4
    project.config_file.write_text(yaml.safe_dump(config))
    return project


def ends_with_an_adapter(project: Project, submitted: dict[str, Any], s3_server: S3Server) -> None:
    ended = cloudft(project, "status", "--follow")
    assert (ended["run_id"], ended["status"]) == (submitted["run_id"], "completed"), ended
    assert cloudft(project, "pull")["complete"] is True


@contextlib.contextmanager
def own_pod(command: str) -> Iterator[tuple[RunpodDouble, Pod]]:
    """A pod that the user rented for other things, with its id and key in its environment, and runs the command in.

    It knows nothing of ours: no code, no variable, another folder.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}"
    with RunpodDouble(runner=ProcessRunner([], env={"PATH": path, "OMP_NUM_THREADS": "1"})) as server:
        words = ("sh", "-c", f"{command}; echo back in the shell; sleep 600")
        request = PodRequest(name="my-own-pod", image="i", gpu_id="NVIDIA L4", cmd=words)
        yield server, server.service.create(request)


@pytest.mark.train
def test_the_command_trains_on_a_rented_machine_of_the_users_own_and_leaves_it_alone(
    project: Project, s3_server: S3Server
) -> None:
    """The pod's own id and key are there: what ends a pod of ours must not end this one."""
    submitted = cloudft(project, "submit", "--provider", "manual")
    command = submitted["command"]
    assert "\n" not in command
    assert s3_server.secret_key not in command
    with own_pod(command) as (server, pod):
        until(lambda: "back in the shell" in server.log_of(pod), "the end of the command", 250)
        said = server.log_of(pod)
        assert "supervisor: end: completed" in said
        assert "this machine goes on when the run has ended" in said
        assert "X-Amz-Signature" not in said
        ends_with_an_adapter(project, submitted, s3_server)
        assert not pod.gone
        assert server.calls == []
    assert not list((project.state / "manual").glob("*.json"))


def test_it_ends_the_machine_where_its_owner_says_so(project: Project) -> None:
    """Here of a run that was cancelled meanwhile: there is nothing to do but to end."""
    submitted = cloudft(project, "submit", "--provider", "manual")
    cloudft(project, "cancel", "--now")
    with own_pod(f"{ENV_END}=1 {submitted['command']}") as (server, pod):
        until(lambda: pod.gone, "the pod's own end", 60)
        assert server.live_pods() == []


@pytest.mark.train
def test_the_command_trains_in_the_training_image_and_installs_nothing(
    project: Project, s3_server: S3Server, docker_engine: DockerEngine, train_image: str
) -> None:
    """As docs/providers.md says it, on a machine without GPUs."""
    submitted = cloudft(project, "submit", "--provider", "manual")
    done = docker_engine.run("run", "--rm", "--entrypoint", "sh", train_image, "-c", submitted["command"], check=False)
    assert "supervisor: end: completed" in done.stdout, done.stdout + done.stderr
    assert "installing" not in done.stdout
    ends_with_an_adapter(project, submitted, s3_server)


@pytest.mark.train
def test_the_command_trains_on_a_bare_machine(
    project: Project,
    s3_server: S3Server,
    docker_engine: DockerEngine,
    base_image: str,
    pip_offline: dict[str, str],
) -> None:
    """Python and pip, and nothing else: every library is installed, from its real wheel, into a folder of the run's."""
    submitted = cloudft(project, "submit", "--provider", "manual")
    # Compiling what is imported once takes longer than importing it.
    variables = [f"-e{name}={value}" for name, value in (pip_offline | {"PIP_NO_COMPILE": "1"}).items()]
    pips = "python3 -m pip list"
    inside = f"{pips} >/before; {submitted['command']}; {pips} | diff /before - && echo its own Python is as it was"
    done = docker_engine.run("run", "--rm", *variables, base_image, "sh", "-c", inside, check=False)
    said = done.stdout + done.stderr
    assert "installing into /tmp/cloudft-" in said, said
    assert "supervisor: end: completed" in said, said
    assert "its own Python is as it was" in said, said
    assert "X-Amz-Signature" not in said
    ends_with_an_adapter(project, submitted, s3_server)


def test_a_torch_that_is_there_stays_and_the_rest_installs_beside_it(
    docker_engine: DockerEngine, base_image: str, pip_offline: dict[str, str], tmp_path: Path
) -> None:
    """A notebook's: named one by one, what is missing brings no other torch along; pip agrees that it is all there."""
    wanted, locked = ((REPO / "images" / f"train-{n}.txt").read_text() for n in ("requirements", "constraints"))
    missing, lines = missing_libraries(wanted, locked, {"torch": "2.9.1", "transformers": "4.57.0"})
    assert "torch" not in missing
    assert {"transformers", "trl"} <= set(missing)
    assert not [line for line in lines if line.startswith(("torch=", "triton=", "nvidia-", "cuda-"))]
    (tmp_path / "missing.txt").write_text("\n".join(lines))
    variables = [f"-e{name}={value}" for name, value in pip_offline.items()]
    mount = ["-v", f"{tmp_path}:/in:ro"]
    install = "python3 -m pip install --dry-run --no-deps --target /tmp/site -r /in/missing.txt"
    said = docker_engine.run("run", "--rm", *mount, *variables, base_image, "sh", "-c", install).stdout
    assert "Would install" in said
    assert "transformers-5" in said


def test_what_is_there_as_locked_is_not_installed_again() -> None:
    wanted = "-c train-constraints.txt\npeft==0.2\ntorch==2.13.0\nbnb==1.0 ; platform_machine == 'nosuch'\n"
    locked = "nvidia-x==1\npeft==0.2\npydantic==3\ntorch==2.13.0\n"
    assert missing_libraries(wanted, locked, {"peft": "0.2", "torch": "2.9.1"})[0] == []
    assert missing_libraries(wanted, locked, {"peft": "0.1", "torch": "2.9.1"}) == (
        ["peft"],
        ["peft==0.2", "pydantic==3"],
    )
    assert missing_libraries(wanted, locked, {"peft": "0.2"}) == (["torch"], wanted.splitlines())


def test_what_is_compiled_for_one_torch_is_installed_beside_no_other() -> None:
    wanted = "-c unsloth-constraints.txt\ntorch==2.13.0\nunsloth==1\n"
    locked = "torch==2.13.0\ntorchvision==0.28.0\nunsloth==1\nxformers==0.0.35\n"
    assert missing_libraries(wanted, locked, {"torch": "2.9.1"}) == (["unsloth"], ["unsloth==1"])
    everything = ["torchvision==0.28.0", "unsloth==1", "xformers==0.0.35"]
    assert missing_libraries(wanted, locked, {"torch": "2.13.0"}) == (["unsloth"], everything)


@pytest.mark.parametrize(("backend", "lock"), [("trl", "train"), ("unsloth", "unsloth")])
def test_the_requirements_that_travel_are_the_backends_own(backend: Backend, lock: str) -> None:
    with zipfile.ZipFile(io.BytesIO(pack_code(backend))) as archive:
        names = [name for name in archive.namelist() if name.startswith("requirements/")]
    assert names == [f"requirements/{lock}-requirements.txt", f"requirements/{lock}-constraints.txt"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"code": "http://127.0.0.1:9/code.zip"}, "the store does not answer"),
        ({"sha256": "0" * 64}, "did not arrive as it was sent"),
    ],
)
def test_a_script_that_cannot_begin_says_why(
    project: Project, wrong: dict[str, str], said: str, tmp_path: Path
) -> None:
    (tmp_path / "code.zip").write_bytes(pack_code("trl"))
    settings = {
        "code": (tmp_path / "code.zip").as_uri(),
        "sha256": "0" * 64,
        "lock": "train",
        "deadline": 4e9,
        "ticket": "x",
    } | wrong
    source = (REPO / "jobs" / "start.py").read_text().replace("time.sleep(2 * attempt)", "pass")
    done = subprocess.run(
        [sys.executable, "-c", f"{source}\nstart({settings!r})"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_only_a_machine_that_the_supervisor_would_end_is_hidden_from_it() -> None:
    assert MACHINES == (teardown.ENV_POD,)


def test_a_cancel_reaches_it_through_the_store(project: Project) -> None:
    cloudft(project, "submit", "--provider", "manual")
    status = cloudft(project, "status")
    assert (status["status"], status["billed_now"]) == ("running", False)
    ended = cloudft(project, "cancel", "--now")
    assert ended["status"] == "stopped"


def test_it_needs_a_bucket(project: Project) -> None:
    config = yaml.safe_load(project.config_file.read_text()) | {"store": "./store"}
    project.config_file.write_text(yaml.safe_dump(config))
    said = cloudft(project, "submit", "--provider", "manual", code=3)
    assert "store" in said["what"]


def test_the_whole_package_travels() -> None:
    """Whatever the package holds: a file that is missing there fails on a machine that somebody pays for."""
    tracked = subprocess.run(["git", "ls-files", "jobs"], cwd=REPO, capture_output=True, text=True, check=True)
    packed = zipfile.ZipFile(io.BytesIO(pack_code("trl"))).namelist()
    assert {name for name in packed if name.startswith("jobs/")} == set(tracked.stdout.split())


def test_the_script_is_plain_python_and_the_code_packs_the_same_twice() -> None:
    assert pack_code("trl") == pack_code("trl")
    source = (Path(__file__).resolve().parents[2] / "jobs" / "start.py").read_text()
    isolated = [sys.executable, "-I", "-c", f"exec({source!r}); print(start.__name__)"]
    assert subprocess.run(isolated, capture_output=True, text=True, check=True).stdout == "start\n"
