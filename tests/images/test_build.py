"""``cloudft build`` against a real engine and a real registry that wants a password."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cloudft.errors import ConfigError
from images.build import Plan, current_content
from images.context import train_context
from images.extras import Extras, collect
from images.lock import LABEL_CONTENT, LABEL_CONTENTS
from images.reference import is_pinned
from tests.images.build_fixtures import (
    FRESH_BYTES,
    Recorder,
    build,
    forget,
    in_image,
    packages_in,
    refused,
    repository_of,
)
from tests.services.engine import DockerEngine
from tests.services.registry import RegistryServer


def test_it_is_pushed_and_can_be_pulled_by_digest_with_the_login_alone(
    plan: Plan, docker_engine: DockerEngine, logged_in: Path
) -> None:
    built = build(plan)
    image = built.lock.image
    assert (built.built, built.pushed) == (True, True)
    assert is_pinned(image)
    assert image.startswith(f"{plan.repository}@sha256:")
    forget(docker_engine, built)
    without = docker_engine.run("pull", image, check=False)
    assert without.returncode != 0
    assert "no basic auth credentials" in without.stderr
    docker_engine.run("pull", image, env={"DOCKER_CONFIG": str(logged_in)})
    assert in_image(docker_engine, image, "import filelock, jobs.ticket; print('ok')") == "ok"
    settings = docker_engine.inspect(image)
    assert settings is not None
    assert settings["Config"]["Entrypoint"] == ["python", "-m", "jobs.supervisor"]


def test_the_lock_says_what_is_inside(plan: Plan, docker_engine: DockerEngine, registry: RegistryServer) -> None:
    lock = build(plan).lock
    inside = lock.contents
    assert inside is not None
    assert inside.packages == packages_in(docker_engine, lock.tag)
    assert "filelock" in inside.packages
    assert inside.python == in_image(docker_engine, lock.tag, "import platform; print(platform.python_version())")
    base = docker_engine.inspect(plan.base_image)
    image = docker_engine.inspect(lock.tag)
    assert base is not None
    assert image is not None
    assert (inside.base, inside.platform) == (plan.base_image, "linux/amd64")
    # Made on this computer: known by the engine's id. Or from a registry: by its digest.
    assert inside.base_pinned in (base["Id"], *(base["RepoDigests"] or ()))
    assert json.loads(image["Config"]["Labels"][LABEL_CONTENTS]) == inside.model_dump()
    assert image["Config"]["Labels"][LABEL_CONTENT] == lock.content
    layers = registry.manifest(repository_of(plan), lock.image.partition("@")[2])["layers"]
    assert lock.pull_bytes == sum(layer["size"] for layer in layers)
    assert lock.bytes == image["Size"]


def test_progress_counts_steps_and_bytes(plan: Plan, fresh_layer: Extras) -> None:
    progress = Recorder()
    build(replace(plan, extras=fresh_layer), progress)
    steps = progress.of("build")
    assert {unit for _, _, _, unit, _ in steps} == {"steps"}
    assert [done for _, done, *_ in steps] == sorted(done for _, done, *_ in steps)
    assert any("pip install" in note for *_, note in steps)
    sent = progress.of("push")
    _, done, total, unit, _ = sent[-1]
    assert unit == "bytes"
    assert done == total
    assert total is not None
    assert total > FRESH_BYTES
    assert all(done <= (total or 0) for _, done, total, *_ in sent)
    names = [call[0] for call in progress.calls]
    assert names.index("build") < names.index("push")


def test_nothing_is_built_or_pushed_again_when_nothing_changed(plan: Plan, registry: RegistryServer) -> None:
    first = build(plan)
    uploads, progress = registry.uploads(), Recorder()
    again = build(replace(plan, earlier=first.lock), progress)
    assert (again.built, again.pushed) == (False, False)
    assert again.lock == first.lock
    assert registry.uploads() == uploads
    assert progress.of("build") == progress.of("push") == []


def test_another_computer_finds_it_in_the_registry(plan: Plan, docker_engine: DockerEngine) -> None:
    first = build(plan)
    forget(docker_engine, first)
    progress = Recorder()
    again = build(plan, progress)
    assert (again.built, again.pushed) == (False, False)
    assert progress.of("build") == []
    # What is inside is read from the registry; only the size unpacked is known to nobody.
    assert again.lock == first.lock.model_copy(update={"bytes": None})


def test_an_image_that_is_here_is_only_pushed(plan: Plan, registry: RegistryServer) -> None:
    local = build(replace(plan, push=False))
    assert (local.built, local.pushed) == (True, False)
    assert local.lock.image.startswith("sha256:")
    assert registry.tags(repository_of(plan)) == []
    progress = Recorder()
    pushed = build(plan, progress)
    assert (pushed.built, pushed.pushed) == (False, True)
    assert progress.of("build") == []
    assert registry.tags(repository_of(plan)) == [pushed.lock.content[:16]]


def test_without_push_no_registry_and_no_login_are_needed(
    plan: Plan, docker_engine: DockerEngine, registry: RegistryServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "none"))
    built = build(replace(plan, repository=None, push=False))
    try:
        assert built.lock.tag == f"cloudft-train:{built.lock.content[:16]}"
        assert in_image(docker_engine, built.lock.image, "import jobs.ticket; print('ok')") == "ok"
    finally:
        docker_engine.run("rmi", "-f", built.lock.tag)


def test_a_change_of_ours_sends_only_the_last_layer(
    plan: Plan, small: Path, registry: RegistryServer, tmp_path: Path
) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "extra.txt").write_text("filelock\n")
    (tmp_path / "project" / "mine.py").write_text("X = 1\n")
    plan = replace(plan, extras=collect(tmp_path / "project", ["extra.txt"], ["mine.py"]))
    first = build(plan)
    with (small / "jobs" / "__init__.py").open("a") as out:
        out.write("# changed\n")
    progress = Recorder()
    second = build(plan, progress)
    assert (second.built, second.pushed) == (True, True)
    before, after = (
        [layer["digest"] for layer in registry.manifest(repository_of(plan), tag)["layers"]]
        for tag in (first.lock.content[:16], second.lock.content[:16])
    )
    assert before[:-1] == after[:-1]
    assert before[-1] != after[-1]
    # Uncompressed: our own modules, and not a byte of the libraries.
    total = progress.of("push")[-1][2]
    assert total is not None
    assert total < 1_000_000


def test_it_is_made_of_the_layers_of_a_plain_docker_build(
    plan: Plan, docker_engine: DockerEngine, tmp_path: Path
) -> None:
    tag = f"cloudft-test-plain:{tmp_path.name.replace('_', '-')}"
    with train_context() as context:
        plain = docker_engine.build(
            context.folder, tag, dockerfile=context.dockerfile, args={"BASE_IMAGE": plan.base_image}
        )
    progress = Recorder()
    image = docker_engine.inspect(build(replace(plan, push=False), progress).lock.tag)
    docker_engine.run("rmi", tag)
    assert image is not None
    assert image["RootFS"]["Layers"] == plain["RootFS"]["Layers"]
    assert not any("Collecting" in note for *_, note in progress.of("build"))


@pytest.mark.usefixtures("train_image")
def test_the_real_image_holds_what_is_locked(
    docker_engine: DockerEngine, base_image: str, pip_args: dict[str, str], repo: Path
) -> None:
    args = {name: value for name, value in pip_args.items() if name != "BASE_IMAGE"}
    built = build(Plan(repository=None, base_image=base_image, args=args, push=False))
    docker_engine.run("rmi", "-f", built.lock.tag)
    assert built.notes == ()
    assert built.lock.contents is not None
    locked = (repo / "images" / "train-constraints.txt").read_text().splitlines()
    for name in ("torch", "transformers", "trl", "peft"):
        assert f"{name}=={built.lock.contents.packages[name].partition('+')[0]}" in locked


def test_extra_requirements_and_files_are_there(plan: Plan, docker_engine: DockerEngine, project: Path) -> None:
    built = build(replace(plan, push=False, extras=collect(project, ["needs.txt"], ["tools"])))
    assert built.lock.contents is not None
    assert "click" in built.lock.contents.packages
    code = "import click, jobs.ticket, tools.deep.words as w; print(w.WORD, jobs.__file__)"
    assert in_image(docker_engine, built.lock.tag, code) == "mine /opt/cloudft/jobs/__init__.py"
    listing = "import pathlib; print(*sorted(p.name for p in pathlib.Path('/opt/cloudft/files/tools').iterdir()))"
    assert ".env" not in in_image(docker_engine, built.lock.tag, listing).split()


def test_an_extra_requirement_gets_the_locked_version(
    plan: Plan, docker_engine: DockerEngine, project: Path, repo: Path
) -> None:
    built = build(replace(plan, push=False, extras=collect(project, ["needs.txt"], [])))
    assert built.lock.contents is not None
    locked = (repo / "images" / "train-constraints.txt").read_text().splitlines()
    assert f"click=={built.lock.contents.packages['click']}" in locked


def test_files_of_the_users_do_not_shadow_the_supervisor(
    plan: Plan, docker_engine: DockerEngine, project: Path
) -> None:
    (project / "jobs").mkdir()
    (project / "jobs" / "supervisor.py").write_text("raise SystemExit('the wrong one')\n")
    built = build(replace(plan, push=False, extras=collect(project, [], ["jobs"])))
    code = "import importlib.util as u; print(u.find_spec('jobs.supervisor').origin)"
    assert in_image(docker_engine, built.lock.tag, code) == "/opt/cloudft/jobs/supervisor.py"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("transformers==4.0.0", "transformers"),
        ("cloudft-no-such-package-1f3a==1", "cloudft-no-such-package-1f3a"),
        ("-r other.txt", "other.txt"),
    ],
)
def test_requirements_that_do_not_resolve_are_shown_with_pips_own_words(
    plan: Plan, project: Path, line: str, says: str, registry: RegistryServer
) -> None:
    (project / "needs.txt").write_text(f"{line}\n")
    error = refused(replace(plan, extras=collect(project, ["needs.txt"], [])), ConfigError)
    assert error.what.startswith("build.requirements")
    assert says in error.what
    assert "ERROR" in error.what
    assert registry.tags(repository_of(plan)) == []


def test_no_secret_of_this_computer_is_in_the_image(
    plan: Plan, docker_engine: DockerEngine, registry: RegistryServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HF_TOKEN", "RUNPOD_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "hidden-value-4711-of-this-computer")
    built = build(plan)
    told = docker_engine.run("image", "inspect", built.lock.tag).stdout
    told += docker_engine.run("history", "--no-trunc", built.lock.tag).stdout
    docker_engine.run("save", "-o", str(tmp_path / "image.tar"), built.lock.tag)
    inside = (tmp_path / "image.tar").read_bytes()
    for secret in ("hidden-value-4711", registry.password):
        assert secret not in told
        assert secret.encode() not in inside
    assert "hidden-value" not in built.lock.model_dump_json()


def test_a_password_in_a_build_argument_is_refused_and_not_repeated(plan: Plan) -> None:
    error = refused(replace(plan, args={"PIP_INDEX_URL": "https://me:geheim42@pip.example.com/simple"}), ConfigError)
    assert "build.args.PIP_INDEX_URL" in error.what
    assert "geheim42" not in f"{error.what}{error.effect}{error.hint}"


def test_what_an_image_is_made_from_is_compared_without_an_engine(
    plan: Plan, small: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = build(replace(plan, push=False)).lock
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere.sock")
    assert current_content(lock, {}, Extras()) == lock.content
    assert current_content(lock, {"PIP_TRUSTED_HOST": "x"}, Extras()) != lock.content
    assert current_content(lock, {}, collect(project, ["needs.txt"], [])) != lock.content
    shutil.rmtree(small / "jobs" / "__pycache__", ignore_errors=True)
    with (small / "jobs" / "spec.py").open("a") as out:
        out.write("# changed\n")
    assert current_content(lock, {}, Extras()) != lock.content
    assert current_content(lock.model_copy(update={"contents": None}), {}, Extras()) is None
