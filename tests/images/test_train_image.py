"""The training image, really built: what is in it, what is locked, and what a change of ours costs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from images.context import train_context
from tests.services.engine import DockerEngine


def in_image(engine: DockerEngine, image: str, code: str, *options: str) -> str:
    """What ``code`` prints in the image's Python, without a network."""
    command = ["run", "--rm", "--network", "none", *options, "--entrypoint", "python", image, "-c", code]
    return engine.run(*command).stdout.strip()


def pins(path: Path) -> dict[str, str]:
    """Name → version of a lock file."""
    found = re.findall(r"^([a-z0-9-]+)==([^\s;]+)", path.read_text(), re.MULTILINE)
    assert found
    return dict(found)


def test_what_is_installed_is_exactly_what_is_locked(docker_engine: DockerEngine, train_image: str, repo: Path) -> None:
    code = (
        "import importlib.metadata as m, json, re; print(json.dumps({re.sub('[-_.]+', '-', d.name).lower(): "
        "d.version.partition('+')[0] for d in m.distributions()}))"
    )
    installed: dict[str, str] = json.loads(in_image(docker_engine, train_image, code))
    # What the base image brought to install with.
    installed.pop("pip", None)
    locked = pins(repo / "images" / "train-constraints.txt")
    asked = pins(repo / "images" / "train-requirements.txt")
    if installed.get("setuptools") != locked["setuptools"]:
        installed.pop("setuptools", None)
    assert {name: installed.get(name) for name in asked} == asked
    assert {name: version for name, version in installed.items() if locked.get(name) != version} == {}
    assert docker_engine.run("run", "--rm", "--entrypoint", "pip", train_image, "check").returncode == 0


def test_the_training_stack_imports(docker_engine: DockerEngine, train_image: str) -> None:
    code = (
        "import bitsandbytes, datasets, peft, torch, transformers, trl\n"
        "from trl import SFTTrainer\n"
        "print(torch.ones(2, 2).sum().item())"
    )
    assert in_image(docker_engine, train_image, code) == "4.0"


def test_pid_1_is_the_supervisor_and_its_modules_are_found_from_any_folder(
    docker_engine: DockerEngine, train_image: str
) -> None:
    image = docker_engine.inspect(train_image)
    assert image is not None
    assert image["Config"]["Entrypoint"] == ["python", "-m", "jobs.supervisor"]
    assert not image["Config"]["Cmd"]
    code = "import importlib.util as u, jobs.ticket, jobs.spec; print(u.find_spec('jobs.supervisor').origin)"
    found = in_image(docker_engine, train_image, code, "--workdir", "/tmp")
    assert found == "/opt/cloudft/jobs/supervisor.py"


def test_the_image_holds_jobs_and_none_of_the_other_packages(
    docker_engine: DockerEngine, train_image: str, repo: Path
) -> None:
    code = "import pathlib; print('\\n'.join(str(p) for p in pathlib.Path('/opt/cloudft').rglob('*') if p.is_file()))"
    files = set(in_image(docker_engine, train_image, code).split())
    jobs = {p.relative_to(repo).as_posix() for p in (repo / "jobs").rglob("*.*") if p.suffix != ".pyc"}
    locks = {"images/train-requirements.txt", "images/train-constraints.txt"}
    assert files == {f"/opt/cloudft/{name}" for name in jobs | locks}


def test_certificates_are_there_and_the_work_folder_is_writable(docker_engine: DockerEngine, train_image: str) -> None:
    code = (
        "import os, pathlib, ssl\n"
        "folder = pathlib.Path(os.environ['CLOUDFT_WORK'])\n"
        "(folder / 'x').write_text('x')\n"
        "print(len(ssl.create_default_context().get_ca_certs()) > 50)"
    )
    assert in_image(docker_engine, train_image, code) == "True"
    # Some providers run the container under a user of their own.
    assert in_image(docker_engine, train_image, code, "--user", "12345:12345") == "True"


def test_a_gpu_machine_gets_the_gpu_and_an_old_driver_still_starts_the_container(
    docker_engine: DockerEngine, train_image: str
) -> None:
    image = docker_engine.inspect(train_image)
    assert image is not None
    env = dict(item.split("=", 1) for item in image["Config"]["Env"])
    assert env["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert env["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    assert "NVIDIA_REQUIRE_CUDA" not in env
    assert re.fullmatch(r"\d+\.\d+", image["Config"]["Labels"]["cloudft.cuda"])


def test_nothing_of_the_build_stays_in_the_images_settings(docker_engine: DockerEngine, train_image: str) -> None:
    image = docker_engine.inspect(train_image)
    assert image is not None
    assert [item for item in image["Config"]["Env"] if item.startswith("PIP_")] == []


def test_the_cuda_label_fits_the_locked_libraries(repo: Path) -> None:
    label = re.search(r'cloudft\.cuda="(\d+\.\d+)"', (repo / "Dockerfile.train").read_text())
    assert label is not None
    toolkit = pins(repo / "images" / "train-constraints.txt")["cuda-toolkit"]
    assert toolkit.startswith(label[1] + ".")


def test_a_change_in_jobs_sends_only_the_last_layer(
    docker_engine: DockerEngine, train_image: str, pip_args: dict[str, str], tmp_path: Path
) -> None:
    with train_context() as context:
        shutil.copytree(context.folder, tmp_path / "context")
    before = docker_engine.build(tmp_path / "context", f"{train_image}-a", dockerfile="Dockerfile.train", args=pip_args)
    with (tmp_path / "context" / "jobs" / "__init__.py").open("a") as out:
        out.write("# changed\n")
    after = docker_engine.build(tmp_path / "context", f"{train_image}-b", dockerfile="Dockerfile.train", args=pip_args)
    docker_engine.run("rmi", f"{train_image}-a", f"{train_image}-b")
    assert before["RootFS"]["Layers"][:-1] == after["RootFS"]["Layers"][:-1]
    assert before["RootFS"]["Layers"][-1] != after["RootFS"]["Layers"][-1]


@pytest.mark.parametrize("buildkit", [False, True], ids=["classic", "buildkit"])
def test_both_builders_can_build_it(
    docker_engine: DockerEngine, pip_args: dict[str, str], tmp_path: Path, buildkit: bool
) -> None:
    """The whole Dockerfile, with a lock of one small package, so that it takes seconds."""
    with train_context() as context:
        shutil.copytree(context.folder, tmp_path / "context")
    (tmp_path / "context" / "images" / "train-requirements.txt").write_text("-c train-constraints.txt\nfilelock\n")
    tag = f"cloudft-train:test-{'buildkit' if buildkit else 'classic'}"
    image = docker_engine.build(
        tmp_path / "context", tag, dockerfile="Dockerfile.train", args=pip_args, buildkit=buildkit
    )
    try:
        assert image["Config"]["Entrypoint"] == ["python", "-m", "jobs.supervisor"]
        assert in_image(docker_engine, tag, "import filelock, jobs.ticket; print('ok')") == "ok"
    finally:
        docker_engine.run("rmi", "-f", tag)
