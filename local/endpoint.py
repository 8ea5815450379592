"""A client for one OpenAI-compatible endpoint: a served model, asked greedily.

Failures that belong to one request are values (``Failure``), so that an evaluation can count them; a caller
that wants an answer or nothing uses ``chat_once``.
"""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from cloudft.errors import CloudftError, ConfigError, DataError

if TYPE_CHECKING:
    import httpx

Message = Mapping[str, Any]

# Every knob is spelt out, because the servers' defaults differ: llama_cpp.server, for one, applies a repetition
# penalty of 1.1 unless told otherwise, even to greedy decoding. ``cache_prompt`` off keeps llama-server's answer
# to a prompt independent of the prompts before it.
GREEDY: Mapping[str, Any] = {
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

RETRY_STATUS = frozenset({429, 502, 503, 504})
FailureKind = Literal["key", "unreachable", "timeout", "overflow", "refused", "garbled"]


@dataclass(frozen=True)
class Endpoint:
    """Where a model is served.

    ``url`` ends in ``/v1``; ``engine`` names the server ("llama-server", "llama_cpp.server").
    The key is left out of the repr, so that it cannot reach a log.
    """

    url: str
    api_key: str = field(repr=False)
    model: str
    engine: str


@dataclass(frozen=True)
class Reply:
    """A model's answer. ``finish`` is "stop", or "length" when ``max_tokens`` ended it; tokens are counts."""

    text: str
    finish: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Failure:
    """A request that brought no answer, after all retries.

    ``key`` the server refuses the API key; ``unreachable`` nobody answers; ``timeout`` the answer took too
    long; ``overflow`` prompt and answer do not fit into the served context; ``refused`` any other refusal;
    ``garbled`` an answer that is no chat completion.
    """

    kind: FailureKind
    message: str


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
            headers={"Authorization": f"Bearer {endpoint.api_key}"},
            timeout=httpx.Timeout(timeout, connect=10.0),
            # A proxy meant for the internet must not see what goes to this very machine, the key least of all.
            trust_env=not _is_loopback(endpoint.url),
        )

    def close(self) -> None:
        self._http.close()

    def chat(self, messages: Sequence[Message], *, max_tokens: int) -> Reply | Failure:
        """Ask for the next message, decoding greedily, at most ``max_tokens`` tokens long."""
        body = {
            "model": self.endpoint.model,
            "messages": [dict(m) for m in messages],
            "max_tokens": max_tokens,
            **GREEDY,
        }
        response = self._send("POST", "/chat/completions", body)
        if isinstance(response, Failure):
            return response
        return _read_reply(response, max_tokens)

    def models(self) -> list[str] | Failure:
        """The names of the models that are served; also a cheap proof that server and key work."""
        response = self._send("GET", "/models")
        if isinstance(response, Failure):
            return response
        try:
            return [str(item["id"]) for item in response.json()["data"]]
        except (ValueError, KeyError, TypeError) as exc:
            return Failure("garbled", f"the list of models cannot be read: {exc!r}")

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response | Failure:
        """One request with retries: of transport errors and of a server that is busy or still loading."""
        failure = Failure("unreachable", "the request was never sent")
        for attempt in range(self._attempts):
            if attempt:
                self._sleep(min(0.25 * 4 ** (attempt - 1), 8.0))
            response, failure, again = self._try(method, path, body)
            if response is not None:
                return response
            if not again:
                break
        return failure

    def _try(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> tuple[httpx.Response | None, Failure, bool]:
        """One attempt: the response or the failure, and whether another attempt may help."""
        import httpx

        try:
            response = self._http.request(method, self.endpoint.url + path, json=body)
        except httpx.ReadTimeout as exc:
            # Asked again, the server would only start over: with retries one stuck row would block for hours.
            return None, Failure("timeout", f"no answer in time ({type(exc).__name__})"), False
        except httpx.TransportError as exc:
            return None, Failure("unreachable", f"{type(exc).__name__}: {exc}"), True
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            return None, Failure("unreachable", f"{type(exc).__name__}: {exc}"), False
        if response.status_code == httpx.codes.OK:
            return response, _NONE, False
        return None, _read_refusal(response), response.status_code in RETRY_STATUS


_NONE = Failure("refused", "")


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
            hint="use the server's key: CLOUDFT_API_KEY in the project's .env file",
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
            hint="start it:  cloudft serve",
        )
    return CloudftError(f"{where} did not answer: {failure.message}", effect="nothing was changed")


def _read_reply(response: httpx.Response, max_tokens: int) -> Reply | Failure:
    """The answer in a chat completion; one that the end of the context cut short is an overflow."""
    try:
        data = response.json()
        choice = data["choices"][0]
        usage = data["usage"]
        reply = Reply(
            text=choice["message"].get("content") or "",
            finish=str(choice["finish_reason"]),
            prompt_tokens=int(usage["prompt_tokens"]),
            completion_tokens=int(usage["completion_tokens"]),
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as exc:
        return Failure("garbled", f"this is no chat completion ({exc!r}): {_short(response.text)}")
    if reply.finish == "length" and reply.completion_tokens < max_tokens:
        return Failure(
            "overflow",
            f"the answer stopped after {reply.completion_tokens} of {max_tokens} tokens, because the prompt takes "
            f"{reply.prompt_tokens}",
        )
    return reply


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
