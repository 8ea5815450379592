"""Images that Modal builds from our Dockerfile: the real package, the real wire, a double that checks what it gets."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudft.errors import ProviderError
from images.build import with_extras
from images.context import train_context, train_files
from images.extras import collect
from images.portable import portable
from infra.modal_images import BUILDER_CORES, BUILDER_GIB
from infra.provider import BUILDERS, PROVIDERS, Builder, Recipe
from jobs.backends import Backend
from tests.doubles.modal import ModalDouble
from tests.doubles.modal.images import NOT_KNOWN, BuildFailed, Definition, copied, instructions
from tests.infra.modal_fixtures import Modal, modal

__all__ = ["modal"]

REPO = Path(__file__).resolve().parents[2]
BASE = "python:3.11-slim"


@pytest.fixture
def backend() -> Backend:
    return "trl"


@pytest.fixture
def recipe(backend: Backend) -> Iterator[Recipe]:
    with train_context(backend) as context:
        path = context.folder / context.dockerfile
        path.write_text(portable(path.read_text(), BASE, context.args))
        yield Recipe(context.folder, context.dockerfile)


def silent(what: str, note: str) -> None:
    """Nobody watches."""


def test_the_builders_are_those_that_build(tmp_path: Path) -> None:
    assert {name for name, opened in PROVIDERS.items() if isinstance(opened(tmp_path), Builder)} == BUILDERS


@pytest.mark.parametrize("builder", ["2025.06", "2026.10"])
def test_what_arrives_is_the_dockerfile_and_its_files_and_a_sandbox_runs_it(
    modal: Modal, recipe: Recipe, builder: str
) -> None:
    """With the package's way of laying layers before and after its latest builder."""
    modal.server.builder = builder
    image = modal.provider.build(recipe, silent)
    assert re.fullmatch(r"modal:im-[A-Za-z0-9]+", image)
    whole = [build.definition for build in modal.server.images.builds.values() if build.definition.files]
    (definition,) = whole
    sent = {name: path.read_bytes() for name, path in train_files().items() if name != "Dockerfile.train"}
    assert definition.files == sent
    in_image = dict(copied(definition))
    assert in_image["/opt/cloudft/jobs/supervisor.py"] == (REPO / "jobs" / "supervisor.py").read_bytes()
    assert "/opt/cloudft/images/train-requirements.txt" in in_image
    words = {step.split()[0] for step in instructions(definition.commands)}
    assert {"RUN", "COPY", "ENV", "ENTRYPOINT"} <= words
    assert not words & set(NOT_KNOWN)
    modal.create(image=image)
    assert modal.box.image == definition.id
    assert modal.box.live


def test_the_same_is_built_once_and_a_change_is_built_anew(modal: Modal, recipe: Recipe) -> None:
    first = modal.provider.build(recipe, silent)
    assert modal.another().build(recipe, silent) == first
    (recipe.folder / "jobs" / "extra.py").write_text("x = 1\n")
    assert modal.another().build(recipe, silent) != first
    # Of the context only what changed was sent again.
    assert modal.server.calls.count("MountPutFile") == len(train_files())


def test_build_arguments_and_a_login_for_a_private_base_go_along(modal: Modal, recipe: Recipe) -> None:
    modal.server.secrets["login"] = {"REGISTRY_USERNAME": "me", "REGISTRY_PASSWORD": "pass"}
    args = {"PIP_INDEX_URL": "https://wheels.test/simple"}
    modal.provider.build(Recipe(recipe.folder, recipe.dockerfile, args, "login"), silent)
    (definition,) = [b.definition for b in modal.server.images.builds.values() if b.definition.files]
    assert definition.args == args
    assert definition.login == modal.server.secrets["login"]
    with pytest.raises(ProviderError, match="'nothing' not found") as info:
        modal.provider.build(Recipe(recipe.folder, recipe.dockerfile, {}, "nothing"), silent)
    assert "nothing was rented" in info.value.effect


def test_the_log_is_streamed_while_it_builds(modal: Modal, recipe: Recipe) -> None:
    modal.server.faults.slow_build(5)
    told: list[str] = []
    modal.provider.build(recipe, lambda what, note: told.append(f"{what}: {note}"))
    assert all(line.startswith("Modal builds the image: ") for line in told)
    assert any("=> Step" in line for line in told), told
    assert " s of 1200 s at most" in told[-1]


def test_a_build_that_fails_ends_with_the_end_of_its_log(modal: Modal, recipe: Recipe) -> None:
    def refuse(definition: Definition, base: str | None) -> tuple[str, list[str]]:
        raise BuildFailed("No matching distribution found for torch==2.13.0")

    modal.server.images.build = refuse
    with pytest.raises(ProviderError, match="No matching distribution found for torch") as info:
        modal.provider.build(recipe, silent)
    assert "nothing was rented" in info.value.effect
    assert "build.…" in info.value.hint
    assert "SandboxCreate" not in modal.server.calls
    # Not for good: the next try is built anew.
    modal.server.images.build = None
    assert modal.provider.build(recipe, silent)


def test_a_copy_of_what_is_not_there_fails_as_at_the_service(modal: Modal, recipe: Recipe) -> None:
    """The test of the double: it would notice a file that our context lacks."""
    (recipe.folder / "images" / "train-constraints.txt").unlink()
    with pytest.raises(ProviderError, match=r"train-constraints\.txt is not in the build context"):
        modal.provider.build(recipe, silent)


def test_the_dockerfile_as_it_is_would_be_refused(modal: Modal) -> None:
    """The test of `portable`: without it, a builder that knows no LABEL and no ARG before FROM says no."""
    with train_context() as context, pytest.raises(ProviderError, match="must be FROM"):
        modal.provider.build(Recipe(context.folder, context.dockerfile), silent)


@pytest.mark.parametrize("backend", ["unsloth"])
def test_the_image_of_another_backend_has_its_lock(modal: Modal, recipe: Recipe) -> None:
    modal.provider.build(recipe, silent)
    (definition,) = [b.definition for b in modal.server.images.builds.values() if b.definition.files]
    assert "LOCK" not in "".join(instructions(definition.commands))
    in_image = dict(copied(definition))
    assert in_image["/opt/cloudft/images/unsloth-requirements.txt"].startswith(b"# Made by")
    assert not [name for name in in_image if "/train-" in name]


def test_what_a_project_adds_is_built_in(modal: Modal, tmp_path: Path) -> None:
    (tmp_path / "needs.txt").write_text("wordfreq\n")
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "mine.py").write_text("x = 1\n")
    with train_context() as plain:
        context = with_extras(plain, collect(tmp_path, ["needs.txt"], ["tools"]))
        path = context.folder / context.dockerfile
        path.write_text(portable(path.read_text(), BASE, context.args))
        modal.provider.build(Recipe(context.folder, context.dockerfile), silent)
    (definition,) = [b.definition for b in modal.server.images.builds.values() if b.definition.files]
    in_image = dict(copied(definition))
    assert in_image["/opt/cloudft/files/tools/mine.py"] == b"x = 1\n"
    assert "/opt/cloudft/requirements/needs.txt" in in_image


def test_a_build_that_takes_too_long_is_given_up_and_found_later(modal: Modal, recipe: Recipe) -> None:
    modal.server.faults.slow_build(4)
    with pytest.raises(ProviderError, match="did not build the image") as info:
        modal.another(build_within=1.0).build(recipe, silent)
    assert "nothing was rented" in info.value.effect
    assert modal.provider.build(recipe, silent)
    assert len([b for b in modal.server.images.builds.values() if b.definition.files]) == 1


@pytest.mark.parametrize("call", ["ImageGetOrCreate", "MountPutFile", "AppGetOrCreate"])
def test_a_connection_that_breaks_rents_nothing_and_says_so(modal: Modal, recipe: Recipe, call: str) -> None:
    modal.server.faults.unavailable(call, times=None)
    with pytest.raises(ProviderError) as info:
        modal.provider.build(recipe, silent)
    assert "nothing was rented" in info.value.effect


def test_an_image_that_modal_has_forgotten_is_refused_before_anything_is_rented(modal: Modal) -> None:
    with pytest.raises(ProviderError, match="no image im-gone") as info:
        modal.create(image="modal:im-gone")
    assert "nothing was rented" in info.value.effect
    assert modal.server.live() == []


def test_a_build_counts_at_the_sandboxes_rates(modal: Modal) -> None:
    rates = modal.server.service.rates
    terms = modal.provider.build_terms()
    cores, memory = float(rates["cpu_hour_cost_sandbox"]), float(rates["mem_gib_hour_cost_sandbox"])
    assert terms.rate_usd == pytest.approx(BUILDER_CORES * cores + BUILDER_GIB * memory)
    assert terms.longest_seconds == 1200
    del rates["cpu_hour_cost_sandbox"]
    assert modal.provider.build_terms().rate_usd == pytest.approx(BUILDER_GIB * memory)


BUILDING = """
import sys
from pathlib import Path
from infra.provider import Recipe
from infra.provider_modal import ModalProvider
ModalProvider().build(Recipe(Path(sys.argv[1]), "Dockerfile.train"), lambda what, note: None)
"""


def test_ctrl_c_ends_the_waiting_at_once(recipe: Recipe) -> None:
    with ModalDouble() as server:
        server.faults.slow_build(120)
        env = {**os.environ, **server.env(), "PYTHONPATH": str(REPO)}
        command = [sys.executable, "-c", BUILDING, str(recipe.folder)]
        process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, cwd=REPO)
        give_up = time.monotonic() + 60
        while "ImageJoinStreaming" not in server.calls:
            assert time.monotonic() < give_up
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert "KeyboardInterrupt" in said
        assert server.misuses == []
