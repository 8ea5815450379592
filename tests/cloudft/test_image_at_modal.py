"""`submit` without an image: Modal builds it from our Dockerfile, and every attempt of the run uses that very image."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudft.cli import run
from local.project import Project
from local.runs.records import read_record, read_spec
from tests.cloudft.test_modal_commands import modal
from tests.cloudft.test_rented_commands import DIGEST, call, configure, project, server
from tests.doubles.modal import ModalDouble
from tests.doubles.modal.images import BuildFailed, Definition, copied
from tests.doubles.runpod import Launch, ProcessRunner, RunpodDouble

__all__ = ["modal", "project", "server"]

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def at_modal(project: Project) -> Project:
    configure(project, provider="modal", image=None, gpu="L4", budget=5, train={"max_steps": 4})
    return project


@pytest.fixture
def building(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModalDouble]:
    """A double whose sandboxes run what was built: the files that COPY names, without the libraries of RUN."""

    def build(definition: Definition, base: str | None) -> tuple[str, list[str]]:
        root = tmp_path / "images" / definition.id
        for path, data in copied(definition):
            (root / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
            (root / path.lstrip("/")).write_bytes(data)
        return str(root), [f"=> built {definition.id}"]

    def command(launch: Launch) -> list[str]:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        return ["env", f"PATH={path}", f"PYTHONPATH={launch.image}/opt/cloudft", "PYTHONUNBUFFERED=1"]

    with ModalDouble(runner=ProcessRunner(command)) as double:
        double.images.build = build
        for name, value in double.env().items():
            monkeypatch.setenv(name, value)
        yield double
        assert double.misuses == []


def test_the_table_says_that_it_is_built_and_what_that_may_cost(
    at_modal: Project, modal: ModalDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    data = call(at_modal, capsys, "offers")
    assert data["image_build_usd"] == pytest.approx(1200 / 3600 * modal.service.build_rate())
    assert data["offers"][0]["worst_case_usd"] <= 5
    assert run(["offers", "-C", str(at_modal.root)]) == 0
    text = capsys.readouterr().out
    assert "image: none is set, so Modal builds it at submit" in text
    assert "whether it bills them is not told" in text
    assert f"${data['image_build_usd']:.2f}" in text
    assert modal.calls.count("ImageGetOrCreate") == 0
    # It is missing from what the budget buys of the machine.
    configure(at_modal, image=DIGEST)
    (whole,), (less,) = call(at_modal, capsys, "offers")["offers"], data["offers"]
    hours = (whole["latest_end"] - less["latest_end"]) / 3600
    assert hours == pytest.approx(data["image_build_usd"] / less["rate_usd"], rel=0.05)


@pytest.mark.train
def test_what_was_built_trains_and_both_attempts_run_the_same(
    at_modal: Project, building: ModalDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    call(at_modal, capsys, "submit", "--detach")
    folder = at_modal.pick_run(None)
    build = read_record(folder).build
    assert build is not None
    assert build.image.startswith("modal:im-")
    assert read_spec(folder).image == build.image
    builds = len(building.images.builds)
    # Lost without a word, before it could begin; changed files of ours must not change what the next one runs.
    building.service.end(building.live()[0].id, 7)
    ended = call(at_modal, capsys, "watch")
    assert ended["status"] == "completed", ended
    assert len(ended["attempts"]) == 2
    first, second = list(building.service.boxes.values())
    assert first.image == second.image == building.images.of(build.image.partition(":")[2]).runs_as
    assert len(building.images.builds) == builds
    assert ended["build"]["image"] == build.image
    # The bill holds the builder's minutes too, and ours is the upper bound.
    assert 0 < building.ledger.total("cloudft-image") <= build.charge.committed() + 1e-6
    assert building.ledger.total("cloudft-") <= ended["spent_usd"] <= 5
    assert run(["status", "-C", str(at_modal.root)]) == 0
    assert f"image       {build.image}, ready at modal in " in capsys.readouterr().out


def test_a_second_submit_finds_the_image(
    at_modal: Project, modal: ModalDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    images = []
    for _ in range(2):
        call(at_modal, capsys, "submit", "--detach")
        images.append(read_record(at_modal.pick_run(None)).build)
        call(at_modal, capsys, "cancel", "--now")
    first, second = images
    assert first is not None
    assert second is not None
    assert (first.image, first.content) == (second.image, second.content)
    assert len([b for b in modal.images.builds.values() if b.definition.files]) == 1


def test_a_build_that_fails_leaves_no_run_and_no_machine(
    at_modal: Project, modal: ModalDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(definition: Definition, base: str | None) -> tuple[str, list[str]]:
        raise BuildFailed("No matching distribution found for torch==2.13.0")

    modal.images.build = refuse
    said = call(at_modal, capsys, "submit", code=8)
    assert "No matching distribution found" in said["what"]
    assert "nothing was rented" in said["effect"]
    assert not at_modal.run_ids()
    assert modal.live() == []


def test_a_secret_among_what_the_project_adds_is_refused_before_it_is_sent(
    at_modal: Project, modal: ModalDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    (at_modal.root / "needs.txt").write_text("# token: hf_" + "a" * 34 + "\n")
    configure(at_modal, build={"requirements": "needs.txt"})
    said = call(at_modal, capsys, "submit", code=3)
    assert "Hugging Face token" in said["what"]
    assert "MountPutFile" not in modal.calls


def test_the_store_is_tried_before_minutes_are_spent_on_an_image(
    at_modal: Project, modal: ModalDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(at_modal, store={"url": "s3://no-such-bucket/x", "endpoint_url": "http://127.0.0.1:9"})
    said = call(at_modal, capsys, "submit", code=7)
    assert said["effect"] == "nothing was rented, and no run was made"
    assert "ImageGetOrCreate" not in modal.calls


def test_auto_without_an_image_takes_who_builds_one_and_says_why_not_the_others(
    at_modal: Project, modal: ModalDouble, server: RunpodDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(at_modal, provider="auto")
    rows = call(at_modal, capsys, "offers")["offers"]
    refused = {row["provider"]: row["refusal"] for row in rows}
    assert refused["modal"] == ""
    assert "needs a training image" in refused["runpod"]
    call(at_modal, capsys, "submit", "--detach")
    assert len(modal.live()) == 1
    assert server.live_pods() == []
    call(at_modal, capsys, "cancel", "--now")


def test_auto_without_an_image_and_without_a_builder_is_refused(
    at_modal: Project, server: RunpodDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(at_modal, provider="auto")
    said = call(at_modal, capsys, "submit", code=3)
    assert "image" in said["what"]
    assert "cloudft build" in said["hint"]


def test_an_image_that_is_set_is_not_built(
    project: Project, modal: ModalDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(project, provider="modal", gpu="L4", budget=5)
    assert call(project, capsys, "offers")["image_build_usd"] is None
    call(project, capsys, "submit", "--detach")
    assert read_record(project.pick_run(None)).build is None
    assert "MountPutFile" not in modal.calls
    call(project, capsys, "cancel", "--now")


def test_ctrl_c_while_it_builds_rents_nothing_and_says_what_goes_on(at_modal: Project, modal: ModalDouble) -> None:
    modal.faults.slow_build(300)
    options = {"cwd": at_modal.root, "env": os.environ | {"PYTHONPATH": str(REPO)}, "text": True}
    command = [sys.executable, "-m", "cloudft", "submit"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload]
    give_up = time.monotonic() + 90
    while "ImageJoinStreaming" not in modal.calls:
        assert time.monotonic() < give_up
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "the build may go on at modal" in said
    assert "Modal builds the image: " in said
    assert not at_modal.run_ids()
    assert json.dumps(modal.calls).count("SandboxCreate") == 0
