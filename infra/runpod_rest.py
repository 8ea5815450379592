"""RunPod's REST v2: the account from the environment, time-outs, repeats, and every refusal as an error of ours.

Reads and deletes may be repeated, so they are: with growing pauses, and as long as the service asks after a 429. A
create is sent once. An answer that says "no" (4xx) is a refusal; whatever leaves a doubt (a broken connection, 5xx,
an answer that cannot be read) is ``CreateUnknown``.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Any

from cloudft.errors import ProviderError
from infra.provider import CreateUnknown, NoCapacity
from infra.words import clean

if TYPE_CHECKING:
    import httpx

DEFAULT_BASE = "https://api.runpod.io"
ENV_BASE = "RUNPOD_API_BASE_URL"
ENV_KEY = "RUNPOD_API_KEY"
CONSOLE = "https://console.runpod.io"
AGENT = "cloudft"

NOTHING_RENTED = "nothing was rented"
NOTHING_CHANGED = "nothing was changed; a machine that runs goes on, and is billed"

# Seconds.
TIMEOUT = 30.0
CONNECT_TIMEOUT = 10.0
TRIES = 4
FIRST_PAUSE = 0.5
# A longer Retry-After is told to the user instead of slept through.
LONGEST_PAUSE = 60.0

# 400 means a broken rule and no capacity alike, and has no code: the text decides, and a text that is not known is
# shown as a refusal. The first is the service's own wording, the others are from public threads.
CAPACITY = re.compile(
    r"no longer any instances|no (available |free )?(capacity|instances|machines|gpus)|out of (stock|capacity)"
    r"|not enough (free |available )?(gpus|capacity|instances)|insufficient capacity|could not be placed"
    r"|does not have the resources",
    re.IGNORECASE,
)


class ApiError(ProviderError):
    """A refusal by the service. ``status`` is its HTTP status; GraphQL's refusals get the one that fits."""

    def __init__(self, status: int, what: str, *, effect: str = "", hint: str = "") -> None:
        super().__init__(what, effect=effect, hint=hint)
        self.status = status


class Unanswered(ProviderError):
    """A request was sent, and whether it was carried out is not known."""


@dataclass(frozen=True)
class Account:
    """Where the service is, and the key that opens it."""

    base: str
    key: str = field(repr=False)


def account() -> Account:
    """The account of the environment.

    Raises:
        ProviderError: RUNPOD_API_KEY is missing or can be no key, or RUNPOD_API_BASE_URL is no URL.
    """
    key = os.environ.get(ENV_KEY, "").strip()
    if not key:
        raise ProviderError(
            f"provider runpod needs an API key, and {ENV_KEY} is not set",
            effect=NOTHING_CHANGED,
            hint=f"make one in RunPod's console under Settings, then:  export {ENV_KEY}=…",
        )
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        # Such a key would come back, in full, in the message of the HTTP library that refuses the header.
        raise ProviderError(
            f"{ENV_KEY} holds blanks or characters that no key has", effect=NOTHING_CHANGED, hint="copy the key again"
        )
    base = os.environ.get(ENV_BASE) or DEFAULT_BASE
    if not re.fullmatch(r"https?://[\w.-]+(:\d{1,5})?(/\S*)?(?<!/)", base):
        raise ProviderError(
            f"{ENV_BASE} must be an http(s) URL without a slash at its end",
            effect=NOTHING_CHANGED,
            hint=f"unset it for the real service, {DEFAULT_BASE}",
        )
    return Account(base, key)


def refusal(status: int, detail: str, doing: str, effect: str) -> ProviderError:
    """The one translation of what the service refuses, for REST and GraphQL alike.

    Args:
        detail: the service's own words, cleaned.
        doing: what was tried, as in "cannot …".
    """
    what = f"cannot {doing}: {detail or HTTPStatus(status).phrase}"
    hints = {
        400: "the order breaks a rule of RunPod's; another offer may do:  cloudft offers",
        401: f"{ENV_KEY} is not valid: check it in RunPod's console under Settings",
        402: f"pay in at {CONSOLE}, or take a cheaper offer:  cloudft offers",
        403: f"the key in {ENV_KEY} may not do this: it needs to read and to write",
        404: "check the names in cloudft.yaml: a registry's credentials, a data center",
        422: "the request does not fit RunPod's API: please report it as a fault of cloudft",
        429: "RunPod limits how often it may be asked: try again in a few minutes",
    }
    if status in (400, 409) and CAPACITY.search(detail):
        return NoCapacity(what, effect=effect, hint="the next offer may do:  cloudft offers")
    if status == HTTPStatus.FORBIDDEN and re.search(r"\bpool\b", detail, re.IGNORECASE):
        # The vendor's document: this account may not rent that card; others it may.
        return NoCapacity(what, effect=effect, hint="the next offer may do:  cloudft offers")
    return ApiError(status, what, effect=effect, hint=hints.get(status, "try again in a few minutes"))


class Rest:
    """One conversation with the service.

    Args:
        account: whose.
        sleep: how to wait between repeats.
        timeout: seconds without an answer.
        secrets: what must not be in a message, besides the key.
    """

    def __init__(
        self,
        account: Account,
        *,
        sleep: Callable[[float], None] = time.sleep,
        timeout: float = TIMEOUT,
        secrets: Collection[str] = (),
    ) -> None:
        import httpx

        self._sleep = sleep
        self._secrets = (account.key, *secrets)
        self._client = httpx.Client(
            base_url=account.base,
            headers={"Authorization": f"Bearer {account.key}", "User-Agent": AGENT},
            timeout=httpx.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT)),
        )

    def __enter__(self) -> Rest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def get(self, path: str, doing: str, params: Mapping[str, str | int] | None = None) -> dict[str, Any]:
        """Read; repeated where that may help. Raises ``ProviderError``."""
        response = self._repeated("GET", path, doing, params)
        if response.status_code != HTTPStatus.OK:
            raise refusal(response.status_code, self._detail(response), doing, NOTHING_CHANGED)
        body = _object(response)
        if body is None:
            raise ProviderError(f"cannot {doing}: the answer is no JSON object", effect=NOTHING_CHANGED)
        return body

    def delete(self, path: str, doing: str) -> None:
        """Delete; what is gone already is fine. Raises ``ProviderError``."""
        response = self._repeated("DELETE", path, doing)
        if not response.is_success and response.status_code != HTTPStatus.NOT_FOUND:
            raise refusal(response.status_code, self._detail(response), doing, NOTHING_CHANGED)

    def create(self, path: str, body: Mapping[str, Any], doing: str) -> dict[str, Any]:
        """Send once; only a 429, which says that nothing was done, is waited for and sent again.

        Raises:
            CreateUnknown: the request was sent, and whether it was carried out is not known.
            ProviderError: refused, or never sent.
        """
        import httpx

        for attempt in range(TRIES):
            try:
                response = self._client.post(path, json=dict(body))
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol) as exc:
                raise self._unreachable(doing, exc, NOTHING_RENTED) from exc
            except httpx.RequestError as exc:
                raise unknown(doing, f"the connection broke ({type(exc).__name__})") from exc
            if response.status_code != HTTPStatus.TOO_MANY_REQUESTS or attempt == TRIES - 1:
                break
            self._sleep(self._retry_after(response, doing, NOTHING_RENTED))
        return self._created(response, doing)

    def lines(self, path: str, doing: str, params: Mapping[str, str | int], quiet: float, at_most: float) -> list[str]:
        """What a stream of events holds by now: until ``quiet`` seconds bring nothing, ``at_most`` seconds in all."""
        import httpx

        found: list[str] = []
        until = time.monotonic() + at_most
        try:
            timeout = httpx.Timeout(quiet, connect=CONNECT_TIMEOUT)
            with self._client.stream("GET", path, params=dict(params), timeout=timeout) as response:
                if response.status_code == HTTPStatus.NOT_FOUND:
                    return []
                if response.status_code != HTTPStatus.OK:
                    response.read()
                    raise refusal(response.status_code, self._detail(response), doing, NOTHING_CHANGED)
                for line in response.iter_lines():
                    # A comment keeps an idle stream open: what there was has been sent.
                    if line.startswith(":") or time.monotonic() > until:
                        break
                    found.append(line)
        except httpx.ReadTimeout:
            pass
        except httpx.RequestError as exc:
            if not found:
                raise self._unreachable(doing, exc, NOTHING_CHANGED) from exc
        return found

    def _created(self, response: httpx.Response, doing: str) -> dict[str, Any]:
        status = response.status_code
        if response.is_success:
            body = _object(response)
            if body is None or not isinstance(body.get("id"), str):
                raise unknown(doing, "the answer cannot be read")
            return body
        # A gateway between us may have given up on a request that was carried out.
        if 400 <= status < 500 and status != HTTPStatus.REQUEST_TIMEOUT:
            raise refusal(status, self._detail(response), doing, NOTHING_RENTED)
        raise unknown(doing, f"the answer was HTTP {status}")

    def _repeated(
        self, method: str, path: str, doing: str, params: Mapping[str, str | int] | None = None
    ) -> httpx.Response:
        import httpx

        for attempt in range(TRIES):
            last = attempt == TRIES - 1
            pause = FIRST_PAUSE * 2**attempt
            try:
                response = self._client.request(method, path, params=dict(params or {}))
            except httpx.RequestError as exc:
                if last:
                    raise self._unreachable(doing, exc, NOTHING_CHANGED) from exc
                self._sleep(pause)
                continue
            if response.status_code == HTTPStatus.TOO_MANY_REQUESTS:
                pause = self._retry_after(response, doing, NOTHING_CHANGED)
            elif response.status_code < 500:
                break
            if not last:
                self._sleep(pause)
        return response

    def _retry_after(self, response: httpx.Response, doing: str, effect: str) -> float:
        """How long the service wants to be left alone; a wait that is too long is an error."""
        text = response.headers.get("Retry-After", "")
        seconds = float(text) if text.isdigit() else 5.0
        if seconds > LONGEST_PAUSE:
            detail = f"{self._detail(response)}; it wants to be left alone for {seconds:.0f} s"
            raise refusal(HTTPStatus.TOO_MANY_REQUESTS, detail, doing, effect)
        return max(seconds, 1.0)

    def _detail(self, response: httpx.Response) -> str:
        """The service's own words: ``detail`` and ``errors`` of a problem, or a short plain text."""
        body = _object(response)
        if body is not None:
            errors = body.get("errors")
            parts = [body.get("detail"), *(errors if isinstance(errors, list) else [])]
            text = "; ".join(str(part) for part in parts if part)
        elif "html" in response.headers.get("Content-Type", ""):
            text = ""
        else:
            text = response.text
        return clean(f"{text} (HTTP {response.status_code})".strip(), self._secrets)

    def _unreachable(self, doing: str, exc: Exception, effect: str) -> ProviderError:
        what = f"cannot {doing}: {self._client.base_url.host} cannot be reached ({type(exc).__name__})"
        return ProviderError(clean(what, self._secrets), effect=effect, hint="check the network, then try again")


def unknown(doing: str, why: str) -> CreateUnknown:
    """The error for a create of which nobody knows whether it was carried out."""
    return CreateUnknown(
        f"cannot {doing}: {why}, and RunPod may have carried the order out all the same",
        effect="a machine may exist, and be billed; it is looked for by its name",
        hint="see it:  cloudft status    end whatever is left:  cloudft reap",
    )


def events(lines: Collection[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects of server-sent events; a broken one is left out."""
    for line in lines:
        name, _, data = line.partition(":")
        if name != "data":
            continue
        try:
            value = json.loads(data)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value


def _object(response: httpx.Response) -> dict[str, Any] | None:
    try:
        body = response.json()
    except ValueError:
        return None
    return body if isinstance(body, dict) else None
