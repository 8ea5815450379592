"""What happens to pods and to money at the RunPod double, and every fault that can be switched on."""

from __future__ import annotations

import json

import httpx
import pytest

from .clock import ManualClock
from .helpers import L4, create, graphql, pod_body
from .runpod import (
    NO_CAPACITY,
    BootTimes,
    Money,
    PodRequest,
    Refused,
    RunpodDouble,
    SimContainer,
    SimRunner,
)

RATE = 0.43 + 1 / 720  # one L4 and 10 GB of container disk, $/h


def sim(server: RunpodDouble) -> SimRunner:
    assert isinstance(server.runner, SimRunner)
    return server.runner


def status(http: httpx.Client, pod_id: str) -> str:
    return str(http.get(f"/v2/pods/{pod_id}").json()["status"])


def test_states_over_time_and_running_before_anything_runs() -> None:
    clock = ManualClock()
    boot = BootTimes(provisioning=10, starting=120, runtime_lag=30)
    with RunpodDouble(clock=clock, boot=boot) as server:
        service = server.service
        pod = service.create(PodRequest(name="a", image="i", gpu_id=L4))
        seen = []
        for seconds in (0, 10, 120, 29, 1):
            clock.advance(seconds)
            seen.append((pod.status, pod.container_runs))
        assert seen == [
            ("PROVISIONING", False),
            ("STARTING", False),
            ("RUNNING", False),
            ("RUNNING", False),
            ("RUNNING", True),
        ]
        assert sim(server).containers[0].launch.at == clock.now()
        assert server.ledger.total() == pytest.approx(RATE * 160 / 3600)


def test_a_container_that_exits_is_started_again_and_bills_on(
    http: httpx.Client, clock: ManualClock, server: RunpodDouble
) -> None:
    pod = create(http)
    clock.advance(60)
    sim(server).containers[0].exit(0)
    clock.advance(60)
    starts = sim(server).of(pod["id"])
    assert [container.launch.start for container in starts] == [1, 2]
    assert (starts[1].alive, status(http, pod["id"])) == (True, "RUNNING")
    clock.advance(3480)
    assert server.ledger.of(pod["id"]) == pytest.approx(RATE)
    assert server.ledger.billed_seconds(pod["id"]) == 3600


def test_a_crash_loop_pauses_longer_and_longer(http: httpx.Client, clock: ManualClock, server: RunpodDouble) -> None:
    fault = server.faults.crash_loop("run-")
    pod = create(http)
    clock.advance(3600)
    truth = server.service.get(pod["id"])
    assert fault.hits == truth.starts
    assert 60 < truth.starts < 75  # ten quick ones, then one a minute
    assert set(truth.exit_codes) == {1}
    assert sim(server).containers == []
    assert server.ledger.total() == pytest.approx(RATE)


def test_scripts_run_at_the_right_time_and_may_call_the_server() -> None:
    """A played supervisor: it works for ten minutes, then ends its own pod through the real wire."""
    clock = ManualClock()

    def supervise(container: SimContainer) -> None:
        ends.append((container, clock.now() + 600))

    class Work:
        def next_event(self) -> float | None:
            return min((at for _, at in ends), default=None)

        def settle(self) -> None:
            for container, at in list(ends):
                if at <= clock.now():
                    ends.remove((container, at))
                    terminate(container)

    def terminate(container: SimContainer) -> None:
        env = container.launch.env
        body = {"query": f'mutation {{ podTerminate(input: {{podId: "{env["RUNPOD_POD_ID"]}"}}) }}'}
        headers = {"Authorization": f"Bearer {env['RUNPOD_API_KEY']}"}
        with httpx.Client(trust_env=False) as client:
            reply = client.post(env["RUNPOD_API_BASE_URL"] + "/graphql", json=body, headers=headers)
        assert reply.json() == {"data": {"podTerminate": None}}

    ends: list[tuple[SimContainer, float]] = []
    clock.subscribe(Work())
    with RunpodDouble(clock=clock, runner=SimRunner(supervise)) as server:
        server.service.create(PodRequest(name="a", image="i", gpu_id=L4))
        clock.advance(86_400)
        assert server.live_pods() == []
        assert server.ledger.total("a") == pytest.approx(RATE * 600.3 / 3600)
        assert server.defects == []


def test_the_ledger_by_name_and_by_pod(http: httpx.Client, clock: ManualClock, server: RunpodDouble) -> None:
    first = create(http, "run-1-a1", gpu={"id": "NVIDIA A40", "count": 2}, disk=72)
    clock.advance(1800)
    create(http, "run-1-a2")
    create(http, "run-2-a1")
    clock.advance(1800)
    http.delete(f"/v2/pods/{first['id']}")
    clock.advance(3600)
    assert server.ledger.of(first["id"]) == pytest.approx(0.88 + 0.01)
    assert server.ledger.total("run-1") == pytest.approx(0.89 + 1.5 * RATE)
    assert server.ledger.total() == pytest.approx(0.89 + 3 * RATE)
    assert server.ledger.total("nothing") == 0


def test_a_stopped_pod_pays_for_its_volume_only(http: httpx.Client, clock: ManualClock, server: RunpodDouble) -> None:
    pod = create(http, mounts={"persistent": {"size": 72, "path": "/workspace"}})
    clock.advance(3600)
    server.service.stop(pod["id"])
    running = server.ledger.of(pod["id"])
    clock.advance(3600)
    assert running == pytest.approx(RATE + 0.01)
    assert server.ledger.of(pod["id"]) == pytest.approx(running + 0.02)


def test_at_a_zero_balance_pods_are_stopped_at_the_next_charge() -> None:
    clock = ManualClock()
    with RunpodDouble(clock=clock, money=Money(deposit=RATE)) as server:
        pod = server.service.create(PodRequest(name="a", image="i", gpu_id=L4))
        clock.advance(3599)
        assert pod.status == "RUNNING"
        clock.advance(7200)
        assert (pod.status, pod.changed_at) == ("EXITED", pod.created_at + 3600)
        assert server.service.balance == pytest.approx(0)
        assert len(server.live_pods()) == 1
        with pytest.raises(Refused, match="balance"):
            server.service.start(pod.id)


def test_the_spend_limit() -> None:
    with RunpodDouble(clock=ManualClock(), money=Money(deposit=1000, spend_limit=1)) as server:
        request = PodRequest(name="a", image="i", gpu_id=L4)
        server.service.create(request)
        server.service.create(request)
        with pytest.raises(Refused, match="spend limit"):
            server.service.create(request)


def test_secrets_reach_the_container_and_nothing_else(
    http: httpx.Client, clock: ManualClock, server: RunpodDouble
) -> None:
    server.secrets["hf"] = "hf_SECRET"
    placeholder = "{{ RUNPOD_SECRET_hf }}"
    pod = create(http, env={"HF_TOKEN": placeholder, "TIGHT": "{{RUNPOD_SECRET_hf}}", "NO": "{{ RUNPOD_SECRET_x }}"})
    clock.advance(1)
    env = sim(server).containers[0].launch.env
    assert (env["HF_TOKEN"], env["TIGHT"], env["NO"]) == ("hf_SECRET", "hf_SECRET", "{{ RUNPOD_SECRET_x }}")
    shown = http.get(f"/v2/pods/{pod['id']}").text + json.dumps(graphql(http, "{ myself { pods { env } } }"))
    assert "hf_SECRET" not in shown
    assert placeholder in shown
    assert env["RUNPOD_API_KEY"] not in shown


def test_registry_credentials_reach_the_pull(http: httpx.Client, clock: ManualClock, server: RunpodDouble) -> None:
    made = http.post("/v2/registries", json={"name": "r", "username": "u", "password": "p"}).json()
    create(http, registry=made["id"])
    clock.advance(1)
    login = sim(server).containers[0].launch.registry
    assert login is not None
    assert (login.username, login.password) == ("u", "p")


def test_a_reply_dropped_after_acting_leaves_a_pod(http: httpx.Client, server: RunpodDouble) -> None:
    fault = server.faults.drop_reply("createPod")
    with pytest.raises(httpx.TransportError):
        http.post("/v2/pods", json=pod_body())
    assert [pod["name"] for pod in http.get("/v2/pods").json()["pods"]] == ["run-1"]
    assert fault.hits == 1
    create(http, "run-2")


def test_a_request_dropped_before_acting_leaves_none(http: httpx.Client, server: RunpodDouble) -> None:
    server.faults.drop_request("createPod")
    with pytest.raises(httpx.TransportError):
        http.post("/v2/pods", json=pod_body())
    assert server.live_pods() == []


@pytest.mark.parametrize("call", ["createPod", "*"])
def test_429_and_502_by_count(http: httpx.Client, server: RunpodDouble, call: str) -> None:
    server.faults.bad_gateway(call, times=2)
    server.faults.rate_limit(call, retry_after=7)
    replies = [http.post("/v2/pods", json=pod_body()) for _ in range(4)]
    assert [reply.status_code for reply in replies] == [502, 502, 429, 201]
    assert replies[0].text.startswith("<html>")
    assert replies[2].headers["retry-after"] == "7"
    assert len(server.live_pods()) == 1


def test_faults_strike_graphql_by_its_field(http: httpx.Client, server: RunpodDouble) -> None:
    pod = create(http)
    server.faults.drop_reply("podTerminate")
    query = {"query": f'mutation {{ podTerminate(input: {{podId: "{pod["id"]}"}}) }}'}
    graphql(http, "{ myself { id } }")
    with pytest.raises(httpx.TransportError):
        http.post("/graphql", json=query)
    assert server.live_pods() == []


def test_a_late_answer_is_a_time_out_at_the_client(http: httpx.Client, server: RunpodDouble) -> None:
    server.faults.delay("createPod", seconds=60)
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v2/pods", json=pod_body(), timeout=2)
    assert len(server.live_pods()) == 1


def test_no_capacity_for_one_gpu_or_for_all(http: httpx.Client, server: RunpodDouble) -> None:
    server.faults.no_capacity(L4, times=1)
    refused = http.post("/v2/pods", json=pod_body())
    assert (refused.status_code, refused.json()["detail"]) == (400, NO_CAPACITY)
    create(http)
    server.faults.no_capacity()
    assert http.post("/v2/pods", json=pod_body()).status_code == 400
    server.faults.clear()
    create(http)


def test_a_boot_that_never_comes_is_billed(http: httpx.Client, clock: ManualClock, server: RunpodDouble) -> None:
    server.faults.never_boot("run-", times=1)
    pod, fine = create(http), create(http, "run-2")
    clock.advance(7200)
    assert (status(http, pod["id"]), status(http, fine["id"])) == ("STARTING", "RUNNING")
    assert sim(server).of(pod["id"]) == []
    assert server.ledger.of(pod["id"]) == pytest.approx(2 * RATE)


def test_a_refused_pull_is_billed_and_says_why(http: httpx.Client, clock: ManualClock, server: RunpodDouble) -> None:
    server.faults.refuse_registry()
    pod = create(http)
    clock.advance(3600)
    shown = http.get(f"/v2/pods/{pod['id']}").json()
    assert (shown["status"], shown["runtime"]) == ("STARTING", None)
    assert "unauthorized" in "".join(line.line for line in server.service.get(pod["id"]).log)
    assert server.ledger.total() == pytest.approx(RATE)
    server.faults.clear()
    clock.advance(61)
    shown = http.get(f"/v2/pods/{pod['id']}").json()
    assert (shown["status"], shown["runtime"] is None) == ("RUNNING", False)


def test_a_stale_price(http: httpx.Client, clock: ManualClock, server: RunpodDouble) -> None:
    server.faults.stale_price(L4, actual=1.25)
    assert http.get("/v2/catalog/gpus/NVIDIA%20L4").json()["price"]["secure"] == 0.43
    pod = create(http, gpu={"id": L4, "count": 2})
    clock.advance(3600)
    assert pod["cost"] == 2.5
    assert server.ledger.of(pod["id"]) == pytest.approx(2.5 + 1 / 720)


def test_a_terminate_that_takes_its_time_or_is_lost(
    http: httpx.Client, clock: ManualClock, server: RunpodDouble
) -> None:
    server.faults.slow_terminate("slow", seconds=120)
    server.faults.slow_terminate("lost")
    slow, lost = create(http, "slow"), create(http, "lost")
    clock.advance(60)
    for pod in (slow, lost, slow):
        assert http.delete(f"/v2/pods/{pod['id']}").status_code == 204
        assert status(http, pod["id"]) == "RUNNING"
    clock.advance(3600)
    assert [pod.name for pod in server.live_pods()] == ["lost"]
    assert server.ledger.billed_seconds(slow["id"]) == 180
    assert http.delete(f"/v2/pods/{lost['id']}").status_code == 204
    assert server.live_pods() == []


def test_lists_lag_behind(http: httpx.Client, clock: ManualClock, server: RunpodDouble) -> None:
    server.faults.list_lag(30)
    pod = create(http)
    assert http.get("/v2/pods").json() == {"pods": []}
    assert status(http, pod["id"]) == "PROVISIONING"
    clock.advance(30)
    assert len(graphql(http, "{ myself { pods { id } } }")["data"]["myself"]["pods"]) == 1
    http.delete(f"/v2/pods/{pod['id']}")
    assert [one["status"] for one in http.get("/v2/pods").json()["pods"]] == ["RUNNING"]
    assert http.get(f"/v2/pods/{pod['id']}").status_code == 404
    clock.advance(30)
    assert http.get("/v2/pods").json() == {"pods": []}


def test_a_terminated_pod_may_linger(http: httpx.Client, clock: ManualClock, server: RunpodDouble) -> None:
    server.faults.linger_terminated(10)
    pod = create(http)
    http.delete(f"/v2/pods/{pod['id']}")
    shown = http.get(f"/v2/pods/{pod['id']}").json()
    assert (shown["status"], shown["cost"], shown["actions"]) == ("TERMINATED", 0.0, [])
    assert http.delete(f"/v2/pods/{pod['id']}").status_code == 404
    clock.advance(10)
    assert http.get(f"/v2/pods/{pod['id']}").status_code == 404
    assert server.live_pods() == []


def test_a_broken_host_is_error_and_bills_on(http: httpx.Client, clock: ManualClock, server: RunpodDouble) -> None:
    pod = create(http)
    clock.advance(60)
    server.fail_host(pod["id"])
    clock.advance(3540)
    assert (status(http, pod["id"]), sim(server).containers[0].stopped) == ("ERROR", True)
    assert server.ledger.total() == pytest.approx(RATE)


def test_a_year_of_nothing_is_quick_and_free(clock: ManualClock, server: RunpodDouble) -> None:
    clock.advance(365 * 86_400)
    assert server.ledger.total() == 0
    assert server.service.next_event() is None
