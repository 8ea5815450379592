"""RunPod's GraphQL, by the real package: values in a query, the balance, and spot machines."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
from graphql import parse, value_from_ast_untyped
from graphql.language import parse_value
from hypothesis import given
from hypothesis import strategies as st

from cloudft.errors import EnvironmentProblem, ProviderError
from infra.gpus import parse_wish
from infra.provider import CreateUnknown, Machine, NoCapacity, Terms
from infra.runpod_graphql import Balance, Enum, literal
from infra.runpod_offers import disk_rate
from tests.doubles.runpod import NO_CAPACITY
from tests.infra.runpod_fixtures import DIGEST, L4, NAME, Runpod, runpod

__all__ = ["runpod"]

DISK = disk_rate(20)
texts = st.text(st.characters(blacklist_categories=["Cs"]))
names = st.from_regex(r"[_A-Za-z][_0-9A-Za-z]*", fullmatch=True)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(names, inner), max_leaves=20)


# ---- values in a query


@given(values)
def test_every_value_comes_back_as_it_was_from_a_real_parser(value: Any) -> None:
    assert value_from_ast_untyped(parse_value(literal(value))) == value


@given(texts)
def test_no_text_breaks_out_of_its_quotes(text: str) -> None:
    document = parse(f"mutation {{ f(input: {{a: {literal(text)}, b: 1}}) {{ id }} }}")
    (field,) = document.definitions[0].selection_set.selections  # type: ignore[attr-defined]
    assert [f.name.value for f in field.arguments[0].value.fields] == ["a", "b"]


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, "\ud800", {"a b": 1}, {"a: 1, b": 1}, {"": 1}, Enum("A}"), Enum(""), {1, 2}, b"x", object()],
)
def test_what_graphql_cannot_say_is_an_error(value: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (a lone surrogate's is Python's own)
        literal(value)


def test_a_word_without_quotes() -> None:
    assert literal({"cloudType": Enum("SECURE"), "name": "SECURE", "ok": True}) == (
        '{cloudType: SECURE, name: "SECURE", ok: true}'
    )


# ---- the balance


def test_the_balance(runpod: Runpod) -> None:
    assert runpod.provider.balance() == Balance(25.0, 0.0, 80.0)
    runpod.create()
    assert runpod.provider.balance().spend_per_hour == pytest.approx(0.43 + DISK)


def test_the_packages_import_leaves_the_log_alone() -> None:
    code = (
        "import logging; from infra.runpod_graphql import _package; root = logging.getLogger();"
        "_package(); print(root.handlers, root.level == logging.WARNING, 'runpod' in __import__('sys').modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] True True"


def test_without_the_package_there_is_a_command_to_install_it(runpod: Runpod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "runpod.api.graphql", None)
    spot = Terms(spot=True)
    for call in (runpod.provider.balance, lambda: runpod.provider.offers([parse_wish("L4")], spot)):
        with pytest.raises(EnvironmentProblem) as caught:
            call()
        assert "pip install 'cloudft[runpod]'" in caught.value.hint
    assert runpod.create().name == NAME


@pytest.mark.parametrize("fault", ["bad_gateway", "drop_request", "drop_reply"])
def test_reading_is_repeated(runpod: Runpod, fault: str) -> None:
    getattr(runpod.server.faults, fault)("myself", times=2)
    assert runpod.provider.balance().usd == 25
    getattr(runpod.server.faults, fault)("myself", times=None)
    with pytest.raises(ProviderError, match="cannot read the balance"):
        runpod.provider.balance()


@pytest.mark.parametrize(("key", "said"), [("rpa_WRONGKEY", "not accepted"), ("pod", "Unauthorized")])
def test_a_key_that_may_not(runpod: Runpod, monkeypatch: pytest.MonkeyPatch, key: str, said: str) -> None:
    runpod.create()
    monkeypatch.setenv("RUNPOD_API_KEY", runpod.pod.api_key if key == "pod" else key)
    with pytest.raises(ProviderError, match=said) as caught:
        runpod.provider.balance()
    assert "RUNPOD_API_KEY" in caught.value.hint
    assert runpod.slept == []


# ---- spot machines


def rent(runpod: Runpod, **changes: Any) -> Machine:
    return runpod.provider.create(runpod.order(offer=runpod.offer(spot=True), **changes))


def test_a_spot_machine_is_rented_at_the_lowest_bid(runpod: Runpod) -> None:
    runpod.server.secrets["hf"] = "hf_SECRETVALUE"
    ticket = 'https://store.test/t?a="}) { id } }\n\\d&b=é💥'
    machine = rent(runpod, ticket_url=ticket, secrets={"HF_TOKEN": "hf"}, disk_gb=20, data_centers=("EU-SE-1",))
    lowest = runpod.server.catalog.gpus[L4].lowest_bid("SECURE")
    request = runpod.pod.request
    assert (request.bid, request.gpu_id, request.gpu_count, request.image) == (lowest, L4, 1, DIGEST)
    assert (request.clouds, request.disk_gb, request.volume_gb) == (("SECURE",), 20, 0)
    assert (request.cuda_versions, request.data_centers) == (("13.0",), ("EU-SE-1",))
    assert set(request.ignored_deadlines) == {"terminateAfter"}
    assert runpod.env_of_container()["CLOUDFT_TICKET_URL"] == ticket
    assert runpod.env_of_container()["HF_TOKEN"] == "hf_SECRETVALUE"
    assert (machine.name, machine.id, machine.created_at) == (NAME, runpod.pod.id, runpod.pod.created_at)
    assert machine.rate_usd == pytest.approx(lowest + DISK)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_rounding_never_bids_below_the_lowest(runpod: Runpod, count: int) -> None:
    for price in (0.101, 0.33, 0.35, 0.71, 1.13):
        runpod.server.catalog.set_price(L4, price)
        runpod.server.catalog.set_stock(L4, 8)
        offer = runpod.offer(f"L4:{count}", spot=True)
        runpod.create(offer=offer)
        bid = runpod.pod.request.bid
        assert bid is not None
        assert bid - runpod.server.catalog.gpus[L4].lowest_bid("SECURE") < 2e-4
        runpod.provider.terminate(NAME)


def test_the_ceiling_holds(runpod: Runpod) -> None:
    offer = runpod.offer(spot=True)
    with pytest.raises(NoCapacity, match="above the ceiling"):
        runpod.create(offer=offer, bid_usd=offer.rate_usd - 0.01)
    assert runpod.server.calls_of("podRentInterruptable") == []
    assert runpod.create(offer=offer, bid_usd=offer.rate_usd + 1).rate_usd == pytest.approx(offer.rate_usd)


def test_a_price_that_has_moved_means_the_next_offer(runpod: Runpod) -> None:
    offer = runpod.offer(spot=True)
    runpod.server.catalog.gpus[L4].spot_share = 0.9
    with pytest.raises(NoCapacity, match="bid must be at least"):
        runpod.create(offer=offer)
    assert runpod.server.live_pods() == []


def test_each_data_center_is_tried_until_one_has_room(runpod: Runpod) -> None:
    offer = runpod.offer(spot=True)
    runpod.server.catalog.gpus[L4].data_centers = ("EU-RO-1",)
    runpod.create(offer=offer, data_centers=("US-KS-2", "EU-RO-1"))
    assert runpod.pod.data_center == "EU-RO-1"
    assert len(runpod.server.calls_of("podRentInterruptable")) == 2


def test_no_room_and_no_host_with_a_new_driver_mean_the_next_offer(runpod: Runpod) -> None:
    offer = runpod.offer(spot=True)
    runpod.server.faults.no_capacity(L4)
    with pytest.raises(NoCapacity, match=NO_CAPACITY[:30]):
        runpod.create(offer=offer)
    runpod.server.catalog.gpus[L4].cuda_versions = ("12.8",)
    with pytest.raises(NoCapacity, match=r"CUDA 13\.0"):
        runpod.create(offer=offer)
    assert runpod.server.live_pods() == []


@pytest.mark.parametrize("fault", ["drop_reply", "drop_request", "bad_gateway"])
def test_a_spot_order_in_doubt_is_not_sent_again(runpod: Runpod, fault: str) -> None:
    offer = runpod.offer(spot=True)
    getattr(runpod.server.faults, fault)("podRentInterruptable")
    with pytest.raises(CreateUnknown):
        runpod.create(offer=offer)
    assert len(runpod.server.calls_of("podRentInterruptable")) == 1
    found = runpod.provider.find(NAME)
    assert (found is not None) == (fault == "drop_reply")


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("insufficient balance: an hour of this pod must be paid in", ProviderError),
        ("Something went wrong. Please try again later or contact support.", CreateUnknown),
        ("An unexpected error occurred", CreateUnknown),
        ("upstream deadline exceeded", CreateUnknown),
        ("load balancer failure", CreateUnknown),
        ("gpu type 'X' is not known", ProviderError),
    ],
)
def test_only_a_clear_no_is_a_refusal(
    runpod: Runpod, monkeypatch: pytest.MonkeyPatch, said: str, kind: type[ProviderError]
) -> None:
    from tests.doubles.runpod import Refused

    def refuse(request: Any) -> None:
        raise Refused(400, said)

    offer = runpod.offer(spot=True)
    monkeypatch.setattr(runpod.server.service, "create", refuse)
    with pytest.raises(ProviderError, match=said[:20]) as caught:
        runpod.create(offer=offer)
    assert type(caught.value) is CreateUnknown if kind is CreateUnknown else not isinstance(caught.value, CreateUnknown)


def test_a_rate_limit_rents_nothing(runpod: Runpod) -> None:
    offer = runpod.offer(spot=True)
    runpod.server.faults.rate_limit("podRentInterruptable")
    with pytest.raises(ProviderError, match="rate limit") as caught:
        runpod.create(offer=offer)
    assert not isinstance(caught.value, CreateUnknown)
    assert caught.value.effect == "nothing was rented"


def test_nobody_listening_rents_nothing(runpod: Runpod, monkeypatch: pytest.MonkeyPatch) -> None:
    from infra.runpod_graphql import rent_spot
    from infra.runpod_rest import account

    monkeypatch.setenv("RUNPOD_API_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(ProviderError, match="cannot be reached") as caught:
        rent_spot(account(), {"name": "x"}, "rent x", ())
    assert not isinstance(caught.value, CreateUnknown)


def test_a_preempted_machine_has_ended_and_is_terminated_like_any_other(runpod: Runpod) -> None:
    rent(runpod)
    runpod.clock.advance(10)
    runpod.server.preempt(runpod.pod.id)
    machine = runpod.provider.find(NAME)
    assert machine is not None
    assert machine.state == "ended"
    runpod.provider.terminate(NAME)
    assert runpod.provider.find(NAME) is None
