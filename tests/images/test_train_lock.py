"""The lock of the training image: exact, complete, and in step with pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line and not line.startswith(("#", "-c"))]


@pytest.fixture(params=["train", "unsloth"])
def extra(request: pytest.FixtureRequest) -> str:
    """The extra whose lock is looked at; its files are named after it."""
    return str(request.param)


@pytest.fixture
def asked(repo: Path, extra: str) -> dict[str, Requirement]:
    found = [Requirement(line) for line in lines(repo / "images" / f"{extra}-requirements.txt")]
    return {canonicalize_name(r.name): r for r in found}


def test_every_line_is_one_exact_version(repo: Path, extra: str) -> None:
    for name in (f"{extra}-requirements.txt", f"{extra}-constraints.txt"):
        for line in lines(repo / "images" / name):
            # No `+cpu`: a local version could be found on the machine that made the lock only.
            assert re.fullmatch(r"[a-z0-9-]+==[A-Za-z0-9.]+( ; .+)?", line), f"{name}: {line}"


def test_the_requirements_are_the_extra_and_what_the_spec_needs(
    repo: Path, extra: str, asked: dict[str, Requirement]
) -> None:
    project = tomllib.loads((repo / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(r) for r in project["optional-dependencies"][extra]]
    wanted += [r for r in map(Requirement, project["dependencies"]) if r.name == "pydantic"]
    assert set(asked) == {canonicalize_name(r.name) for r in wanted}
    for requirement in wanted:
        [pin] = asked[canonicalize_name(requirement.name)].specifier
        assert requirement.specifier.contains(pin.version), f"{requirement} is locked at {pin.version}: make lock"
        assert asked[canonicalize_name(requirement.name)].marker == requirement.marker


def test_the_constraints_hold_the_same_versions_and_the_cuda_libraries(
    repo: Path, extra: str, asked: dict[str, Requirement]
) -> None:
    constraints = [Requirement(line) for line in lines(repo / "images" / f"{extra}-constraints.txt")]
    by_name = {r.name: r.specifier for r in constraints}
    assert {name: by_name[name] for name in asked} == {name: r.specifier for name, r in asked.items()}
    assert {"nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-nccl-cu13", "triton"} <= set(by_name)


def test_the_requirements_name_the_constraints(repo: Path, extra: str) -> None:
    assert f"-c {extra}-constraints.txt" in (repo / "images" / f"{extra}-requirements.txt").read_text().splitlines()


def test_both_images_have_the_same_torch_and_ask_the_same_of_a_driver(repo: Path) -> None:
    """The Dockerfile's label says what a host's driver must support, whichever lock is built."""
    pins = [
        {r.name: r.specifier for r in map(Requirement, lines(repo / "images" / f"{name}-constraints.txt"))}
        for name in ("train", "unsloth")
    ]
    cuda = [{name: pin for name, pin in each.items() if re.match("torch$|nvidia-|cuda-|triton", name)} for each in pins]
    assert cuda[0] == cuda[1]
