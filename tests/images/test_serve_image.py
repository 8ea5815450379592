"""The serving image and compose.yaml, really built and run: answers, refusals, fences, and what a mistake says."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from cloudft.errors import CloudftError, VerifyError
from local.evaluation.document.outputs import read_outputs
from local.evaluation.endpoint import Endpoint, Failure, Fim, Question, Reply, chat_once, connect
from local.evaluation.evaluate import evaluate_run
from local.evaluation.task import ToolsTask
from local.progress import silent
from local.project import Project
from local.quantizing.toolchain import Toolchain
from local.quantizing.verify_tokens import prompts
from local.scaffold import write_serving_files
from local.serving.serve import serve_with_docker, stop
from local.serving.serve_check import refuse_other_prompts
from local.serving.versions import MANIFEST, MODEL, PROMPTS, promote
from tests.local.quantize_fixtures import ROWS as TICKETS
from tests.local.quantize_fixtures import Quantised, quantised, tiny_adapter, tiny_base, toolchain
from tests.local.quantizing.test_verify import rewrite
from tests.local.serve_fixtures import LOOP, Trained, make_trained, write_table_gguf
from tests.services.compose import Compose
from tests.services.engine import DockerEngine

__all__ = ["quantised", "tiny_adapter", "tiny_base", "toolchain"]

# The build compiles llama.cpp: minutes on two cores, once for each state of Dockerfile.serve.
pytestmark = pytest.mark.timeout(3600)
BUILD_SECONDS = 3000

KEY = "a-key-for-the-tests"
GOOD = {"category": "bug", "priority": "high"}
ROWS: list[tuple[str, Any]] = [("It crashes. a", GOOD), ("And this? b", GOOD), ("Hello! z", GOOD)]
BEFORE = {"a": "Sure!", "b": "I see.", "z": LOOP}
AFTER = {"a": json.dumps(GOOD), "b": json.dumps({**GOOD, "priority": "low"}), "z": LOOP}


@pytest.fixture(scope="session")
def serve_tag(compose: Compose, base_image: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Tag of the image as `docker compose build serve` makes it in a new project.

    It names what it was built from, so it is not built again without need.
    """
    engine, folder = compose.engine, tmp_path_factory.mktemp("build")
    write_serving_files(folder)
    base = engine.inspect(base_image)
    assert base is not None
    tag = f"test-{hashlib.sha256((folder / 'Dockerfile.serve').read_bytes() + base['Id'].encode()).hexdigest()[:16]}"
    if engine.inspect(f"cloudft-serve:{tag}") is None:
        env = {"DOCKER_BUILDKIT": "0", "CLOUDFT_SERVE_TAG": tag, "CLOUDFT_BASE_IMAGE": base_image}
        engine.run("compose", "--project-directory", str(folder), "build", "serve", env=env, timeout=BUILD_SECONDS)
    assert engine.inspect(f"cloudft-serve:{tag}") is not None
    return tag


@dataclass(frozen=True)
class Served:
    """A project with what `cloudft init` puts into it, and how to run compose there."""

    trained: Trained
    compose: Compose
    env: dict[str, str]

    @property
    def project(self) -> Project:
        return self.trained.project

    @property
    def endpoint(self) -> Endpoint:
        port = yaml.safe_load(self.project.config_file.read_text())["serve"]["port"]
        return Endpoint(f"http://127.0.0.1:{port}/v1", KEY, self.trained.tuned.parent.name, "llama-server")

    def run(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.compose.run(self.project.root, *args, env=self.env, check=check)

    def container(self) -> dict[str, Any]:
        name = self.run("ps", "--all", "--quiet", "serve").stdout.strip()
        found: dict[str, Any] = json.loads(self.compose.engine.run("inspect", name).stdout)[0]
        return found


def make_served(folder: Path, compose: Compose, tag: str, base: str, trained: Trained | None = None) -> Served:
    trained = trained or make_trained(folder, ROWS, BEFORE, AFTER, context=256, max_tokens=16)
    write_serving_files(folder)
    serve = yaml.safe_load(trained.project.config_file.read_text())["serve"]
    (folder / ".env").write_text(
        f"CLOUDFT_API_KEY={KEY}\nCLOUDFT_PORT={serve['port']}\nCLOUDFT_CONTEXT={serve['context']}\nHF_TOKEN=hf_secret\n"
    )
    return Served(trained, compose, {"CLOUDFT_SERVE_TAG": tag, "CLOUDFT_BASE_IMAGE": base})


@pytest.fixture
def served(tmp_path: Path, compose: Compose, serve_tag: str, base_image: str) -> Iterator[Served]:
    served = make_served(tmp_path, compose, serve_tag, base_image)
    with compose.project(tmp_path, env=served.env):
        yield served


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, compose: Compose, serve_tag: str, base_image: str
) -> Iterator[Served]:
    """`docker compose up -d --wait serve`, for the tests that only look at it."""
    folder = tmp_path_factory.mktemp("served")
    served = make_served(folder, compose, serve_tag, base_image)
    with compose.project(folder, env=served.env):
        served.run("up", "-d", "--wait", "serve")
        yield served


def say(endpoint: Endpoint, text: str) -> str:
    return chat_once(endpoint, [{"role": "user", "content": text}], max_tokens=16).text


def test_the_tuned_model_answers_through_its_template(running: Served) -> None:
    assert say(running.endpoint, "It crashes. a") == AFTER["a"]
    assert say(running.endpoint, "Hello! z") == LOOP * 16
    with connect(running.endpoint) as client:
        assert client.models() == [running.trained.tuned.parent.name]


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {KEY}x"}])
def test_a_wrong_key_is_refused_everywhere_but_for_the_health(running: Served, header: dict[str, str]) -> None:
    url = running.endpoint.url
    for path in ("models", "chat/completions", "completions", "embeddings"):
        method = "GET" if path == "models" else "POST"
        assert httpx.request(method, f"{url}/{path}", headers=header, json={}).status_code == 401
    root = url.removesuffix("/v1")
    for path in ("metrics", "props", "slots"):
        assert httpx.get(f"{root}/{path}", headers=header).status_code == 401
    assert httpx.get(f"{root}/health", headers=header).json() == {"status": "ok"}


def test_a_prompt_beyond_the_context_is_an_overflow_and_not_cut(running: Served) -> None:
    with connect(running.endpoint) as client:
        beyond = client.chat([{"role": "user", "content": "x" * 300 + "a"}], max_tokens=5)
        answer_beyond = client.chat([{"role": "user", "content": "x" * 200 + "z"}], max_tokens=100)
    assert isinstance(beyond, Failure)
    assert isinstance(answer_beyond, Failure)
    assert beyond.kind == answer_beyond.kind == "overflow"


def test_a_web_page_elsewhere_may_not_read_answers(running: Served) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Origin": "https://page.example"}
    answer = httpx.get(f"{running.endpoint.url}/models", headers=headers)
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers


def test_an_evaluation_through_the_container_gives_the_numbers_of_one_without(running: Served) -> None:
    trained = running.trained
    through = evaluate_run(trained.project, trained.run, progress=silent, endpoint=running.endpoint)
    without = evaluate_run(trained.project, trained.run, progress=silent)
    assert (
        through.after
        == without.after
        == {
            "schema_valid": 2 / 3,
            "exact_match": 1 / 3,
            "field_f1": 2 * 3 / (6 + 4),
            "exact_match.category": 2 / 3,
            "exact_match.priority": 1 / 3,
        }
    )
    after = through.document.sides["after"]
    assert after.model.engine == "llama-server"
    assert after.usage.workers == 2  # what the container says it takes
    assert after.usage.cached == 0


# As Qwen's and Hermes' templates have it: tools in a system message, calls between tags.
HERMES = (
    "{% if tools %}<|im_start|>system\n<tools>{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools>\n"
    "For each call, return a json object with name and arguments within <tool_call></tool_call> tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n{% endif %}'
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ messages[-1].content[-1:] }}{% endif %}"
)
FIM = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
NOW = {"type": "object", "properties": {"zone": {"type": "string"}}, "required": ["zone"]}
TOOLS = ({"type": "function", "function": {"name": "now", "description": "the time", "parameters": NOW}},)


def test_calls_and_code_in_the_middle_are_measured_through_the_container(
    tmp_path: Path, compose: Compose, serve_tag: str, base_image: str
) -> None:
    """llama-server itself finds the calls in the model's text, several in one answer too."""
    calls = [{"name": "now", "arguments": {"zone": zone}} for zone in ("CET", "UTC")]
    cet, utc = (f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls)
    rows = [("Now? a", cet), ("Hello! b", "Hello!"), ("Both? c", f"{cet}\n{utc}")]
    answers = {"a": cet, "b": "Hi there.", "c": f"{cet}\n{utc}", FIM[2]: "return x"}
    task = ToolsTask(tools=TOOLS, send=True, max_tokens=64)
    before = {**answers, "a": "So?"}
    trained = make_trained(tmp_path, rows, before, answers, context=1024, task=task, special=FIM, template=HERMES)
    served = make_served(tmp_path, compose, serve_tag, base_image, trained)
    with compose.project(tmp_path, env=served.env):
        served.run("up", "--detach", "--wait", "serve")
        found = evaluate_run(trained.project, trained.run, progress=silent, endpoint=served.endpoint)
        with connect(served.endpoint) as client:
            code = client.ask(Question((), 16, text=Fim(*FIM).around("def f(x):\n    ", "\n")))
    assert (found.before["exact_match"], found.after["exact_match"]) == (2 / 3, 1)
    lines = read_outputs(trained.run, found.document.sides["after"].outputs)
    assert [len(line.tool_calls) for line in lines] == [1, 0, 2]
    assert isinstance(code, Reply)
    assert code.text == "return x"


def test_the_container_is_fenced_in(running: Served) -> None:
    found = running.container()
    host = found["HostConfig"]
    assert found["Config"]["User"] == "10001:10001"
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["Memory"] == 8 * 2**30
    assert host["PidsLimit"] == 512
    assert [b["HostIp"] for b in host["PortBindings"]["8080/tcp"]] == ["127.0.0.1"]
    assert [(m["Destination"], m["RW"]) for m in found["Mounts"]] == [("/models", False)]


def test_nothing_can_be_written_and_no_privilege_is_left(running: Served) -> None:
    def inside(command: str) -> subprocess.CompletedProcess[str]:
        return running.run("exec", "-T", "serve", "sh", "-c", command, check=False)

    assert inside("id -u; id -g").stdout.split() == ["10001", "10001"]
    for path in ("/opt/llama/x", "/x", "/models/x", "/models/current/model.gguf"):
        assert inside(f"echo x >> {path}").returncode != 0
    assert inside("echo x > /tmp/x").returncode == 0
    capabilities = inside("grep -h '^Cap\\(Eff\\|Prm\\|Bnd\\)\\|^NoNewPrivs' /proc/1/status").stdout.split()
    assert capabilities[1::2] == ["0" * 16, "0" * 16, "0" * 16, "1"]


def test_the_key_is_in_no_argument_and_no_log_and_other_secrets_stay_outside(running: Served) -> None:
    say(running.endpoint, "a")
    arguments = running.run("exec", "-T", "serve", "cat", "/proc/1/cmdline").stdout
    assert "llama-server" in arguments
    assert KEY not in arguments
    assert KEY not in running.run("logs", "serve").stdout
    variables = {entry.partition("=")[0] for entry in running.container()["Config"]["Env"]}
    assert "CLOUDFT_API_KEY" in variables
    assert "HF_TOKEN" not in variables


def test_the_image_holds_the_server_and_no_tools(docker_engine: DockerEngine, serve_tag: str) -> None:
    image = f"cloudft-serve:{serve_tag}"
    found = docker_engine.inspect(image)
    assert found is not None
    assert found["Config"]["User"] == "10001:10001"
    assert found["Config"]["Labels"]["cloudft.llama-cpp-python"] == "0.3.36"
    assert found["Config"]["Healthcheck"]["Test"][0] == "CMD"
    assert not [name for name in found["Config"]["Env"] if name.startswith(("PIP_", "CLOUDFT_"))]
    look = "ls /opt/llama; command -v g++ cmake ninja || true; /opt/llama/llama-server --version 2>&1"
    listing = docker_engine.run("run", "--rm", "--entrypoint", "sh", image, "-c", look).stdout
    assert "version: " in listing
    for family in ("x64", "haswell", "alderlake", "icelake"):
        assert f"libggml-cpu-{family}.so" in listing
    assert "LICENSE.llama.cpp" in listing
    assert not re.search(r"/(g\+\+|cmake|ninja)$", listing, re.MULTILINE)


def write_key(served: Served, line: str) -> None:
    """Set the key alone; on the usual port something else may listen."""
    port = yaml.safe_load(served.project.config_file.read_text())["serve"]["port"]
    (served.project.root / ".env").write_text(f"CLOUDFT_PORT={port}\n{line}")


def test_no_key_no_service(served: Served) -> None:
    write_key(served, "")
    refused(served, "there is no API key. Put a line CLOUDFT_API_KEY=")


def test_a_key_that_would_be_two_is_refused(served: Served) -> None:
    write_key(served, "CLOUDFT_API_KEY=one,two\n")
    refused(served, "must not contain a comma")


def test_no_model_is_told_with_the_command_that_makes_it(served: Served) -> None:
    served.project.current_model.unlink()
    refused(served, "models/current is missing. Make it with: cloudft quantize")


def test_a_link_that_leads_nowhere_is_told(served: Served) -> None:
    served.project.current_model.unlink()
    served.project.current_model.symlink_to("a-version-that-is-gone")
    refused(served, "models/current points to a-version-that-is-gone, which is not in models/")


def test_a_version_without_a_file_is_told(served: Served) -> None:
    served.trained.tuned.unlink()
    refused(served, "models/current holds no model.gguf")


def test_a_model_that_the_container_may_not_read_is_told(served: Served) -> None:
    served.trained.tuned.chmod(0o600)
    refused(served, "cannot be read by user 10001. Allow it with: chmod -R a+rX models")


def test_settings_that_are_no_numbers_are_told(served: Served) -> None:
    with (served.project.root / ".env").open("a") as env:
        env.write("CLOUDFT_CONTEXT=lots\n")
    refused(served, "must be whole numbers")


def test_a_truncated_model_ends_the_wait(served: Served) -> None:
    served.trained.tuned.write_bytes(served.trained.tuned.read_bytes()[:1_000_000])
    refused(served, "model is corrupted or incomplete", code=1)


def refused(served: Served, message: str, code: int = 78) -> None:
    """`up --wait` fails, the log says why, and the container has ended for good after a few tries."""
    up = served.run("up", "-d", "--wait", "serve", check=False)
    assert up.returncode != 0
    until = time.monotonic() + 120
    # Between two tries it is "restarting", and "exited" only after the last.
    while (state := served.container())["State"]["Status"] != "exited" and time.monotonic() < until:
        time.sleep(0.2)
    assert state["State"]["Status"] == "exited"
    assert message in served.run("logs", "serve").stdout
    assert state["State"]["ExitCode"] == code
    assert state["RestartCount"] <= 3


def test_docker_never_makes_the_models_folder_which_would_be_roots(served: Served) -> None:
    served.project.models.rename(served.project.root / "elsewhere")
    up = served.run("up", "-d", "--wait", "serve", check=False)
    assert up.returncode != 0
    assert "models" in up.stderr
    assert not served.project.models.exists()


@pytest.fixture
def docker_on_path(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `cloudft serve` finds when it types `docker compose` itself."""
    for name, value in {**served.compose.engine.env(), **served.env, "DOCKER_BUILDKIT": "0"}.items():
        if name.startswith(("DOCKER_", "CLOUDFT_SERVE", "CLOUDFT_BASE")):
            monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("docker_on_path")
def test_cloudft_serve_starts_replaces_and_stops_the_container(served: Served) -> None:
    notes: list[str] = []

    def progress(what: str, done: float = 0, total: float | None = None, unit: str = "", note: str = "") -> None:
        notes.append(f"{what}: {note}")

    # Port and context of cloudft.yaml are enough.
    (served.project.root / ".env").write_text(f"CLOUDFT_API_KEY={KEY}\n")
    endpoint = serve_with_docker(served.project, progress=progress)
    assert endpoint == served.endpoint
    assert say(endpoint, "a") == AFTER["a"]
    assert any(note.startswith("docker compose: ") and "Started" in note for note in notes)
    with connect(endpoint) as client:
        assert isinstance(client.chat([{"role": "user", "content": "x" * 300}], max_tokens=1), Failure)

    newer = write_table_gguf(served.project.models / "newer" / "model.gguf", {"a": "new answer"})
    manifest = json.loads((served.trained.tuned.parent / "manifest.json").read_text())
    manifest |= {"version": "newer", "gguf_bytes": newer.stat().st_size}
    (newer.parent / "manifest.json").write_text(json.dumps(manifest))
    promote(served.project, "newer")
    again = serve_with_docker(served.project, progress=silent)
    assert again.model == "newer"
    assert say(again, "a") == "new answer"

    stop(served.project)
    assert served.run("ps", "--all", "--quiet", "serve").stdout == ""
    stop(served.project)


# What chat templates are made of, in one; of every kind of statement, test and filter some that are in use.
ENGINE = """\
{%- set ns = namespace(system='', turn=0) -%}
{%- macro turn(role, text) %}<|im_start|>{{ role }}\n{{ text | trim }}<|im_end|>\n{% endmacro -%}
{%- if messages[0]['role'] == 'system' %}
    {%- set ns.system = messages[0].content ~ ' ' ~ (messages | length) %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- turn('system', ns.system or 'none') }}
{%- for message in messages %}
    {%- if loop.first and message.role not in ['user', 'tool'] %}
        {{- raise_exception('begin with a user') }}
    {%- endif %}
    {%- set text = message.content if message.content is string else message.content | map(attribute='text') | join %}
    {%- if '</think>' in text %}{% set text = text.split('</think>')[-1].lstrip('\\n') %}{% endif %}
    {%- set ns.turn = ns.turn + 1 %}
    {{- turn(message['role'] | replace('assistant', 'model') | upper, text) }}
    {%- if not loop.last and loop.index0 % 2 == 1 %}{{ {'n': ns.turn, 'é': [1, 2.5, true, none]} | tojson }}{% endif %}
{%- endfor %}
{%- if tools is defined and tools %}{{ tools | tojson(indent=4) }}{% endif %}
{%- for word in ['a', 'b'] if word != 'a' %}{{ word.title() }}{% else %}-{% endfor %}
{{- (messages | selectattr('role', 'equalto', 'user') | list | length) ~ strftime_now('%Y')[:2] }}
{%- if add_generation_prompt %}{{ '<|im_start|>' + 'MODEL\\n' }}{% endif %}"""


@pytest.fixture
def engine_version(served: Served, quantised: Quantised, toolchain: Toolchain) -> Path:
    """A version that is served with ``ENGINE``; its prompts are what transformers makes of it."""
    root = served.project.models / "engine"
    root.mkdir()
    rewrite(toolchain, quantised.version.gguf, root / MODEL, "--chat-template", ENGINE)
    (root / MODEL).chmod(0o644)
    manifest = json.loads((quantised.version.root / MANIFEST).read_text())
    manifest |= {"version": "engine", "gguf_bytes": (root / MODEL).stat().st_size}
    (root / MANIFEST).write_text(json.dumps(manifest))
    samples = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>b</think>\n c "}] * 2]
    found = prompts(quantised.run.adapter, ENGINE, samples + [row["messages"] for row in TICKETS])
    (root / PROMPTS).write_text(json.dumps(found))
    promote(served.project, "engine")
    return root


@pytest.mark.usefixtures("docker_on_path")
def test_the_servers_own_template_engine_makes_the_prompts_of_training(served: Served, engine_version: Path) -> None:
    endpoint = serve_with_docker(served.project, progress=silent)
    assert refuse_other_prompts(endpoint, engine_version) > 8
    found = json.loads((engine_version / PROMPTS).read_text())
    found[1]["ids"][3] += 1
    (engine_version / PROMPTS).write_text(json.dumps(found))
    with pytest.raises(VerifyError, match="makes another prompt of a conversation than training did: from token 3"):
        serve_with_docker(served.project, progress=silent)
    assert served.run("ps", "--all", "--quiet", "serve").stdout == ""


@pytest.mark.usefixtures("docker_on_path")
def test_cloudft_serve_tells_why_a_container_did_not_start_and_removes_it(served: Served) -> None:
    served.trained.tuned.chmod(0o600)
    with pytest.raises(CloudftError, match="cannot be read by user 10001") as caught:
        serve_with_docker(served.project, progress=silent)
    assert "docker compose up serve" in caught.value.hint
    assert served.run("ps", "--all", "--quiet", "serve").stdout == ""


@pytest.mark.usefixtures("docker_on_path")
def test_ctrl_c_while_it_starts_leaves_no_container(served: Served) -> None:
    def progress(what: str, done: float = 0, total: float | None = None, unit: str = "", note: str = "") -> None:
        if "Start" in note:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        serve_with_docker(served.project, progress=progress)
    assert served.run("ps", "--all", "--quiet", "serve").stdout == ""


def test_the_images_name_is_that_of_its_recipe(repo: Path) -> None:
    digest = hashlib.sha256((repo / "Dockerfile.serve").read_bytes()).hexdigest()[:12]
    image = yaml.safe_load((repo / "compose.yaml").read_text())["services"]["serve"]["image"]
    assert image == f"cloudft-serve:${{CLOUDFT_SERVE_TAG:-{digest}}}", (
        "Dockerfile.serve changed: put this into compose.yaml"
    )


def test_the_recipe_keeps_to_what_both_builders_know(repo: Path) -> None:
    text = (repo / "Dockerfile.serve").read_text()
    assert not re.search(r"^#\s*syntax=|<<|--mount|--link|--chmod|--start-interval", text, re.MULTILINE | re.IGNORECASE)
    assert re.search(r"^ARG BASE_IMAGE=python:3\.11-slim\n+FROM \$\{BASE_IMAGE\}", text, re.MULTILINE)
    assert "https://" not in text


def test_only_what_images_copy_reaches_a_builder(tmp_path: Path, docker_engine: DockerEngine, repo: Path) -> None:
    for name in (
        ".env",
        ".git/config",
        "models/v/model.gguf",
        "data/x.jsonl",
        "runs/r/run.json",
        ".venv/x",
        "demo/.env",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("secret")
    for name in ("jobs/spec.py", "jobs/__pycache__/spec.pyc", "images/train-requirements.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("public")
    (tmp_path / ".dockerignore").write_bytes((repo / ".dockerignore").read_bytes())
    (tmp_path / "Dockerfile").write_text('FROM scratch\nCOPY . /\nCMD ["x"]\n')
    image = docker_engine.run("build", "-q", str(tmp_path), env={"DOCKER_BUILDKIT": "0"}).stdout.strip()
    container = docker_engine.run("create", image).stdout.strip()
    try:
        archive = subprocess.run(
            [docker_engine.cli, "cp", f"{container}:/", "-"], capture_output=True, check=True, env=docker_engine.env()
        ).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            files = {m.name.lstrip("./") for m in tar if m.isfile() and tar.extractfile(m).read()}  # type: ignore[union-attr]
    finally:
        docker_engine.run("rm", container)
        docker_engine.run("rmi", image)
    assert {f for f in files if not f.startswith(("dev/", "etc/", "proc/", "sys/"))} - {".dockerenv"} == {
        "jobs/spec.py",
        "images/train-requirements.txt",
    }
