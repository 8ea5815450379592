"""GraphQL of the RunPod double, by a plain client; test_runpod_package.py does it with the real package."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from .clock import ManualClock
from .conftest import client_of
from .helpers import L4, create, graphql
from .runpod import NO_CAPACITY, RunpodDouble

DEPLOY = (
    "mutation($input: PodFindAndDeployOnDemandInput)"
    " { podFindAndDeployOnDemand(input: $input) { id costPerHr podType } }"
)
SPOT = "mutation($input: PodRentInterruptableInput!) { podRentInterruptable(input: $input) { id costPerHr podType } }"
TERMINATE = "mutation($id: String!) { podTerminate(input: {podId: $id}) }"
MYSELF = "{ myself { clientBalance currentSpendPerHr spendLimit pods { id } } }"


def deploy_input(**more: Any) -> dict[str, Any]:
    return {"name": "run-1", "imageName": "repo/train", "gpuTypeId": L4, "cloudType": "SECURE", **more}


def message(body: dict[str, Any]) -> str:
    return str(body["errors"][0]["message"])


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("query {", "GRAPHQL_PARSE_FAILED"),
        ('mutation { podTerminate(input: {podId: "a"b"}) }', "GRAPHQL_PARSE_FAILED"),
        ("{ myself { wallet } }", "GRAPHQL_VALIDATION_FAILED"),
        ('mutation { podTerminate(input: {pod: "a"}) }', "GRAPHQL_VALIDATION_FAILED"),
        ("mutation { podFindAndDeployOnDemand(input: {interruptible: true}) { id } }", "GRAPHQL_VALIDATION_FAILED"),
    ],
)
def test_documents_that_are_wrong_are_400(http: httpx.Client, server: RunpodDouble, query: str, code: str) -> None:
    reply = http.post("/graphql", json={"query": query})
    assert (reply.status_code, reply.json()["errors"][0]["extensions"]["code"]) == (400, code)
    assert server.live_pods() == []


def test_bodies_and_variables_that_are_wrong_are_400(http: httpx.Client) -> None:
    assert http.post("/graphql", content=b"query").status_code == 400
    assert http.post("/graphql", json={"q": 1}).status_code == 400
    reply = http.post("/graphql", json={"query": TERMINATE, "variables": {"id": {"a": 1}}})
    assert (reply.status_code, reply.json()["errors"][0]["extensions"]["code"]) == (400, "BAD_USER_INPUT")


def test_no_key_is_401_and_a_key_in_the_url_is_taken(server: RunpodDouble) -> None:
    with client_of(server, "") as nobody:
        assert nobody.post("/graphql", json={"query": MYSELF}).status_code == 401
        found = nobody.post(f"/graphql?api_key={server.api_key}", json={"query": MYSELF})
        assert found.json()["data"]["myself"]["clientBalance"] == 25.0


def test_the_account(http: httpx.Client, clock: ManualClock) -> None:
    pod = create(http)
    clock.advance(299)
    before = graphql(http, MYSELF)["data"]["myself"]
    clock.advance(1)
    after = graphql(http, MYSELF)["data"]["myself"]
    assert (before["clientBalance"], before["spendLimit"], before["pods"]) == (25.0, 80, [{"id": pod["id"]}])
    assert before["currentSpendPerHr"] == pytest.approx(0.43 + 1 / 720)
    assert after["clientBalance"] == pytest.approx(25 - (0.43 + 1 / 720) / 12, abs=1e-6)


def test_gpu_types_and_their_lowest_price(http: httpx.Client, server: RunpodDouble) -> None:
    query = """query($id: String, $count: Int!, $secure: Boolean) { gpuTypes(input: {id: $id}) { id securePrice
        communityPrice lowestPrice(input: {gpuCount: $count, secureCloud: $secure})
        { minimumBidPrice uninterruptablePrice stockStatus } } }"""
    price = graphql(http, query, id="NVIDIA GeForce RTX 4090", count=1)["data"]["gpuTypes"][0]
    assert (price["securePrice"], price["lowestPrice"]["uninterruptablePrice"]) == (0.69, 0.34)
    secure = graphql(http, query, id=L4, count=1, secure=True)["data"]["gpuTypes"][0]["lowestPrice"]
    assert secure == {"minimumBidPrice": 0.26, "uninterruptablePrice": 0.43, "stockStatus": "Medium"}
    server.catalog.set_stock(L4, 0)
    none_left = graphql(http, query, id=L4, count=1)["data"]["gpuTypes"][0]["lowestPrice"]
    assert none_left == {"minimumBidPrice": None, "uninterruptablePrice": None, "stockStatus": None}
    assert graphql(http, query, id="NVIDIA A10G", count=1)["data"]["gpuTypes"] == []


def test_deploy_read_stop_resume_terminate(http: httpx.Client, clock: ManualClock, server: RunpodDouble) -> None:
    env = [{"key": "A", "value": 'quotes " and \\ and \n'}]
    pod = graphql(http, DEPLOY, input=deploy_input(env=env, ports="22/tcp,80/http"))["data"]
    pod_id = pod["podFindAndDeployOnDemand"]["id"]
    clock.advance(10)
    read = "query($id: String!) { pod(input: {podId: $id}) { desiredStatus env ports runtime { uptimeInSeconds } } }"
    shown = graphql(http, read, id=pod_id)["data"]["pod"]
    assert shown["env"] == ['A=quotes " and \\ and \n']
    assert (shown["desiredStatus"], shown["ports"]) == ("RUNNING", "22/tcp,80/http")
    assert shown["runtime"]["uptimeInSeconds"] == 9
    stop = "mutation($id: String!) { podStop(input: {podId: $id}) { desiredStatus } }"
    assert graphql(http, stop, id=pod_id)["data"]["podStop"]["desiredStatus"] == "EXITED"
    resume = "mutation($id: String!) { podResume(input: {podId: $id, gpuCount: 1}) { desiredStatus } }"
    assert graphql(http, resume, id=pod_id)["data"]["podResume"]["desiredStatus"] == "RUNNING"
    assert graphql(http, TERMINATE, id=pod_id) == {"data": {"podTerminate": None}}
    assert graphql(http, read, id=pod_id)["data"]["pod"] is None
    again = graphql(http, TERMINATE, id=pod_id)
    assert (message(again), again["errors"][0]["extensions"]["code"]) == (
        "pod not found to terminate",
        "POD_NOT_FOUND",
    )
    assert server.live_pods() == []


def test_no_capacity_is_an_error_inside_a_200(http: httpx.Client, server: RunpodDouble) -> None:
    server.faults.no_capacity(L4)
    refused = graphql(http, DEPLOY, input=deploy_input())
    assert (message(refused), refused["data"]) == (NO_CAPACITY, {"podFindAndDeployOnDemand": None})


def test_spot_costs_its_bid_and_is_preempted(http: httpx.Client, clock: ManualClock, server: RunpodDouble) -> None:
    low = graphql(http, SPOT, input=deploy_input(bidPerGpu=0.2))
    assert "bid" in message(low)
    pod = graphql(http, SPOT, input=deploy_input(bidPerGpu=0.3))["data"]["podRentInterruptable"]
    assert (pod["costPerHr"], pod["podType"]) == (0.3, "INTERRUPTABLE")
    clock.advance(3600)
    server.preempt(pod["id"])
    clock.advance(3600)
    assert server.runner.of(pod["id"])[0].stopped  # type: ignore[attr-defined]
    assert http.get(f"/v2/pods/{pod['id']}").json()["status"] == "EXITED"
    assert server.ledger.of(pod["id"]) == pytest.approx(0.3 + 1 / 720)


def test_deadlines_are_taken_and_ignored(http: httpx.Client, clock: ManualClock, server: RunpodDouble) -> None:
    deadline = {"terminateAfter": "2026-11-01T01:00:00Z", "stopAfter": "2026-11-01T00:30:00Z"}
    pod = graphql(http, DEPLOY, input=deploy_input(**deadline))["data"]["podFindAndDeployOnDemand"]
    clock.advance(10 * 3600)
    assert server.service.get(pod["id"]).request.ignored_deadlines == deadline
    assert http.get(f"/v2/pods/{pod['id']}").json()["status"] == "RUNNING"
    assert server.ledger.of(pod["id"]) > 4.3


def test_a_pods_own_key(http: httpx.Client, clock: ManualClock, server: RunpodDouble) -> None:
    own, other = create(http, "own"), create(http, "other")
    clock.advance(1)
    launch = server.runner.of(own["id"])[0].launch  # type: ignore[attr-defined]
    assert launch.env["RUNPOD_POD_ID"] == own["id"]
    assert launch.env["RUNPOD_API_BASE_URL"] == server.url
    with client_of(server, launch.env["RUNPOD_API_KEY"]) as inside:
        refused = graphql(inside, MYSELF)
        assert (message(refused), refused["data"]) == ("Unauthorized", {"myself": None})
        assert message(graphql(inside, TERMINATE, id=other["id"])) == "Unauthorized"
        assert message(graphql(inside, DEPLOY, input=deploy_input())) == "Unauthorized"
        read = "query($id: String!) { pod(input: {podId: $id}) { id } }"
        assert graphql(inside, read, id=own["id"])["data"]["pod"] == {"id": own["id"]}
        assert graphql(inside, TERMINATE, id=own["id"]) == {"data": {"podTerminate": None}}
        assert inside.post("/graphql", json={"query": MYSELF}).status_code == 401
    assert [pod.name for pod in server.live_pods()] == ["other"]


def test_a_read_only_key_changes_nothing(server: RunpodDouble) -> None:
    with client_of(server, server.read_only_key) as reader:
        assert graphql(reader, MYSELF)["data"]["myself"]["pods"] == []
        assert message(graphql(reader, DEPLOY, input=deploy_input())) == "Unauthorized"
    assert server.live_pods() == []
