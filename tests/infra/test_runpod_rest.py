"""RunPod's REST v2: the account, repeats, and what a message may say."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest

from cloudft.errors import ProviderError
from infra.gpus import parse_wish
from infra.provider import CreateUnknown, NoCapacity, Order
from infra.runpod_graphql import rent_spot
from infra.runpod_rest import account, clean, refusal
from tests.infra.runpod_fixtures import NAME, TICKET, Runpod, runpod

__all__ = ["runpod"]


# ---- the account


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RUNPOD_API_KEY": ""}, "RUNPOD_API_KEY is not set"),
        ({"RUNPOD_API_KEY": "rpa_A\nrpa_B"}, "holds blanks"),
        ({"RUNPOD_API_KEY": "schlüssel"}, "holds blanks"),
        ({"RUNPOD_API_BASE_URL": "api.runpod.io"}, "must be an http"),
        ({"RUNPOD_API_BASE_URL": "https://api.runpod.io/"}, "without a slash"),
        ({"RUNPOD_API_BASE_URL": "http://127.0.0.1:port"}, "must be an http"),
    ],
)
def test_a_key_or_an_address_that_cannot_be_one_is_refused_before_any_call(
    runpod: Runpod, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for call in (runpod.provider.check, runpod.provider.balance, runpod.provider.machines):
        with pytest.raises(ProviderError, match=said) as caught:
            call()
        assert caught.value.hint
        assert "rpa_" not in str(caught.value)
    assert runpod.server.calls == []


def test_check_asks_the_service_whether_it_knows_the_key(runpod: Runpod, monkeypatch: pytest.MonkeyPatch) -> None:
    runpod.provider.check()
    monkeypatch.setenv("RUNPOD_API_KEY", "rpa_WRONGKEY")
    with pytest.raises(ProviderError, match="invalid bearer token") as caught:
        runpod.provider.check()
    assert "RUNPOD_API_KEY" in caught.value.hint
    assert "rpa_WRONGKEY" not in f"{caught.value} {caught.value.hint} {caught.value.effect}"


# ---- repeats


def test_a_create_that_was_refused_for_its_rate_is_sent_again_after_the_pause_asked_for(runpod: Runpod) -> None:
    runpod.server.faults.rate_limit("createPod", times=2, retry_after=7)
    order = runpod.order()
    runpod.provider.create(order)
    assert runpod.slept == [7, 7]
    assert len(runpod.server.live_pods()) == 1


@pytest.mark.parametrize("call", ["createPod", "listPods"])
def test_a_pause_that_is_too_long_is_told_and_not_slept(runpod: Runpod, call: str) -> None:
    order = runpod.order()
    runpod.server.faults.rate_limit(call, times=None, retry_after=3600)
    act = (lambda: runpod.provider.create(order)) if call == "createPod" else runpod.provider.machines
    with pytest.raises(ProviderError, match="3600 s") as caught:
        act()
    assert not isinstance(caught.value, CreateUnknown)
    assert runpod.slept == []
    assert runpod.server.live_pods() == []


@pytest.mark.parametrize("fault", ["rate_limit", "bad_gateway", "drop_request", "drop_reply"])
def test_reads_and_ends_are_repeated(runpod: Runpod, fault: str) -> None:
    runpod.create()
    for call in ("listPods", "getPod", "deletePod", "listGpuTypes"):
        getattr(runpod.server.faults, fault)(call, times=2)
    assert runpod.another().find(NAME) is not None
    assert runpod.provider.offers([parse_wish("L4")])
    runpod.provider.terminate(NAME)
    assert runpod.server.live_pods() == []


def test_a_service_that_is_down_is_given_up_on_without_showing_its_html(runpod: Runpod) -> None:
    runpod.server.faults.bad_gateway("listPods", times=None)
    with pytest.raises(ProviderError, match="HTTP 502") as caught:
        runpod.provider.machines()
    assert "<" not in str(caught.value)
    assert len(runpod.server.calls_of("listPods")) == 4
    assert sum(runpod.slept) < 10


# ---- messages


class Echo(BaseHTTPRequestHandler):
    """A server that answers with everything that it was sent, as some do when they complain."""

    status = 422

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"])).decode()
        detail = f"bad request: {sent} {self.headers['Authorization']}"
        body = {"title": "t", "status": self.status, "detail": detail, "errors": [sent]}
        if self.path == "/graphql":
            body = {"errors": [{"message": detail}]}
        raw = json.dumps(body).encode()
        self.send_response(200 if self.path == "/graphql" else self.status)
        self.send_header("Content-Type", "application/problem+json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def echo(runpod: Runpod, monkeypatch: pytest.MonkeyPatch) -> Iterator[Order]:
    """An order to be placed with that server, which the environment now names."""
    order = runpod.order()
    with HTTPServer(("127.0.0.1", 0), Echo) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        monkeypatch.setenv("RUNPOD_API_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        yield order
        server.shutdown()


@pytest.mark.parametrize("status", [400, 422, 500])
def test_no_message_and_no_traceback_shows_the_key_or_the_ticket(
    runpod: Runpod, echo: Order, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(Echo, "status", status)
    with pytest.raises(ProviderError) as caught:
        runpod.provider.create(echo)
    assert isinstance(caught.value, CreateUnknown) == (status == 500)
    assert ("***" in str(caught.value)) == (status < 500)
    assert_nothing_shown(caught.value, runpod.server.api_key)


def test_nor_does_the_package_show_them(runpod: Runpod, echo: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error carries the whole query, environment and all."""
    with pytest.raises(ProviderError, match=r"\*\*\*") as caught:
        rent_spot(account(), {"env": [{"key": "T", "value": echo.ticket_url}]}, "rent x", [echo.ticket_url])
    assert_nothing_shown(caught.value, runpod.server.api_key)


def assert_nothing_shown(error: ProviderError, key: str) -> None:
    """Look at all that a person can get to see of an error, with the chain of its causes."""
    text = "".join(traceback.format_exception(error)) + repr(error.as_dict())
    cause: BaseException | None = error
    while cause is not None:
        text += repr(vars(cause))
        cause = cause.__cause__
    assert "rent" in text
    for secret in (key, TICKET, TICKET.partition("?")[2]):
        assert secret not in text


def test_a_text_of_the_service_is_cleaned_for_a_message() -> None:
    assert clean("a\n\tkey=SECRET \x1b[31mred  x", ["SECRET", ""]) == "a key=*** [31mred x"
    assert clean("SECRETLONG SECRET", ["SECRET", "SECRETLONG"]) == "*** ***"
    assert len(clean("x" * 9000, [])) < 600


@pytest.mark.parametrize(
    ("status", "detail", "kind"),
    [
        (400, "There are no longer any instances available with the requested specifications.", NoCapacity),
        (400, "There are not enough free GPUs on the host machine to start this pod.", NoCapacity),
        (400, "This machine does not have the resources to deploy your pod.", NoCapacity),
        (403, "your account cannot access the requested pool", NoCapacity),
        (400, "exactly one of gpu or cpu must be set", ProviderError),
        (403, "access denied", ProviderError),
        (402, "no instances without money", ProviderError),
        (418, "", ProviderError),
    ],
)
def test_which_refusals_mean_that_the_next_offer_may_do(status: int, detail: str, kind: type[ProviderError]) -> None:
    error = refusal(status, detail, "rent x", "nothing was rented")
    assert isinstance(error, NoCapacity) == (kind is NoCapacity)
    assert detail in str(error)
    assert error.hint
