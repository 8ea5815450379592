"""The client against servers that answer as llama-server and llama_cpp.server do, and against worse ones."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from cloudft.errors import CloudftError, ConfigError, DataError, UsageError
from local.evaluation.address import other_endpoint
from local.evaluation.endpoint import (
    LLAMA_CPP_SERVER,
    Client,
    Endpoint,
    Failure,
    Question,
    Reply,
    Sampling,
    as_error,
    chat_once,
    connect,
)

KEY = "a-very-secret-key"
QUESTION = [{"role": "user", "content": "Where is my invoice?"}]


def completion(text: str | None = "hello", finish: str = "stop", used: int = 3) -> tuple[int, Any]:
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 11, "completion_tokens": used, "total_tokens": 11 + used}
    return 200, {"choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": usage}


# As the real ones word it: tools/server/server-common.cpp and llama_cpp/server/errors.py.
LLAMA_SERVER_OVERFLOW = (
    400,
    {
        "error": {
            "code": 400,
            "message": "request (70 tokens) exceeds the available context size (64 tokens), try increasing it",
            "type": "exceed_context_size_error",
            "n_prompt_tokens": 70,
            "n_ctx": 64,
        }
    },
)
LLAMA_CPP_OVERFLOW = (
    400,
    {
        "error": {
            "message": "This model's maximum context length is 64 tokens. However, you requested 75 tokens",
            "type": "invalid_request_error",
            "param": "messages",
            "code": "context_length_exceeded",
        }
    },
)
HANG_UP = (0, None)


class Server:
    """Answers with a script, one entry a request and the last one for ever; keeps what it was asked."""

    def __init__(self) -> None:
        self.script: list[tuple[int, Any]] = []
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.headers: dict[str, str] = {}
        self.gate = threading.Event()
        self.gate.set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                server.requests.append((self.path, dict(self.headers), json.loads(body) if body else None))
                server.gate.wait(30)
                index = min(len(server.requests), len(server.script)) - 1
                status, answer = server.script[index]
                if (status, answer) == HANG_UP:
                    self.close_connection = True
                    return
                raw = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                for name, value in server.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)

            do_GET = do_POST

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = Endpoint(f"http://127.0.0.1:{self.http.server_port}/v1", KEY, "tickets", LLAMA_CPP_SERVER)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.gate.set()
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def ask(server: Server) -> Iterator[Callable[..., Reply | Failure]]:
    naps: list[float] = []
    client = Client(server.endpoint, sleep=naps.append)

    def ask(max_tokens: int = 20) -> Reply | Failure:
        return client.chat(QUESTION, max_tokens=max_tokens)

    ask.naps = naps  # type: ignore[attr-defined]
    yield ask
    client.close()


def test_a_question_is_asked_greedily_with_every_knob_spelt_out(
    server: Server, ask: Callable[..., Reply | Failure]
) -> None:
    server.script = [completion("Grüße")]
    assert ask() == Reply("Grüße", "stop", 11, 3)
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert body == {
        "model": "tickets",
        "messages": QUESTION,
        "max_tokens": 20,
        "temperature": 0,
        "top_k": 1,
        "top_p": 1,
        "min_p": 0,
        "repeat_penalty": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "seed": 0,
        "cache_prompt": False,
        "stream": False,
    }


def test_a_service_that_is_not_ours_gets_openais_parameters_alone(server: Server) -> None:
    server.script = [completion()]
    with connect(Endpoint(server.endpoint.url, "", "gpt", "api.example")) as client:
        client.chat(QUESTION, max_tokens=20)
    _, headers, body = server.requests[0]
    assert "Authorization" not in headers
    assert set(body) == {
        "model",
        "messages",
        "max_tokens",
        "temperature",
        "top_p",
        "presence_penalty",
        "frequency_penalty",
        "seed",
        "stream",
    }


def test_chance_is_asked_for_by_temperature_and_seed(server: Server) -> None:
    server.script = [completion()]
    with connect(server.endpoint) as client:
        client.ask(Question(tuple(QUESTION), 20), Sampling(0.7, 3))
    body = server.requests[0][2]
    assert (body["temperature"], body["seed"], body["top_k"], body["top_p"], body["min_p"]) == (0.7, 3, 0, 1, 0)


def test_tools_are_sent_and_calls_are_read(server: Server) -> None:
    tool = {"type": "function", "function": {"name": "now", "parameters": {}}}
    call: dict[str, Any] = {"id": "1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    status, answer = completion(None, "tool_calls")
    answer["choices"][0]["message"]["tool_calls"] = [call]
    server.script = [(status, answer)]
    with connect(server.endpoint) as client:
        reply = client.ask(Question(tuple(QUESTION), 20, tools=(tool,)))
    assert server.requests[0][2]["tools"] == [tool]
    assert reply == Reply("", "tool_calls", 11, 3, ({name: call[name] for name in ("type", "function")},))


def test_a_bare_text_is_continued(server: Server) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 2}
    server.script = [(200, {"choices": [{"text": "    pass", "finish_reason": "stop"}], "usage": usage})]
    with connect(server.endpoint) as client:
        reply = client.ask(Question((), 20, text="<PRE>def f():\n<SUF><MID>"))
    assert reply == Reply("    pass", "stop", 5, 2)
    path, _, body = server.requests[0]
    assert (path, body["prompt"]) == ("/v1/completions", "<PRE>def f():\n<SUF><MID>")
    assert "messages" not in body


def test_half_a_character_becomes_a_replacement(server: Server, ask: Any) -> None:
    server.script = [completion("a\ud83db"), completion("\ud83d\ude00")]
    assert ask().text == "a\ufffdb"
    assert ask().text == "😀"


def test_a_busy_server_is_waited_for_as_long_as_it_says(server: Server, ask: Any) -> None:
    server.script = [(429, "later"), completion()]
    server.headers = {"Retry-After": "7"}
    assert ask().attempts == 2
    assert ask.naps == [7]


@pytest.mark.parametrize(("total", "slots"), [({"total_slots": 3}, 3), ({"total_slots": 0}, None), ([], None)])
def test_a_llama_server_says_how_many_it_answers_at_once(server: Server, total: Any, slots: int | None) -> None:
    server.script = [(200, total)]
    with connect(server.endpoint) as client:
        assert client.slots() == slots
    assert server.requests[0][0] == "/props"


def test_an_endpoint_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    assert other_endpoint(None, None, None) is None
    found = other_endpoint("https://api.example:8443/v1/", "gpt", "SOME_KEY")
    assert found == Endpoint("https://api.example:8443/v1", KEY, "gpt", "api.example:8443")
    for url, model, key_env, says in [
        (None, "gpt", None, "belong to --endpoint"),
        ("https://api.example/v1", None, None, "--model"),
        ("api.example/v1", "gpt", None, "address"),
        ("https://user:secret@api.example/v1", "gpt", None, "address"),
        ("https://api.example/v1?key=secret", "gpt", None, "address"),
        ("https://api.example/v1", "gpt", "NO_SUCH_KEY", "NO_SUCH_KEY"),
    ]:
        with pytest.raises(UsageError, match=says) as caught:
            other_endpoint(url, model, key_env)
        assert "secret" not in str(caught.value.as_dict())


def test_a_busy_server_is_asked_again(server: Server, ask: Any) -> None:
    server.script = [(503, {"error": {"message": "Loading model"}}), HANG_UP, (429, "slow down"), completion("here")]
    assert ask().text == "here"
    assert len(server.requests) == 4
    assert ask.naps == sorted(ask.naps)
    assert len(ask.naps) == 3


def test_a_server_that_stays_busy_is_given_up(server: Server, ask: Any) -> None:
    server.script = [(503, {"error": {"message": "Loading model"}})]
    assert ask() == Failure("refused", "HTTP 503: Loading model")
    assert len(server.requests) == 4


def test_a_server_that_hangs_up_is_unreachable(server: Server, ask: Any) -> None:
    server.script = [HANG_UP]
    assert ask().kind == "unreachable"
    assert len(server.requests) == 4


@pytest.mark.parametrize("status", [400, 404, 500])
def test_a_plain_refusal_is_not_repeated(server: Server, ask: Any, status: int) -> None:
    server.script = [(status, {"error": {"message": "roles must alternate", "code": None}}), completion()]
    assert ask() == Failure("refused", f"HTTP {status}: roles must alternate")
    assert len(server.requests) == 1


def test_a_slow_answer_fails_and_is_not_asked_for_again(server: Server) -> None:
    server.script = [completion()]
    server.gate.clear()
    client = Client(server.endpoint, timeout=1)
    answer = client.chat(QUESTION, max_tokens=5)
    client.close()
    assert isinstance(answer, Failure)
    assert answer.kind == "timeout"
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "refusal",
    [
        (401, {"detail": "Invalid API key"}),
        (401, {"error": {"message": "Invalid API Key", "type": "authentication_error", "code": 401}}),
        (403, "no"),
    ],
)
def test_a_wrong_key_is_the_users_to_mend(server: Server, ask: Any, refusal: tuple[int, Any]) -> None:
    server.script = [refusal]
    assert ask().kind == "key"
    with pytest.raises(ConfigError, match="refuses the API key") as caught:
        chat_once(server.endpoint, QUESTION)
    assert "CLOUDFT_API_KEY" in caught.value.hint
    assert KEY not in str(caught.value.as_dict())


@pytest.mark.parametrize("overflow", [LLAMA_SERVER_OVERFLOW, LLAMA_CPP_OVERFLOW])
def test_a_conversation_that_is_too_long_is_an_overflow(server: Server, ask: Any, overflow: tuple[int, Any]) -> None:
    server.script = [overflow]
    answer = ask()
    assert answer.kind == "overflow"
    assert "64 tokens" in answer.message
    with pytest.raises(DataError, match="do not fit into the context") as caught:
        chat_once(server.endpoint, QUESTION)
    assert "serve.context" in caught.value.hint


def test_an_answer_that_the_context_cut_short_is_an_overflow(server: Server, ask: Any) -> None:
    server.script = [completion('{"a', "length", used=7)]
    assert ask(max_tokens=20).kind == "overflow"


def test_an_answer_of_just_the_longest_length_is_an_answer(server: Server, ask: Any) -> None:
    server.script = [completion("long", "length", used=20)]
    assert ask(max_tokens=20) == Reply("long", "length", 11, 20)


def test_an_answer_of_no_text_is_an_answer(server: Server, ask: Any) -> None:
    server.script = [completion(None)]
    assert ask() == Reply("", "stop", 11, 3)


@pytest.mark.parametrize("answer", ["<html>proxy</html>", {}, {"choices": []}, {"choices": [{}]}, [], "null"])
def test_what_is_no_completion_is_garbled(server: Server, ask: Any, answer: Any) -> None:
    server.script = [(200, answer)]
    assert ask().kind == "garbled"
    assert len(server.requests) == 1


def test_models_are_listed(server: Server) -> None:
    server.script = [(200, {"data": [{"id": "v1"}, {"id": "v2"}]}), (200, {"models": []})]
    with connect(server.endpoint) as client:
        assert client.models() == ["v1", "v2"]
        assert isinstance(client.models(), Failure)
    assert server.requests[0][0] == "/v1/models"


def test_nobody_there_is_unreachable_with_the_command_to_start_one() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        endpoint = Endpoint(f"http://127.0.0.1:{sock.getsockname()[1]}/v1", KEY, "m", LLAMA_CPP_SERVER)
        client = Client(endpoint, sleep=lambda _: None)
        answer = client.chat(QUESTION, max_tokens=1)
        client.close()
    assert isinstance(answer, Failure)
    assert answer.kind == "unreachable"
    error = as_error(endpoint, answer)
    assert type(error) is CloudftError
    assert "cloudft serve" in error.hint


def test_an_address_that_is_none_is_unreachable() -> None:
    with connect(Endpoint("not a url/v1", KEY, "m", "none"), attempts=1) as client:
        assert client.models().kind == "unreachable"  # type: ignore[union-attr]


def test_a_proxy_for_the_internet_never_sees_what_goes_to_this_computer(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server.script = [completion()]
    assert chat_once(server.endpoint, QUESTION).text == "hello"


def test_the_key_does_not_show_in_what_is_printed(server: Server) -> None:
    assert KEY not in repr(server.endpoint)
    assert KEY not in str(as_error(server.endpoint, Failure("key", "HTTP 401")).as_dict())
