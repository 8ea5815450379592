"""From `cloudft submit` to a served model, through a rented machine: the user's commands, the real wire, real parts.

The provider is a double as strict as the service; its machine is a real container of the training image, restarted
when it exits if the service does so; the store is a real S3 server. What the machine can see is read from inside it.
The same test for every provider that rents.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from local.demo.demo_project import write_demo_project
from local.progress import silent
from local.project import Project
from local.scaffold import write_serving_files
from tests.doubles.modal import ModalDouble
from tests.doubles.runpod import DockerRunner, Launch, RunpodDouble, bridge_address
from tests.services.engine import DockerEngine
from tests.services.s3 import S3Server
from tests.test_whole_path import assert_better, cloudft

BUDGET = 5.0
OURS = {"CLOUDFT_DEADLINE", "CLOUDFT_TICKET_URL", "CLOUDFT_WORK"}


class LocalImages(DockerRunner):
    """Runs ``name@sha256:…`` as the image of that id, so that no registry is needed."""

    def start(self, launch: Launch) -> Any:
        return super().start(dataclasses.replace(launch, image=launch.image.partition("@")[2]))


@dataclasses.dataclass(frozen=True)
class Rented:
    """A provider's double, as these tests see it.

    ``offered`` is what an A10G comes to, and why; ``injected`` the variables that the service itself sets on a machine;
    ``secrets`` the account's, which no machine may hold.
    """

    name: str
    offered: tuple[str, str]
    injected: set[str]
    secrets: tuple[str, ...]
    live: Callable[[], list[Any]]
    billed: Callable[[], float]
    console: Callable[[], str]
    preempt: Callable[[str], None]


@contextlib.contextmanager
def rented_runpod(runner: LocalImages, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rented]:
    with RunpodDouble(runner=runner, hosts=("127.0.0.1", bridge_address())) as double:
        for gpu in double.catalog.gpus.values():
            gpu.cuda_versions = ("12.8", "13.0")
        monkeypatch.setenv("RUNPOD_API_BASE_URL", double.url)
        monkeypatch.setenv("RUNPOD_API_KEY", double.api_key)
        yield Rented(
            "runpod",
            ("RTX-A5000", "in place of A10G"),
            # The key is scoped to this one pod.
            {"RUNPOD_POD_ID", "RUNPOD_API_KEY", "RUNPOD_DC_ID", "RUNPOD_GPU_COUNT", "RUNPOD_API_BASE_URL"},
            (double.api_key,),
            double.live_pods,
            lambda: float(double.ledger.total("cloudft-")),
            lambda: double.log_of(double.live_pods()[0]),
            double.preempt,
        )
        assert double.defects == []
        assert double.misuses == []


@contextlib.contextmanager
def rented_modal(runner: LocalImages, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rented]:
    with ModalDouble(runner=runner) as double:
        for name, value in double.env().items():
            monkeypatch.setenv(name, value)
        yield Rented(
            "modal",
            ("A10G", "asked for"),
            {"MODAL_SANDBOX_ID", "MODAL_TASK_ID", "MODAL_REGION"},
            (double.token_id, double.token_secret),
            double.live,
            lambda: double.ledger.total("cloudft-"),
            lambda: double.log_of(double.live()[0]),
            double.preempt,
        )
        assert double.misuses == []


@pytest.fixture(params=[rented_runpod, rented_modal], ids=["runpod", "modal"])
def server(
    request: pytest.FixtureRequest, docker_engine: DockerEngine, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Rented]:
    import docker

    client = docker.from_env()
    with request.param(LocalImages(client, pull=False), monkeypatch) as rented:
        yield rented
    client.close()


@pytest.fixture
def project(
    tmp_path: Any,
    server: Rented,
    docker_engine: DockerEngine,
    train_image: str,
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> Project:
    project = write_demo_project(tmp_path / "demo", silent)
    write_serving_files(project.root)
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    found = docker_engine.inspect(train_image)
    assert found is not None
    config = yaml.safe_load(project.config_file.read_text())
    config |= {
        "provider": server.name,
        "image": f"cloudft-train@{found['Id']}",
        "store": {"url": f"s3://{s3_server.create_bucket()}/cloudft", "endpoint_url": s3_server.endpoint},
    }
    project.config_file.write_text(yaml.safe_dump(config))
    return project


@pytest.mark.train
def test_submit_pull_quantize_eval(project: Project, server: Rented, s3_server: S3Server) -> None:
    offers = cloudft(project, "offers", "--gpu", "A10G", "--budget", str(BUDGET))["offers"]
    assert offers[0]["name"] == server.offered[0]
    assert server.offered[1] in offers[0]["why"]
    assert offers[0]["worst_case_usd"] <= BUDGET
    assert offers[0]["estimate"]["least_seconds"] < offers[0]["estimate"]["most_seconds"]

    seen: dict[str, Any] = {}
    spy = threading.Thread(target=_look_inside, args=(server, seen), daemon=True)
    spy.start()
    ended = cloudft(project, "submit", "--gpu", "A10G", "--budget", str(BUDGET))
    assert ended["status"] == "completed", ended
    spy.join(30)

    assert server.live() == []
    billed = server.billed()
    assert 0 < billed <= BUDGET
    receipt = ended["attempts"][0]["receipt"]
    # Ours is the upper bound: the same machine, the same rate, seen gone a little later than it went.
    assert billed <= receipt["usd"] + 1e-6
    assert receipt["usd"] == pytest.approx(receipt["seconds"] * receipt["rate_usd"] / 3600)
    assert {"boot and pull", "download", "start-up", "train", "save", "upload", "teardown"} <= set(receipt["phases"])
    assert sum(receipt["phases"].values()) == pytest.approx(receipt["seconds"])
    assert ended["billed_now"] is False
    assert cloudft(project, "reap")["machines"] == []
    _holds_no_account_key(seen, server, s3_server)

    cloudft(project, "pull")
    cloudft(project, "quantize")
    assert_better(project, cloudft(project, "eval"))


@pytest.mark.train
def test_cancel_saves_the_adapter_and_ends_the_machine(project: Project, server: Rented) -> None:
    config = yaml.safe_load(project.config_file.read_text())
    config["train"]["max_steps"] = 5000
    project.config_file.write_text(yaml.safe_dump(config))
    cloudft(project, "submit", "--gpu", "24GB", "--budget", str(BUDGET), "--detach")
    status = cloudft(project, "status")
    assert status["billed_now"] is True
    assert 0 < status["worst_case_usd"] <= BUDGET
    give_up = time.monotonic() + 180
    while not cloudft(project, "status")["progress"].get("step"):
        assert time.monotonic() < give_up, server.console()
        time.sleep(2)
    ended = cloudft(project, "cancel")
    assert (ended["status"], ended["billed_now"]) == ("stopped", False)
    assert server.live() == []
    assert cloudft(project, "pull")["complete"] is False


@pytest.mark.train
def test_a_preempted_machine_is_followed_by_one_that_goes_on_where_it_ended(
    project: Project, server: Rented, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A service gives some seconds; a computer that is busy with tests may need more to save and to upload.
    monkeypatch.setattr(f"tests.doubles.{server.name}.service.PREEMPT_GRACE_S", 15.0)
    cloudft(project, "submit", "--gpu", "24GB", "--budget", str(BUDGET), "--detach")
    give_up = time.monotonic() + 180
    while cloudft(project, "status")["progress"].get("step", 0) < 5:
        assert time.monotonic() < give_up, server.console()
        time.sleep(1)
    server.preempt(server.live()[0].id)
    ended = cloudft(project, "watch")
    assert ended["status"] == "completed", ended
    first, second = (attempt["receipt"] for attempt in ended["attempts"])
    assert first["kept_step"] >= 5
    assert second["resumed_from"] == first["kept_step"]
    assert ended["progress"]["step"] == ended["progress"]["max_steps"]
    assert server.live() == []
    assert server.billed() <= BUDGET
    cloudft(project, "pull")
    (run_id,) = project.run_ids()
    lines = map(json.loads, (project.run(run_id).root / "metrics.jsonl").read_text().splitlines())
    steps = [line["step"] for line in lines if "loss" in line]  # the others are evaluations
    assert steps == list(range(1, ended["progress"]["max_steps"] + 1))


def _look_inside(server: Rented, seen: dict[str, Any]) -> None:
    """Read the container's environment, process list and files while it trains."""
    import docker

    client = docker.from_env()
    give_up = time.monotonic() + 200
    while time.monotonic() < give_up and "environment" not in seen:
        for container in client.containers.list(filters={"label": "cloudft.double"}):
            found = container.exec_run(["sh", "-c", "tr '\\0' '\\n' </proc/1/environ"])
            processes = container.exec_run(["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"])
            if found.exit_code == 0 and b"jobs.train" in processes.output:
                files = container.exec_run(["sh", "-c", "cat /var/cloudft/*.json /var/cloudft/train.log; ls -a /root"])
                lines = found.output.decode().splitlines()
                seen["environment"] = dict(line.split("=", 1) for line in lines if "=" in line)
                seen["processes"] = processes.output.decode()
                seen["files"] = files.output.decode()
        time.sleep(0.5)
    client.close()


def _holds_no_account_key(seen: dict[str, Any], server: Rented, s3_server: S3Server) -> None:
    """The machine knows its deadline, one URL and the key that the service injects; nothing else of the account's."""
    environment = seen["environment"]
    prefixes = ("CLOUDFT_", "RUNPOD_", "MODAL_", "AWS_", "HF_")
    assert {name for name in environment if name.startswith(prefixes)} == OURS | server.injected
    everything = json.dumps(seen)
    for secret in server.secrets:
        assert secret not in everything
    assert s3_server.secret_key not in everything
    assert "X-Amz-Signature" not in seen["processes"] + seen["files"]
    # One prefix, for a while.
    assert "/attempts/1/ticket.json" in environment["CLOUDFT_TICKET_URL"]
