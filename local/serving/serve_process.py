"""Serving without Docker: llama_cpp.server as a child of this process, for as long as a ``with`` block lasts."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cloudft.errors import Busy, CloudftError, EnvironmentProblem, IntegrityError, NotFound
from local.evaluation.endpoint import LLAMA_CPP_SERVER, Client, Endpoint, Failure
from local.serving.serve_child import NO_TEMPLATE, NOT_LOADED, TEMPLATE_USED

ENGINE = LLAMA_CPP_SERVER
# As in Dockerfile.serve: threads that wait for each other in long loops make a busy computer several times slower.
CALM = {"GOMP_SPINCOUNT": "1000"}
NOTHING_CHANGED = "nothing is being served and no file was changed"
_NEEDED = ("llama_cpp", "uvicorn", "fastapi", "sse_starlette", "starlette_context", "pydantic_settings")


@contextlib.contextmanager
def serve_in_process(
    gguf: Path,
    *,
    api_key: str,
    context: int,
    port: int | None = None,
    log: Path,
    template: str | None = None,
    replace_template: bool = False,
    lora: Path | None = None,
    logits: bool = False,
    load_timeout: float = 900.0,
) -> Iterator[Endpoint]:
    """Serve a GGUF file on 127.0.0.1 while the block runs; ready when it is entered, gone when it is left.

    The child ends with the block, with an exception, with Ctrl-C, and with this process even if that is killed.

    Args:
        gguf: the model; its own chat template is used.
        api_key: the key that every request must carry. It reaches the child through a pipe.
        context: longest prompt and answer together, in tokens.
        port: TCP port; None: any free one.
        log: file for what the server prints; overwritten.
        template: Jinja chat template for a file that brings none.
        replace_template: use it also in place of one that the file brings.
        lora: a LoRA GGUF file to add to the model. llama.cpp then reads the model into memory instead of mapping it.
        logits: keep those of every position, for log-probabilities of a prompt: context x vocabulary x 4 bytes.
        load_timeout: seconds that loading may take.

    Raises:
        NotFound: there is no such file.
        Busy: the port is taken.
        EnvironmentProblem: llama-cpp-python with its server is not installed.
        IntegrityError: the file is no model, is truncated, or has no chat template.
        CloudftError: the server ended or hung for another reason; the log's last lines are in the message.
    """
    if not api_key:
        raise ValueError("an endpoint without a key would be open to every program on this computer")
    _check(gguf)
    with _listen(port) as sock:
        address = f"http://127.0.0.1:{sock.getsockname()[1]}/v1"
        endpoint = Endpoint(address, api_key, served_name(gguf), ENGINE)
        options = {
            "context": context,
            "template": template,
            "replace_template": replace_template,
            "lora": str(lora.resolve()) if lora else None,
            "logits": logits,
        }
        child = _start(sock, endpoint, gguf, options, log)
    try:
        _wait_until_ready(child, endpoint, gguf, log, load_timeout)
        yield endpoint
    finally:
        _end(child)


def served_name(gguf: Path) -> str:
    """What the model is called by its endpoint."""
    return gguf.resolve().parent.name or gguf.stem


def _check(gguf: Path) -> None:
    if not gguf.is_file():
        raise NotFound(f"{gguf} is not there", effect=NOTHING_CHANGED, hint="make the served file:  cloudft quantize")
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise EnvironmentProblem(
            f"serving without Docker needs {', '.join(missing)}, which this Python does not have",
            effect=NOTHING_CHANGED,
            hint="install what is missing:  pip install 'cloudft[local]'",
        )


@contextlib.contextmanager
def _listen(port: int | None) -> Iterator[socket.socket]:
    """A listening socket for the child. Bound here, nobody can take the port between asking and using it."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port or 0))
            sock.listen()
        except OSError as exc:
            raise Busy(
                f"port {port} on 127.0.0.1 cannot be used: {exc.strerror}",
                effect=NOTHING_CHANGED,
                hint="stop what uses it, or choose another port: serve.port in cloudft.yaml",
            ) from exc
        yield sock
    finally:
        sock.close()


def _start(
    sock: socket.socket, endpoint: Endpoint, gguf: Path, options: Mapping[str, Any], log: Path
) -> subprocess.Popen[bytes]:
    """Start the child and hand it its settings. A session of its own: Ctrl-C is for the parent, which ends it."""
    settings = {
        "model": str(gguf.resolve()),
        "name": endpoint.model,
        "api_key": endpoint.api_key,
        "threads": _threads(),
        **options,
    }
    log.parent.mkdir(parents=True, exist_ok=True)
    script = Path(__file__).with_name("serve_child.py")
    with log.open("wb") as out:
        child = subprocess.Popen(
            # -P: the script's own folder stays off sys.path, where its neighbours could shadow a package.
            [sys.executable, "-P", str(script), str(sock.fileno())],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            pass_fds=[sock.fileno()],
            env={**CALM, **os.environ},
            start_new_session=True,
        )
    try:
        assert child.stdin is not None
        child.stdin.write(json.dumps(settings).encode() + b"\n")
        child.stdin.flush()
    except BrokenPipeError:
        pass  # It died at once; waiting for it to be ready reports that, with its log.
    except BaseException:
        _end(child)
        raise
    return child


def _threads() -> int:
    """Threads for llama.cpp: the physical cores that this process may use; twice as many would be slower."""
    import psutil

    usable = len(os.sched_getaffinity(0))
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


def _wait_until_ready(
    child: subprocess.Popen[bytes], endpoint: Endpoint, gguf: Path, log: Path, load_timeout: float
) -> None:
    """Return when the server answers with the key; raise when it has died or takes too long."""
    give_up = time.monotonic() + load_timeout
    client = Client(endpoint, timeout=min(2.0, load_timeout), attempts=1)
    try:
        while True:
            answer = client.models()
            if not isinstance(answer, Failure):
                return
            if child.poll() is not None:
                raise _died(child.returncode, gguf, log)
            if answer.kind not in ("unreachable", "timeout"):
                raise CloudftError(f"the server for {gguf} does not work: {answer.message}", effect=NOTHING_CHANGED)
            if time.monotonic() > give_up:
                raise CloudftError(
                    f"the server for {gguf} was not ready after {load_timeout:g} s; its log {log} ends with:\n"
                    f"{last_lines(log)}",
                    effect=NOTHING_CHANGED,
                )
            time.sleep(0.05)
    finally:
        client.close()


def _died(code: int, gguf: Path, log: Path) -> CloudftError:
    """The error for a server that ended before it was ready."""
    tail = last_lines(log)
    if NO_TEMPLATE in tail:
        return IntegrityError(
            f"{gguf} has no chat template, so it cannot be asked questions the way it was trained",
            effect=NOTHING_CHANGED,
            hint="give the template as train.template in cloudft.yaml, then:  cloudft quantize",
        )
    what = f"the server for {gguf} ended at start (exit code {code}); its log {log} ends with:\n{tail}"
    if NOT_LOADED in tail:
        return IntegrityError(
            what,
            effect=f"{NOTHING_CHANGED}; the adapter of the run is not touched by this",
            hint="the file may be incomplete; make it again:  cloudft quantize",
        )
    return CloudftError(what, effect=NOTHING_CHANGED)


def last_lines(log: Path, lines: int = 15) -> str:
    """The end of a log, indented."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "  (there is no log)"
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:]) or "  (the log is empty)"


def template_used(log: Path) -> tuple[str, str]:
    """Which chat template a server said it uses: "own" (the file's) or "given", and its sha256.

    Raises:
        ValueError: the log does not say.
    """
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(TEMPLATE_USED):
            source, digest = line.removeprefix(TEMPLATE_USED).split()
            return source, digest
    raise ValueError(f"{log} does not say which chat template is used")


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child: by the end of its input and SIGTERM, then by SIGKILL; returns when it is gone."""
    try:
        if child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()
        child.terminate()
        child.wait(timeout=10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    except BaseException:
        # Ctrl-C a second time: still nothing may be left running.
        child.kill()
        child.wait()
        raise
