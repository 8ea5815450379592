"""A client for one OpenAI-compatible endpoint: a served model, asked with every knob spelt out.

Failures that belong to one request are values (``Failure``), so that an evaluation can count them; a caller
that wants an answer or nothing uses ``chat_once``. A client may be used by several threads.
"""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from cloudft.errors import CloudftError, ConfigError, DataError

if TYPE_CHECKING:
    import httpx

Message = Mapping[str, Any]

# Ours, whose further knobs are known.
LLAMA_SERVER, LLAMA_CPP_SERVER = "llama-server", "llama_cpp.server"
LLAMA_ENGINES = frozenset({LLAMA_SERVER, LLAMA_CPP_SERVER})


@dataclass(frozen=True)
class Sampling:
    """How the next token is picked. Temperature 0 is greedy; else all tokens, by their probability, from ``seed``."""

    temperature: float = 0.0
    seed: int = 0

    def parameters(self, engine: str) -> dict[str, Any]:
        """What is sent. Every knob is spelt out, because the servers' defaults differ: llama_cpp.server, for one,
        applies a repetition penalty of 1.1 unless told otherwise, even to greedy decoding. ``cache_prompt`` off keeps
        llama-server's answer to a prompt independent of the prompts before it.
        """
        plain: dict[str, Any] = {
            "temperature": self.temperature,
            "top_p": 1,
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "seed": self.seed,
            "stream": False,
        }
        if engine not in LLAMA_ENGINES:  # others refuse parameters that are not in OpenAI's API
            return plain
        top_k = 0 if self.temperature else 1
        return {**plain, "top_k": top_k, "min_p": 0, "repeat_penalty": 1, "cache_prompt": False}


GREEDY = Sampling()


@dataclass(frozen=True)
class Fim:
    """A model's tokens for fill-in-the-middle, as text."""

    prefix: str
    suffix: str
    middle: str

    def around(self, before: str, after: str) -> str:
        """The prompt for what is missing between two texts (the order prefix, suffix, middle)."""
        return f"{self.prefix}{before}{self.suffix}{after}{self.middle}"


@dataclass(frozen=True)
class Question:
    """What a model is asked: messages, with or without tools; or, if ``text`` is given, to continue just that.

    ``max_tokens``: of the answer.
    """

    messages: tuple[Message, ...]
    max_tokens: int
    tools: tuple[Mapping[str, Any], ...] = ()
    text: str | None = None

    @property
    def path(self) -> str:
        return "/chat/completions" if self.text is None else "/completions"

    def body(self, model: str, engine: str, sampling: Sampling) -> dict[str, Any]:
        """The request as it is sent."""
        asked: dict[str, Any] = {"messages": [dict(m) for m in self.messages]}
        if self.text is not None:
            asked = {"prompt": self.text}
        elif self.tools:
            asked["tools"] = [dict(tool) for tool in self.tools]
        return {"model": model, **asked, "max_tokens": self.max_tokens, **sampling.parameters(engine)}


# Busy, loading, or asked too often. Any other refusal would be repeated.
RETRY_STATUS = frozenset({429, 503})
LONGEST_PAUSE = 30.0
FailureKind = Literal["key", "unreachable", "timeout", "overflow", "refused", "garbled"]


@dataclass(frozen=True)
class Endpoint:
    """Where a model is served.

    ``url`` ends in ``/v1``; ``engine`` names the server ("llama-server", "llama_cpp.server", anything else for one that
    is not ours). The key is left out of the repr, so that it cannot reach a log; empty: none is sent.
    """

    url: str
    api_key: str = field(repr=False)
    model: str
    engine: str


@dataclass(frozen=True)
class Reply:
    """A model's answer. ``finish`` is "stop", "tool_calls", or "length" when ``max_tokens`` ended it; tokens are
    counts.

    ``latency``: seconds from sending to the whole answer, of the attempt that succeeded; ``attempts``: how many it
    took. Neither is part of what the answer is.
    """

    text: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    tool_calls: tuple[dict[str, Any], ...] = ()
    latency: float = field(default=0.0, compare=False)
    attempts: int = field(default=1, compare=False)


@dataclass(frozen=True)
class Failure:
    """A request that brought no answer, after all retries.

    ``key`` the server refuses the API key; ``unreachable`` nobody answers; ``timeout`` the answer took too
    long; ``overflow`` prompt and answer do not fit into the served context; ``refused`` any other refusal;
    ``garbled`` an answer that is no chat completion.
    """

    kind: FailureKind
    message: str
    attempts: int = field(default=1, compare=False)


class Client:
    """Asks one endpoint; use it as a context manager, or from ``connect``.

    Args:
        endpoint: whom to ask.
        timeout: seconds to wait for one answer. A long one: a laptop may need minutes for a long prompt.
        attempts: how often a request is tried that met no server or a busy one.
        sleep: waits between attempts, in seconds.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        timeout: float = 600.0,
        attempts: int = 4,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        import httpx

        self.endpoint = endpoint
        self._attempts = attempts
        self._sleep = sleep
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {},
            timeout=httpx.Timeout(timeout, connect=10.0),
            # A proxy meant for the internet must not see what goes to this very machine, the key least of all.
            trust_env=not _is_loopback(endpoint.url),
        )

    def close(self) -> None:
        self._http.close()

    def ask(self, question: Question, sampling: Sampling = GREEDY) -> Reply | Failure:
        """The model's answer."""
        body = question.body(self.endpoint.model, self.endpoint.engine, sampling)
        sent = self._send("POST", question.path, body)
        if isinstance(sent, Failure):
            return sent
        reply = _read_reply(sent.response, question)
        if isinstance(reply, Failure):
            return replace(reply, attempts=sent.attempts)
        return replace(reply, latency=sent.seconds, attempts=sent.attempts)

    def chat(self, messages: Sequence[Message], *, max_tokens: int) -> Reply | Failure:
        """Ask for the next message, decoding greedily, at most ``max_tokens`` tokens long."""
        return self.ask(Question(tuple(messages), max_tokens))

    def is_there(self) -> bool:
        """Whether the server answers at all, asked once."""
        _, failure, _ = self._try("GET", self.endpoint.url + "/models", None)
        return failure.kind not in ("unreachable", "timeout")

    def slots(self) -> int | None:
        """How many requests a llama-server answers at the same time; None if this is none, or does not tell."""
        sent = self._send("GET", "", url=self.endpoint.url.removesuffix("/v1") + "/props")
        if isinstance(sent, Failure):
            return None
        try:
            slots = sent.response.json()["total_slots"]
        except (ValueError, KeyError, TypeError):
            return None
        return slots if isinstance(slots, int) and slots > 0 else None

    def models(self) -> list[str] | Failure:
        """The names of the models that are served; also a cheap proof that server and key work."""
        sent = self._send("GET", "/models")
        if isinstance(sent, Failure):
            return sent
        try:
            return [str(item["id"]) for item in sent.response.json()["data"]]
        except (ValueError, KeyError, TypeError) as exc:
            return Failure("garbled", f"the list of models cannot be read: {exc!r}")

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, url: str | None = None
    ) -> _Sent | Failure:
        """One request with retries: of lost connections and of a server that is busy or still loading."""
        failure = Failure("unreachable", "the request was never sent")
        for attempt in range(self._attempts):
            began = time.monotonic()
            response, failure, pause = self._try(method, url or self.endpoint.url + path, body)
            if response is not None:
                return _Sent(response, time.monotonic() - began, attempt + 1)
            failure = replace(failure, attempts=attempt + 1)
            if pause is None or attempt + 1 == self._attempts:
                break
            self._sleep(min(max(pause, 0.25 * 4**attempt), LONGEST_PAUSE))
        return failure

    def _try(
        self, method: str, url: str, body: Mapping[str, Any] | None
    ) -> tuple[httpx.Response | None, Failure, float | None]:
        """One attempt: the response or the failure, and the seconds to wait before another; None if none may help."""
        import httpx

        try:
            response = self._http.request(method, url, content=_as_json(body), headers=_JSON)
        except httpx.ReadTimeout as exc:
            # Asked again, the server would only start over: with retries one stuck row would block for hours.
            return None, Failure("timeout", f"no answer in time ({type(exc).__name__})"), None
        except httpx.TransportError as exc:
            return None, Failure("unreachable", f"{type(exc).__name__}: {exc}"), 0.0
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            return None, Failure("unreachable", f"{type(exc).__name__}: {exc}"), None
        if response.status_code == httpx.codes.OK:
            return response, _NONE, None
        again = _retry_after(response) if response.status_code in RETRY_STATUS else None
        return None, _read_refusal(response), again


@dataclass(frozen=True)
class _Sent:
    """A response, the seconds that its own attempt took, and the number of that attempt."""

    response: httpx.Response
    seconds: float
    attempts: int


_NONE = Failure("refused", "")
_JSON = {"Content-Type": "application/json"}


def _as_json(body: Mapping[str, Any] | None) -> bytes | None:
    """In ASCII: half a character, which a message may hold, is none of UTF-8 and would end the whole evaluation."""
    return None if body is None else json.dumps(body, separators=(",", ":")).encode()


@contextmanager
def connect(endpoint: Endpoint, *, timeout: float = 600.0, attempts: int = 4) -> Iterator[Client]:
    """A ``Client`` that is closed in the end."""
    client = Client(endpoint, timeout=timeout, attempts=attempts)
    try:
        yield client
    finally:
        client.close()


def chat_once(
    endpoint: Endpoint, messages: Sequence[Message], *, max_tokens: int = 256, timeout: float = 600.0
) -> Reply:
    """Ask one question and get the answer.

    Raises:
        ConfigError: the key is wrong.
        DataError: the conversation does not fit into the served context.
        CloudftError: no answer for another reason.
    """
    with connect(endpoint, timeout=timeout) as client:
        reply = client.chat(messages, max_tokens=max_tokens)
    if isinstance(reply, Failure):
        raise as_error(endpoint, reply)
    return reply


def as_error(endpoint: Endpoint, failure: Failure) -> CloudftError:
    """The error that tells a person about a failure."""
    where = f"the model at {endpoint.url}"
    if failure.kind == "key":
        return ConfigError(
            f"{where} refuses the API key ({failure.message})",
            effect="nothing was changed",
            hint="use the server's key: CLOUDFT_API_KEY in the project's .env file"
            if endpoint.engine in LLAMA_ENGINES
            else "name the variable that holds its key:  --key-env VARIABLE",
        )
    if failure.kind == "overflow":
        return DataError(
            f"the conversation and its answer do not fit into the context of {where}: {failure.message}",
            effect="nothing was cut off and nothing was changed",
            hint="raise serve.context in cloudft.yaml, or shorten the conversation",
        )
    if failure.kind == "unreachable":
        return CloudftError(
            f"{where} cannot be reached: {failure.message}",
            effect="nothing was changed",
            hint="start it:  cloudft serve" if endpoint.engine in LLAMA_ENGINES else "",
        )
    return CloudftError(f"{where} did not answer: {failure.message}", effect="nothing was changed")


def _read_reply(response: httpx.Response, question: Question) -> Reply | Failure:
    """The answer in a completion; one that the end of the context cut short is an overflow."""
    try:
        data = response.json()
        choice, usage = data["choices"][0], data["usage"]
        message = choice["message"] if question.text is None else {"content": choice["text"]}
        reply = Reply(
            text=_whole_characters(message.get("content") or ""),
            finish=str(choice["finish_reason"]),
            prompt_tokens=int(usage["prompt_tokens"]),
            completion_tokens=int(usage["completion_tokens"]),
            tool_calls=tuple(_call(call) for call in message.get("tool_calls") or ()),
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as exc:
        return Failure("garbled", f"this is no completion ({exc!r}): {_short(response.text)}")
    if reply.finish == "length" and reply.completion_tokens < question.max_tokens:
        return Failure(
            "overflow",
            f"the answer stopped after {reply.completion_tokens} of {question.max_tokens} tokens, because the prompt "
            f"takes {reply.prompt_tokens}",
        )
    return reply


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    """One call, without the random id that servers give it: the same answer is the same."""
    return {name: value for name, value in call.items() if name != "id"}


def _whole_characters(text: str) -> str:
    """Half a character (a lone surrogate), which no file and no other program could take, becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _retry_after(response: httpx.Response) -> float:
    """The seconds that a busy server asks to wait; 0 if it does not say."""
    try:
        return max(0.0, float(response.headers.get("Retry-After", 0)))
    except ValueError:
        return 0.0


def _read_refusal(response: httpx.Response) -> Failure:
    """Why a server said no. llama-server and llama_cpp.server word their errors differently."""
    message, code = f"HTTP {response.status_code}", ""
    try:
        error = response.json()
        error = error.get("error", error)
        message += f": {error.get('message') or error.get('detail') or _short(response.text)}"
        code = f"{error.get('type', '')} {error.get('code', '')}"
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError):
        message += f": {_short(response.text)}"
    if response.status_code in (401, 403):
        return Failure("key", message)
    if "exceed_context_size" in code or "context_length_exceeded" in code:
        return Failure("overflow", message)
    return Failure("refused", message)


def _short(text: str, limit: int = 200) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
