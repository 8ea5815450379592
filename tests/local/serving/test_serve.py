"""Serving without Docker: the real llama_cpp.server on a real GGUF file, its ends good and bad."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from cloudft.errors import Busy, CloudftError, ConfigError, EnvironmentProblem, IntegrityError, NotFound
from local.evaluation.endpoint import Endpoint, Failure, chat_once, connect
from local.project import Project
from local.scaffold import init_project
from local.serving import serve
from local.serving.serve_process import serve_in_process, template_used
from local.serving.versions import promote
from tests.local.serve_fixtures import LOOP, TEMPLATE, write_table_gguf
from tests.local.serving.test_versions import make_version

KEY = "the-key-of-this-test"
ANSWERS = {"a": '{"category": "bug"}', "b": "Sure! Ärger 猫", "z": LOOP}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table_gguf(tmp_path_factory.mktemp("models") / "v1" / "model.gguf", ANSWERS)


@pytest.fixture(scope="module")
def endpoint(gguf: Path) -> Iterator[Endpoint]:
    # What a user may well have set, and what must not reach the server's settings.
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "API_KEY": "another",
            "CONFIG_FILE": "/no/such/file",
            "N_CTX": "16",
            "MODEL": "/no/such/model",
            "CHAT_FORMAT": "llama-2",
            "HOST": "0.0.0.0",
            "ROOT_PATH": "/elsewhere",
        }.items():
            patch.setenv(name, value)
        with serve_in_process(gguf, api_key=KEY, context=256, log=gguf.with_name("log")) as endpoint:
            yield endpoint


def say(endpoint: Endpoint, text: str, max_tokens: int = 10) -> str:
    return chat_once(endpoint, [{"role": "user", "content": text}], max_tokens=max_tokens).text


def children() -> list[psutil.Process]:
    """Servers that this process has started and that still live."""
    found = psutil.Process().children()
    return [p for p in found if p.status() != psutil.STATUS_ZOMBIE and any("serve_child" in c for c in p.cmdline())]


def test_the_model_answers_through_its_own_template(endpoint: Endpoint, gguf: Path) -> None:
    assert say(endpoint, "which one? a") == '{"category": "bug"}'
    assert say(endpoint, "which one? b") == "Sure! Ärger 猫"
    assert template_used(gguf.with_name("log"))[0] == "own"


def test_a_long_token_is_not_lost(tmp_path: Path) -> None:
    text = "spaces: " + " " * 120 + "end"
    long = write_table_gguf(tmp_path / "v" / "model.gguf", {"a": text}, piece_bytes=200)
    with serve_in_process(long, api_key=KEY, context=128, log=tmp_path / "log") as endpoint:
        assert say(endpoint, "a") == text


def test_the_endpoint_says_what_it_is(endpoint: Endpoint) -> None:
    assert endpoint.url.startswith("http://127.0.0.1:")
    assert endpoint.url.endswith("/v1")
    assert endpoint.engine == "llama_cpp.server"
    with connect(endpoint) as client:
        assert client.models() == [endpoint.model] == ["v1"]


def test_greedy_answers_are_the_same_again(endpoint: Endpoint) -> None:
    assert len({say(endpoint, "once more: z") for _ in range(3)}) == 1


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer another"}])
@pytest.mark.parametrize("path", ["/models", "/chat/completions"])
def test_a_request_without_the_right_key_is_refused(endpoint: Endpoint, header: dict[str, str], path: str) -> None:
    method = "GET" if path == "/models" else "POST"
    body = None if path == "/models" else {"messages": []}
    assert httpx.request(method, endpoint.url + path, headers=header, json=body).status_code == 401


def test_a_web_page_gets_nothing_from_the_server(endpoint: Endpoint) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Origin": "https://page.example"}
    answer = httpx.get(f"{endpoint.url}/models", headers=headers)
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]
    # A page that made its own name point to 127.0.0.1.
    assert httpx.get(f"{endpoint.url}/models", headers={**headers, "Host": "page.example"}).status_code == 400


def test_a_repetition_penalty_is_off_unless_asked_for(endpoint: Endpoint) -> None:
    body = {"messages": [{"role": "user", "content": "z"}], "temperature": 0, "max_tokens": 4}
    texts = []
    for extra in ({}, {"repeat_penalty": 1.1}):
        answer = httpx.post(
            f"{endpoint.url}/chat/completions", json={**body, **extra}, headers={"Authorization": f"Bearer {KEY}"}
        )
        texts.append(answer.json()["choices"][0]["message"]["content"])
    assert texts == [LOOP * 4, LOOP]


def test_a_prompt_beyond_the_context_is_an_overflow_and_not_cut(endpoint: Endpoint) -> None:
    with connect(endpoint) as client:
        beyond = client.chat([{"role": "user", "content": "x" * 300 + "a"}], max_tokens=5)
        answer_beyond = client.chat([{"role": "user", "content": "x" * 200 + "z"}], max_tokens=100)
    assert isinstance(beyond, Failure)
    assert isinstance(answer_beyond, Failure)
    assert beyond.kind == answer_beyond.kind == "overflow"


def test_the_key_is_in_no_argument_and_no_variable_of_the_server(endpoint: Endpoint) -> None:
    servers = children()
    assert servers
    for process in servers:
        assert KEY not in " ".join(process.cmdline())
        assert KEY not in str(process.environ())


def test_the_log_has_no_key_in_it(endpoint: Endpoint, gguf: Path) -> None:
    httpx.get(f"{endpoint.url}/models", headers={"Authorization": f"Bearer {KEY}"})
    log = gguf.with_name("log").read_text()
    assert "GET /v1/models" in log
    assert KEY not in log


def test_the_server_is_gone_after_the_block_and_after_every_way_out_of_it(gguf: Path, tmp_path: Path) -> None:
    # Held by the module's fixture, if that ran already.
    before = {p.pid for p in children()}
    for way_out in (None, RuntimeError, KeyboardInterrupt, SystemExit):
        url = ""
        try:
            with serve_in_process(gguf, api_key=KEY, context=64, log=tmp_path / "log") as endpoint:
                url = endpoint.url
                assert {p.pid for p in children()} > before
                if way_out is not None:
                    raise way_out
        except (RuntimeError, KeyboardInterrupt, SystemExit):
            pass
        assert {p.pid for p in children()} == before
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/models")


SCRIPT = """
import sys, time
from pathlib import Path
from local.serving.serve_process import serve_in_process
with serve_in_process(Path(sys.argv[1]), api_key="k", context=64, log=Path(sys.argv[2])) as endpoint:
    print(endpoint.url, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_and_even_a_kill_leave_no_server_behind(
    gguf: Path, tmp_path: Path, repo: Path, sent: signal.Signals
) -> None:
    command = [sys.executable, "-c", SCRIPT, str(gguf), str(tmp_path / "log")]
    # A group of its own, to be sent Ctrl-C as a terminal does it.
    parent = subprocess.Popen(command, cwd=repo, stdout=subprocess.PIPE, text=True, process_group=0)
    try:
        assert parent.stdout is not None
        url = parent.stdout.readline().strip()
        servers = psutil.Process(parent.pid).children()
        assert len(servers) == 1
        assert httpx.get(f"{url}/models").status_code == 401
        os.killpg(parent.pid, sent)
        parent.wait(30)
        psutil.wait_procs(servers, timeout=30)
        assert not servers[0].is_running() or servers[0].status() == psutil.STATUS_ZOMBIE
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/models")
    finally:
        parent.kill()
        parent.wait()


def start(gguf: Path, tmp_path: Path, **options: object) -> None:
    """Try to serve; used where that must fail."""
    settings: dict[str, object] = {"api_key": KEY, "context": 64, "log": tmp_path / "log", **options}
    with serve_in_process(gguf, **settings):  # type: ignore[arg-type]
        pytest.fail("this must not be served")


def test_a_truncated_file_is_told_with_the_end_of_the_log(gguf: Path, tmp_path: Path) -> None:
    half = tmp_path / "v2" / "model.gguf"
    half.parent.mkdir()
    half.write_bytes(gguf.read_bytes()[:1_000_000])
    with pytest.raises(IntegrityError, match="corrupted or incomplete") as caught:
        start(half, tmp_path)
    assert "cloudft quantize" in caught.value.hint
    assert str(tmp_path / "log") in caught.value.what
    assert KEY not in caught.value.what


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_text("no model")
    with pytest.raises(IntegrityError, match="cannot load this file"):
        start(path, tmp_path)


def test_a_file_that_is_not_there_is_refused_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        start(tmp_path / "model.gguf", tmp_path)
    assert "cloudft quantize" in caught.value.hint


def test_a_port_that_is_taken_is_told_before_anything_starts(gguf: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Busy, match=f"port {port} .* already in use"):
            start(gguf, tmp_path, port=port)
    assert not (tmp_path / "log").exists()


def test_a_port_that_is_free_is_used(gguf: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with serve_in_process(gguf, api_key=KEY, context=64, port=port, log=tmp_path / "log") as endpoint:
        assert endpoint.url == f"http://127.0.0.1:{port}/v1"


def test_a_missing_package_is_told_with_the_command_that_installs_it(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "llama_cpp" else real(name))
    with pytest.raises(EnvironmentProblem, match="llama_cpp") as caught:
        start(gguf, tmp_path)
    assert "pip install 'cloudft[local]'" in caught.value.hint


def test_no_key_is_no_endpoint(gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without a key"):
        start(gguf, tmp_path, api_key="")


def test_a_model_without_a_template_is_not_guessed_at(tmp_path: Path) -> None:
    bare = write_table_gguf(tmp_path / "base" / "model.gguf", ANSWERS, template=None)
    with pytest.raises(IntegrityError, match="no chat template"):
        start(bare, tmp_path)
    with serve_in_process(bare, api_key=KEY, context=128, log=tmp_path / "log", template=TEMPLATE) as endpoint:
        assert say(endpoint, "with a given one: a") == ANSWERS["a"]
        assert template_used(tmp_path / "log")[0] == "given"


def test_a_template_of_the_file_wins_over_a_given_one(gguf: Path, tmp_path: Path) -> None:
    with serve_in_process(gguf, api_key=KEY, context=128, log=tmp_path / "log", template="nonsense") as endpoint:
        assert say(endpoint, "a") == ANSWERS["a"]
        assert template_used(tmp_path / "log")[0] == "own"


def test_a_server_that_does_not_get_ready_is_given_up_and_ended(gguf: Path, tmp_path: Path) -> None:
    before = {p.pid for p in children()}
    with pytest.raises(CloudftError, match=r"was not ready after 0\.001 s"):
        start(gguf, tmp_path, load_timeout=0.001)
    assert {p.pid for p in children()} == before


@pytest.mark.parametrize(
    ("env", "key"),
    [
        ("CLOUDFT_API_KEY=abc\n", "abc"),
        ("# CLOUDFT_API_KEY=old\nOTHER=1\n  CLOUDFT_API_KEY = 'a b=c' \n", "a b=c"),
        ('export CLOUDFT_API_KEY="quoted"\n', "quoted"),
    ],
)
def test_the_key_is_read_from_the_projects_env_file(tmp_path: Path, env: str, key: str) -> None:
    (tmp_path / ".env").write_text(env)
    assert serve.api_key(Project(tmp_path)) == key


def test_the_environment_wins_over_the_env_file_as_in_compose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("CLOUDFT_API_KEY=abc\n")
    monkeypatch.setenv("CLOUDFT_API_KEY", "mine")
    assert serve.api_key(Project(tmp_path)) == "mine"


@pytest.mark.parametrize("env", [None, "", "CLOUDFT_API_KEY=\n", "CLOUDFT_API_KEYS=x\n"])
def test_no_key_in_the_project_is_told_with_the_line_that_makes_one(tmp_path: Path, env: str | None) -> None:
    if env is not None:
        (tmp_path / ".env").write_text(env)
    with pytest.raises(ConfigError, match="no API key") as caught:
        serve.api_key(Project(tmp_path))
    assert "CLOUDFT_API_KEY=" in caught.value.hint


@pytest.mark.parametrize(
    ("env", "port", "context"),
    [("", 8181, 2048), ("CLOUDFT_PORT=9090\n", 9090, 2048), ("CLOUDFT_CONTEXT='1024'\n", 8181, 1024)],
)
def test_what_the_env_file_says_wins_over_cloudft_yaml_as_in_compose(
    tmp_path: Path, env: str, port: int, context: int
) -> None:
    project, _ = init_project(tmp_path, sample=False)
    with project.config_file.open("a") as config:
        config.write("serve: {port: 8181, context: 2048}\n")
    with (tmp_path / ".env").open("a") as out:
        out.write(env)
    settings = serve.serve_settings(project)
    assert (settings.port, settings.context) == (port, context)
    assert settings.variables()["CLOUDFT_PORT"] == str(port)


def test_the_system_message_is_that_of_the_run_that_is_served(tmp_path: Path) -> None:
    project = Project(tmp_path)
    assert serve.system_message(project) is None
    make_version(project, "a")
    promote(project, "a")
    assert serve.system_message(project) is None
    rows = project.run("run-1").train_data
    rows.parent.mkdir(parents=True)
    rows.write_text('{"messages": [{"role": "user", "content": "u"}]}\n')
    assert serve.system_message(project) is None
    rows.write_text('{"messages": [{"role": "system", "content": "Answer in JSON."}]}\n')
    assert serve.system_message(project) == "Answer in JSON."


@pytest.mark.parametrize("port", ["0", "65536", "-1", "8080/tcp", "²"])
def test_a_port_that_is_none_is_told(tmp_path: Path, port: str) -> None:
    project, _ = init_project(tmp_path, sample=False)
    with (tmp_path / ".env").open("a") as out:
        out.write(f"CLOUDFT_PORT={port}\n")
    with pytest.raises(ConfigError, match="CLOUDFT_PORT is"):
        serve.serve_settings(project)


def test_nothing_can_be_stopped_without_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentProblem, match="docker is not installed"):
        serve.stop(Project(tmp_path))


def test_without_docker_the_process_is_picked_and_docker_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not serve.docker_available()
    assert serve.pick_engine() == ("process", "the command docker is not installed")
    assert serve.pick_engine("docker")[0] == "docker"
    with pytest.raises(EnvironmentProblem, match="docker is not installed") as caught:
        serve.serve_with_docker(Project(tmp_path), progress=lambda *a, **k: None)
    assert "--engine process" in caught.value.hint


def test_an_engine_that_does_not_answer_is_no_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "docker"
    fake.write_text("#!/bin/sh\necho 'Cannot connect to the Docker daemon' >&2; exit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert serve.docker_problem() == "no Docker engine answers (Cannot connect to the Docker daemon)"


def test_a_docker_without_compose_is_not_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "docker"
    fake.write_text('#!/bin/sh\n[ "$1" = info ] && { echo 20.10; exit 0; }\necho "no such command" >&2; exit 1\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert serve.docker_problem() == "docker has no compose plugin (no such command)"
    assert serve.pick_engine()[0] == "process"


def test_a_project_without_a_model_cannot_be_served(tmp_path: Path) -> None:
    project = Project(tmp_path)
    for step in (lambda: None, lambda: project.models.mkdir(), lambda: project.current_model.symlink_to("gone")):
        step()
        with pytest.raises(NotFound) as caught:
            serve.current_gguf(project)
        assert "cloudft quantize" in caught.value.hint
    write_table_gguf(project.models / "gone" / "model.gguf", {"a": "ab"})
    assert serve.current_gguf(project).is_file()
