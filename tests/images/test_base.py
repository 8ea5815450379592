"""The base image: pinned, pulled, looked into, and refused before anything is built on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cloudft.errors import CloudftError, ConfigError, EnvironmentProblem, ProviderError
from images.build import Plan
from tests.images.build_fixtures import (
    Recorder,
    build,
    in_image,
    make_image,
    refused,
)
from tests.services.engine import DockerEngine
from tests.services.registry import RegistryServer

pytestmark = pytest.mark.usefixtures("bare")


@pytest.fixture
def pushed_base(
    registry: RegistryServer, docker_engine: DockerEngine, logged_in: Path, base_image: str, tmp_path: Path
) -> Iterator[str]:
    """A base that only the registry has, under a tag that can move."""
    name = f"{registry.host}/{tmp_path.name.replace('_', '-')}/base:1"
    push_base(docker_engine, logged_in, base_image, name)
    docker_engine.run("rmi", name)
    yield name
    docker_engine.run("rmi", "-f", name, check=False)


def push_base(engine: DockerEngine, login: Path, image: str, name: str) -> None:
    engine.run("tag", image, name)
    engine.run("push", name, env={"DOCKER_CONFIG": str(login)})


def test_a_base_that_is_not_here_is_pulled_by_digest(
    plan: Plan, pushed_base: str, registry: RegistryServer, docker_engine: DockerEngine, base_image: str
) -> None:
    # The engine knows the layers, so nothing is downloaded, unless the image they belong to is gone too.
    progress = Recorder()
    built = build(replace(plan, base_image=pushed_base), progress)
    assert built.lock.contents is not None
    name, _, _tag = pushed_base.rpartition(":")
    assert built.lock.contents.base == pushed_base
    assert built.lock.contents.base_pinned.startswith(f"{name}@sha256:")
    assert progress.of("pull base")
    image = docker_engine.inspect(built.lock.tag)
    base = docker_engine.inspect(base_image)
    assert image is not None
    assert base is not None
    assert image["RootFS"]["Layers"][: len(base["RootFS"]["Layers"])] == base["RootFS"]["Layers"]


def test_a_tag_that_moves_rebuilds_nothing_until_that_is_asked_for(
    plan: Plan, pushed_base: str, docker_engine: DockerEngine, logged_in: Path, tmp_path: Path, base_image: str
) -> None:
    plan = replace(plan, base_image=pushed_base, push=False)
    first = build(plan)
    make_image(docker_engine, tmp_path / "newer", f"{pushed_base}-next", f"FROM {base_image}\nLABEL newer=yes\n")
    push_base(docker_engine, logged_in, f"{pushed_base}-next", pushed_base)
    docker_engine.run("rmi", "-f", f"{pushed_base}-next", pushed_base)
    again = build(replace(plan, earlier=first.lock))
    assert (again.built, again.lock) == (False, first.lock)
    newer = build(replace(plan, earlier=first.lock, update_base=True))
    assert newer.built
    assert newer.lock.contents is not None
    assert first.lock.contents is not None
    assert newer.lock.contents.base_pinned != first.lock.contents.base_pinned
    image = docker_engine.inspect(newer.lock.tag)
    assert image is not None
    assert image["Config"]["Labels"]["newer"] == "yes"


def test_a_base_that_does_not_exist(plan: Plan, registry: RegistryServer) -> None:
    error = refused(replace(plan, base_image=f"{registry.host}/me/nonesuch:9"), ConfigError)
    assert "build.base_image" in error.what
    assert "nonesuch:9" in error.what


def test_a_base_whose_registry_cannot_be_reached(plan: Plan) -> None:
    error = refused(replace(plan, base_image="127.0.0.1:9/me/base:1"), ProviderError)
    assert "build.base_image" in error.what
    assert "cannot be reached" in error.what


# The head of a program for another processor.
FOREIGN = bytes.fromhex("7f454c460201010000000000000000000200b70001000000") + bytes(40)
OLD = b"""#!/bin/sh\necho '{"python": "3.9.1", "packages": {}}'\n"""


@pytest.mark.parametrize(
    ("dockerfile", "python", "kind", "says"),
    [
        ("FROM scratch\nCOPY python /x\n", b"x", ConfigError, "no program called python"),
        ("FROM scratch\nCOPY python /bin/python\n", FOREIGN, EnvironmentProblem, "cannot run programs of linux/amd64"),
        ("FROM {base}\nCOPY python /first/python\nENV PATH=/first:$PATH\n", OLD, ConfigError, "has Python 3.9.1"),
        (
            "FROM {base}\nRUN rm /opt/python/bin/python* /usr/bin/python*\n",
            b"",
            ConfigError,
            "no program called python",
        ),
    ],
    ids=["empty", "another processor", "an old python", "no python"],
)
def test_a_base_that_cannot_work_is_found_out_before_the_build(
    plan: Plan,
    docker_engine: DockerEngine,
    base_image: str,
    tmp_path: Path,
    dockerfile: str,
    python: bytes,
    kind: type[CloudftError],
    says: str,
) -> None:
    tag = f"cloudft-test-base:{tmp_path.name.replace('_', '-')}"
    make_image(docker_engine, tmp_path / "base", tag, dockerfile.format(base=base_image), python=python)
    try:
        assert says in refused(replace(plan, base_image=tag), kind).what
    finally:
        docker_engine.run("rmi", "-f", tag)


def test_a_base_with_another_torch_is_told_to_be_larger(
    plan: Plan, small: Path, docker_engine: DockerEngine, base_image: str, tmp_path: Path
) -> None:
    fake = b"Metadata-Version: 2.1\nName: torch\nVersion: 2.8.0+cu128\n"
    site = in_image(docker_engine, base_image, "import sysconfig; print(sysconfig.get_path('purelib'))")
    make_image(
        docker_engine,
        tmp_path / "base",
        "cloudft-test-base:torch",
        f"FROM {base_image}\nCOPY METADATA {site}/torch-2.8.0.dist-info/METADATA\n",
        METADATA=fake,
    )
    # A lock that names torch, and installs only what is small.
    lock = "-c train-constraints.txt\ntorch==2.13.0 ; python_version < '3'\n"
    (small / "images" / "train-requirements.txt").write_text(lock)
    try:
        built = build(replace(plan, base_image="cloudft-test-base:torch", push=False))
        assert len(built.notes) == 1
        assert "torch 2.8.0+cu128" in built.notes[0]
        assert "2.13.0" in built.notes[0]
    finally:
        docker_engine.run("rmi", "-f", "cloudft-test-base:torch")


# Platforms.


def test_the_platform_is_that_of_rented_machines_unless_another_is_asked_for(
    plan: Plan, docker_engine: DockerEngine, base_image: str, tmp_path: Path
) -> None:
    image = docker_engine.inspect(build(replace(plan, push=False)).lock.tag)
    assert image is not None
    assert (image["Os"], image["Architecture"]) == ("linux", "amd64")
    # An image that says it is for another processor, with programs that this one can run, as under emulation.
    name = f"export-{tmp_path.name}"
    docker_engine.run("create", "--name", name, base_image, "true")
    docker_engine.run("export", "-o", str(tmp_path / "root.tar"), name)
    docker_engine.run("rm", name)
    (tmp_path / "Dockerfile").write_text(
        "FROM scratch\nADD root.tar /\nENV PATH=/opt/python/bin:/usr/local/sbin:/usr/local/bin:/usr/bin:/bin\n"
    )
    classic = {"DOCKER_BUILDKIT": "0"}
    docker_engine.run("build", "--platform", "linux/arm64", "-t", "cloudft-test-base:arm", str(tmp_path), env=classic)
    try:
        built = build(replace(plan, platform="linux/arm64", base_image="cloudft-test-base:arm", push=False))
        image = docker_engine.inspect(built.lock.tag)
        assert image is not None
        assert image["Architecture"] == "arm64"
        assert built.lock.contents is not None
        assert built.lock.contents.platform == "linux/arm64"
    finally:
        docker_engine.run("rmi", "-f", "cloudft-test-base:arm")


def test_a_base_of_another_platform_only(plan: Plan, pushed_base: str) -> None:
    error = refused(replace(plan, platform="linux/arm64", base_image=pushed_base, push=False), ConfigError)
    assert "build.base_image" in error.what
    assert "linux/arm64" in error.what
