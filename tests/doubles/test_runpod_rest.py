"""REST v2 of the RunPod double: the vendor's document, held against both sides of the wire."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from typing import Any

import httpx
import pytest

from .clock import ManualClock
from .conftest import client_of
from .helpers import L4, create, graphql, pod_body
from .runpod import NO_CAPACITY, RunpodDouble
from .runpod.contract import Contract


def is_problem(reply: httpx.Response, status: int) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = reply.json()
    assert body["status"] == status
    return body


def test_a_pod_lives_from_201_to_404(http: httpx.Client, clock: ManualClock) -> None:
    pod = create(http, env={"A": "1"}, disk=50, ports=["22/tcp"])
    assert (pod["status"], pod["cost"], pod["runtime"]) == ("PROVISIONING", 0.43, None)
    clock.advance(60)
    shown = http.get(f"/v2/pods/{pod['id']}").json()
    assert (shown["status"], shown["runtime"]["uptime"], shown["env"]) == ("RUNNING", 59, {"A": "1"})
    assert [one["id"] for one in http.get("/v2/pods").json()["pods"]] == [pod["id"]]
    gone = http.delete(f"/v2/pods/{pod['id']}")
    assert (gone.status_code, gone.content) == (204, b"")
    for reply in (http.delete(f"/v2/pods/{pod['id']}"), http.get(f"/v2/pods/{pod['id']}")):
        is_problem(reply, 404)
    assert http.get("/v2/pods").json() == {"pods": []}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"terminateAfter": "2026-11-01T01:00:00Z"}, "terminateAfter"),
        ({"interruptible": True}, "interruptible"),
        ({"entrypoint": ["python"]}, "entrypoint"),
        ({"cmd": ["a"]}, "cmd"),
        ({"env": {"A": 1}}, "$.env.A"),
        ({"gpu": {"id": L4, "count": 0}}, "$.gpu.count"),
        ({"gpu": {"id": L4, "kind": "x"}}, "kind"),
        ({"disk": "50"}, "$.disk"),
        ({"cloud": "ALL"}, "$.cloud"),
        ({"name": ""}, "$.name"),
        ({"mounts": {"persistent": {"size": 5, "path": "/w"}}}, "size"),
    ],
)
def test_a_body_against_the_document_is_422_and_rents_nothing(
    http: httpx.Client, server: RunpodDouble, change: dict[str, Any], said: str
) -> None:
    problem = is_problem(http.post("/v2/pods", json=pod_body(**change)), 422)
    assert said in " ".join(problem["errors"])
    assert server.misuses
    assert server.live_pods() == []


@pytest.mark.parametrize("missing", ["name", "image"])
def test_required_fields(http: httpx.Client, missing: str) -> None:
    body = pod_body()
    del body[missing]
    assert missing in is_problem(http.post("/v2/pods", json=body), 422)["errors"][0]


def test_the_published_document_has_args_and_the_newer_one_the_arrays() -> None:
    published, newer = Contract(), Contract(newer_fields=True)
    operation = published.match("POST", "/v2/pods")
    assert published.body_errors(operation, pod_body(args="--x 1")) == []
    assert published.body_errors(operation, pod_body(entrypoint=["a"], cmd=["b"])) != []
    assert newer.body_errors(operation, pod_body(entrypoint=["a"], cmd=["b"])) == []


def test_newer_fields_reach_the_container() -> None:
    clock = ManualClock()
    with RunpodDouble(clock=clock, newer_fields=True) as server, client_of(server, server.api_key) as http:
        pod = create(http, entrypoint=["python"], cmd=["-m", "jobs.supervisor"])
        clock.advance(1)
        launch = server.runner.of(pod["id"])[0].launch  # type: ignore[attr-defined]
        assert (launch.entrypoint, launch.command()) == (("python",), ["-m", "jobs.supervisor"])
        assert server.defects == []


@pytest.mark.parametrize(
    "change",
    [
        {"gpu": {"id": "NVIDIA A10G"}},
        {"gpu": {"id": L4, "count": 9}},
        {"gpu": {"id": L4, "allowedCudaVersions": ["12.8"], "minCudaVersion": "12.4"}},
        {"gpu": {"id": L4, "allowedCudaVersions": ["99.9"]}},
        {"gpu": {"id": L4, "minCudaVersion": "12.11"}},
        {"gpu": {"id": L4}, "cpu": {"id": "cpu3c", "vcpuCount": 2}},
        {"gpu": {"id": L4}, "cloud": "COMMUNITY"},
        {"dataCenterIds": ["MOON-1"]},
        {"env": {f"V{n}": "" for n in range(51)}},
    ],
)
def test_rules_and_capacity_are_400_without_a_code(
    http: httpx.Client, server: RunpodDouble, change: dict[str, Any]
) -> None:
    problem = is_problem(http.post("/v2/pods", json=pod_body(**change)), 400)
    assert set(problem) == {"title", "status", "detail"}
    assert server.live_pods() == []


def test_stock_runs_out_and_comes_back(http: httpx.Client, server: RunpodDouble) -> None:
    server.catalog.set_stock(L4, 1)
    pod = create(http)
    assert is_problem(http.post("/v2/pods", json=pod_body()), 400)["detail"] == NO_CAPACITY
    http.delete(f"/v2/pods/{pod['id']}")
    create(http)


def test_an_hour_of_credit_is_needed(http: httpx.Client, server: RunpodDouble) -> None:
    server.service.deposit(0.42 - server.service.balance)
    is_problem(http.post("/v2/pods", json=pod_body()), 402)
    server.service.deposit(0.02)
    create(http)


def test_keys(server: RunpodDouble) -> None:
    with client_of(server, "") as nobody, client_of(server, "rpa_WRONG") as wrong:
        assert is_problem(nobody.get("/v2/pods"), 401)["detail"] == "missing bearer token"
        is_problem(wrong.get("/v2/pods"), 401)
    with client_of(server, server.read_only_key) as reader:
        assert reader.get("/v2/pods").status_code == 200
        is_problem(reader.post("/v2/pods", json=pod_body()), 403)
        is_problem(reader.delete("/v2/pods/x"), 403)


def test_a_pods_key_is_refused_by_rest(http: httpx.Client, server: RunpodDouble) -> None:
    pod = create(http)
    with client_of(server, server.service.get(pod["id"]).api_key) as inside:
        is_problem(inside.get(f"/v2/pods/{pod['id']}"), 403)
        is_problem(inside.delete(f"/v2/pods/{pod['id']}"), 403)
    assert len(server.live_pods()) == 1


def test_a_pods_key_may_use_rest_for_itself_where_the_reports_differ() -> None:
    with RunpodDouble(clock=ManualClock(), pod_key_rest=True) as server:
        with client_of(server, server.api_key) as http:
            own, other = create(http, "own"), create(http, "other")
        with client_of(server, server.service.get(own["id"]).api_key) as inside:
            is_problem(inside.delete(f"/v2/pods/{other['id']}"), 403)
            is_problem(inside.get("/v2/pods"), 403)
            assert inside.delete(f"/v2/pods/{own['id']}").status_code == 204
            is_problem(inside.get(f"/v2/pods/{own['id']}"), 401)


def test_unknown_paths_and_methods(http: httpx.Client, server: RunpodDouble) -> None:
    is_problem(http.get("/v2/podz"), 404)
    refused = http.put("/v2/pods", json={})
    is_problem(refused, 405)
    assert refused.headers["allow"] == "GET, POST"
    assert len(server.misuses) == 2
    is_problem(http.get("/v2/clusters"), 501)
    assert http.get("/v1/pods").status_code == 404


def test_bodies_that_are_no_json_or_too_large(http: httpx.Client, server: RunpodDouble) -> None:
    is_problem(http.post("/v2/pods", content=b"{"), 400)
    room = 102_400 - len(json.dumps(pod_body(env={"A": ""})))
    for size, status in ((room, 201), (room + 1, 413)):
        body = json.dumps(pod_body(env={"A": "x" * size})).encode()
        assert http.post("/v2/pods", content=body).status_code == status
    assert len(server.live_pods()) == 1


@pytest.mark.parametrize("path", ["/v2/pods", "/graphql"])
def test_urllib_without_a_user_agent_is_taken_for_a_bot(server: RunpodDouble, path: str) -> None:
    url, key = server.url + path, {"Authorization": f"Bearer {server.api_key}"}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(urllib.error.HTTPError) as refused:
        opener.open(urllib.request.Request(url, headers=key))
    assert (refused.value.code, refused.value.read()) == (403, b"error code: 1010")
    if path == "/v2/pods":
        named = urllib.request.Request(url, headers={**key, "User-Agent": "cloudft/1"})
        assert opener.open(named).status == 200


def test_patch_and_actions(http: httpx.Client, clock: ManualClock, server: RunpodDouble) -> None:
    pod = create(http)
    url = f"/v2/pods/{pod['id']}"
    assert http.patch(url, json={"name": "renamed"}).json()["name"] == "renamed"
    is_problem(http.patch(url, json={"nam": "x"}), 422)
    is_problem(http.post(f"{url}/action", json={"action": "restart"}), 409)
    clock.advance(5)
    assert http.post(f"{url}/action", json={"action": "restart"}).status_code == 200
    clock.advance(5)
    assert len(server.runner.of(pod["id"])) == 2  # type: ignore[attr-defined]
    stopped = http.post(f"{url}/action", json={"action": "stop"}).json()
    assert (stopped["status"], stopped["cost"], stopped["actions"]) == ("EXITED", 0.0, ["start", "terminate"])
    assert http.post(f"{url}/action", json={"action": "start"}).json()["status"] == "PROVISIONING"
    http.patch(url, json={"locked": True})
    is_problem(http.post(f"{url}/action", json={"action": "stop"}), 400)
    assert http.post(f"{url}/action", json={"action": "terminate"}).status_code == 204
    assert server.live_pods() == []


def test_the_catalogue(http: httpx.Client, server: RunpodDouble) -> None:
    gpus = {gpu["id"]: gpu for gpu in http.get("/v2/catalog/gpus").json()["gpus"]}
    assert not any("A10G" in gpu_id for gpu_id in gpus)
    assert {"NVIDIA RTX A5000", L4, "NVIDIA GeForce RTX 4090", "NVIDIA A100 80GB PCIe"} <= set(gpus)
    assert "availability" not in gpus[L4]
    query = {"include": "AVAILABILITY", "product": "POD"}
    server.catalog.set_stock(L4, 0)
    stocked = {gpu["id"]: gpu for gpu in http.get("/v2/catalog/gpus", params=query).json()["gpus"]}
    assert stocked[L4]["availability"] == "NONE"
    assert "dataCenters" not in stocked[L4]
    assert stocked["NVIDIA GeForce RTX 4090"]["availability"] == "HIGH"
    one = http.get("/v2/catalog/gpus/NVIDIA%20A40", params={**query, "count": 5}).json()
    assert one["availability"] == "LOW"
    assert is_problem(http.get("/v2/catalog/gpus/NVIDIA%20A10G"), 404)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("include=AVAILABILITY", 400),
        ("product=POD", 400),
        ("count=2", 400),
        ("include=AVAILABILITY&product=POD&cudaVersions=12.8&minCudaVersion=12", 400),
        ("include=STOCK&product=POD", 422),
        ("include=AVAILABILITY&product=POD&count=none", 422),
        ("include=AVAILABILITY&product=POD&countryCodes=fr", 422),
        ("inclood=AVAILABILITY", 422),
        ("include=AVAILABILITY&product=POD&countryCodes=RO,SE&cloud=COMMUNITY&minCudaVersion=12", 200),
    ],
)
def test_catalogue_queries(http: httpx.Client, query: str, status: int) -> None:
    assert http.get(f"/v2/catalog/gpus?{query}").status_code == status


def test_registries_keep_their_password(http: httpx.Client) -> None:
    login = {"name": "ghcr", "username": "u", "password": "hunter2"}
    made = http.post("/v2/registries", json=login)
    assert (made.status_code, set(made.json())) == (201, {"id", "name"})
    assert "hunter2" not in http.get("/v2/registries").text
    assert create(http, registry=made.json()["id"])["registry"] == made.json()["id"]
    is_problem(http.post("/v2/pods", json=pod_body(registry="nope")), 404)
    assert http.delete(f"/v2/registries/{made.json()['id']}").status_code == 204
    is_problem(http.get(f"/v2/registries/{made.json()['id']}"), 404)


def test_billing_agrees_with_the_ledger(http: httpx.Client, clock: ManualClock, server: RunpodDouble) -> None:
    pod, other = create(http, "a"), create(http, "b")
    clock.advance(5400)
    bill = http.get("/v2/billing/pods", params={"bucketSize": "hour", "lastN": 3, "podId": pod["id"]}).json()
    assert [round(record["gpuAmount"], 6) for record in bill["records"]] == [0.43, 0.215]
    assert bill["metadata"]["totals"]["totalAmount"] == pytest.approx(server.ledger.of(pod["id"]))
    everything = http.get("/v2/billing/pods").json()["metadata"]
    assert everything["uniquePodCount"] == 2
    assert everything["totals"]["totalAmount"] == pytest.approx(server.ledger.total())
    assert server.ledger.of(other["id"]) > 0
    is_problem(http.get("/v2/billing/pods?lastN=1&startTime=2026-11-01T00:00:00Z"), 400)
    is_problem(http.get("/v2/billing/pods?startTime=yesterday"), 422)


def read_events(stream: httpx.Response, count: int) -> list[dict[str, str]]:
    events: list[dict[str, str]] = []
    for line in stream.iter_lines():
        if line.startswith("id: "):
            events.append({"id": line[4:]})
        elif line.startswith("data: "):
            events[-1].update(json.loads(line[6:]))
            if len(events) == count:
                break
    return events


def test_logs_stream_backfill_resume_and_end(http: httpx.Client, clock: ManualClock, server: RunpodDouble) -> None:
    pod = create(http)
    clock.advance(1)
    container = server.runner.of(pod["id"])[0]  # type: ignore[attr-defined]
    for n in range(5):
        container.log(f"line {n}")
    url = f"/v2/pods/{pod['id']}/logs"
    with http.stream("GET", url, params={"source": "container", "tail": 2}) as stream:
        assert stream.headers["content-type"] == "text/event-stream"
        container.log("live")
        events = read_events(stream, 3)
    assert [event["line"] for event in events] == ["line 3", "line 4", "live"]
    threading.Timer(0.1, lambda: server.service.terminate(pod["id"])).start()
    with http.stream("GET", url, headers={"Last-Event-ID": events[0]["id"]}) as stream:
        rest = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
    assert [event["line"] for event in rest if event["source"] == "container"] == ["line 4", "live"]
    is_problem(http.get(url), 404)


def test_a_rate_limit_says_how_long_to_wait() -> None:
    clock = ManualClock()
    with (
        RunpodDouble(clock=clock, requests_per_minute=2) as server,
        client_of(server, server.api_key) as http,
    ):
        assert http.get("/v2/pods").headers["ratelimit"].startswith('"minute";r=1;')
        http.get("/v2/pods")
        limited = http.get("/v2/pods")
        is_problem(limited, 429)
        clock.advance(float(limited.headers["retry-after"]))
        assert http.get("/v2/pods").status_code == 200


def test_every_call_is_noted(http: httpx.Client, server: RunpodDouble) -> None:
    create(http)
    graphql(http, "{ myself { id } }")
    assert [(call.name, call.status, call.by) for call in server.calls] == [
        ("createPod", 201, "account"),
        ("myself", 200, "account"),
    ]
    assert server.calls_of("createPod")[0].body["name"] == "run-1"


def test_an_answer_against_the_document_is_a_defect_of_the_double() -> None:
    with RunpodDouble(clock=ManualClock()) as server, client_of(server, server.api_key) as http:
        server.catalog.gpus[L4].memory = "24"  # type: ignore[assignment]
        http.get("/v2/catalog/gpus")
        assert server.defects == ["listGpuTypes: $.gpus[2].memory: '24' is not of type 'integer'"]


def test_two_creates_at_once_share_one_free_gpu(server: RunpodDouble) -> None:
    server.catalog.set_stock(L4, 1)
    codes: list[int] = []

    def rent() -> None:
        with client_of(server, server.api_key) as http:
            codes.append(http.post("/v2/pods", json=pod_body()).status_code)

    threads = [threading.Thread(target=rent) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [201] + [400] * 7
    assert len(server.live_pods()) == 1


def test_it_listens_on_a_second_address_under_the_same_port() -> None:
    with RunpodDouble(clock=ManualClock(), hosts=("127.0.0.1", "127.0.0.2")) as server:
        assert server.pod_url == server.url.replace("127.0.0.1", "127.0.0.2")
        headers = {"Authorization": f"Bearer {server.api_key}"}
        assert httpx.get(f"{server.pod_url}/v2/pods", headers=headers, trust_env=False).status_code == 200
