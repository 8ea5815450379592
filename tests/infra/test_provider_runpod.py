"""Provider ``runpod`` against a server as strict as RunPod's, through the real wire: renting, looking, ending."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cloudft.errors import ProviderError
from infra.provider import CreateUnknown, NoCapacity, machine_name, open_provider
from infra.provider_runpod import END_WITHIN, LIST_LAG, RunpodProvider
from infra.runpod_offers import MIN_CUDA, disk_rate
from jobs.ticket import ENV_DEADLINE, ENV_TICKET
from tests.doubles.runpod import NO_CAPACITY, PodRequest
from tests.infra.runpod_fixtures import DIGEST, L4, NAME, TICKET, Runpod, runpod

__all__ = ["runpod"]

DISK = disk_rate(20)


def test_it_can_be_opened_without_a_key_and_imports_no_heavy_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, repo: Path
) -> None:
    assert isinstance(open_provider("runpod", tmp_path), RunpodProvider)
    code = (
        "import sys; from pathlib import Path; from infra.provider import open_provider;"
        "open_provider('runpod', Path('.')); print([m for m in ('httpx', 'runpod', 'requests') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- create


def test_the_order_says_all_that_was_asked_and_the_machine_is_told_nothing_else(runpod: Runpod) -> None:
    runpod.server.secrets["hf"] = "hf_SECRETVALUE"
    order = runpod.order(disk_gb=50, data_centers=("EU-RO-1", "US-KS-2"), secrets={"HF_TOKEN": "hf"})
    machine = runpod.provider.create(order)
    (call,) = runpod.server.calls_of("createPod")
    assert call.body == {
        "name": NAME,
        "image": DIGEST,
        "gpu": {"id": L4, "count": 1, "minCudaVersion": MIN_CUDA},
        "cloud": "SECURE",
        "disk": 50,
        "env": {
            ENV_DEADLINE: str(order.deadline),
            ENV_TICKET: TICKET,
            "HF_TOKEN": "{{ RUNPOD_SECRET_hf }}",
        },
        "dataCenterIds": ["EU-RO-1", "US-KS-2"],
    }
    assert (machine.provider, machine.id, machine.name) == ("runpod", runpod.pod.id, NAME)
    assert machine.created_at == runpod.pod.created_at
    assert machine.state == "starting"
    assert TICKET not in repr(machine)
    env = runpod.env_of_container()
    assert env["HF_TOKEN"] == "hf_SECRETVALUE"
    assert runpod.server.api_key not in env.values()
    assert float(env[ENV_DEADLINE]) == order.deadline


def test_cloud_and_registry_are_those_of_the_order(runpod: Runpod) -> None:
    from tests.doubles.runpod.runners import RegistryLogin

    runpod.server.service.registries["reg1"] = RegistryLogin("reg1", "ghcr", "u", "p")
    runpod.create(offer=runpod.offer("RTX-4090", "COMMUNITY"), registry="reg1")
    assert (runpod.pod.cloud, runpod.pod.request.registry_id) == ("COMMUNITY", "reg1")


def test_the_real_rate_is_read_again_after_create(runpod: Runpod) -> None:
    quoted = runpod.offer()
    assert runpod.create(offer=quoted).rate_usd == pytest.approx(quoted.rate_usd)
    runpod.provider.terminate(NAME)
    runpod.server.faults.stale_price(L4, actual=0.86)
    dearer = runpod.create(offer=quoted)
    assert dearer.rate_usd == pytest.approx(0.86 + DISK)
    assert float(runpod.server.ledger.rate()) == pytest.approx(dearer.rate_usd)


def test_a_live_machine_that_costs_nothing_has_no_known_rate(runpod: Runpod) -> None:
    offer = runpod.offer()
    runpod.server.faults.stale_price(L4, actual=0.0)
    assert runpod.create(offer=offer).rate_usd is None
    assert len(runpod.server.calls_of("getPod")) == 3


def test_a_machine_that_exists_is_returned_even_if_it_cannot_be_read_again(runpod: Runpod) -> None:
    runpod.server.faults.bad_gateway("getPod", times=None)
    machine = runpod.create()
    assert machine.id == runpod.pod.id
    assert machine.rate_usd == pytest.approx(0.43 + DISK)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"offer": None}, "no offer"),
        ({"image": None}, "by its digest"),
        ({"image": "registry.test/train:latest"}, "by its digest"),
        ({"secrets": {"CLOUDFT_DEADLINE": "x"}}, "CLOUDFT_DEADLINE"),
        ({"secrets": {"RUNPOD_POD_ID": "x"}}, "RUNPOD_POD_ID"),
        ({"secrets": {"HF TOKEN": "x"}}, "HF TOKEN"),
        ({"secrets": {"HF_TOKEN": "hf_abc }} {{ x"}}, "no name of a secret"),
        ({"secrets": {f"S{i}": "x" for i in range(49)}}, "at most 50"),
    ],
)
def test_an_order_that_cannot_work_is_refused_before_it_is_sent(
    runpod: Runpod, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ProviderError, match=said) as caught:
        runpod.create(**changes)
    assert caught.value.effect == "nothing was rented"
    assert "hf_abc" not in str(caught.value)
    assert runpod.server.calls_of("createPod") == []


def refused(runpod: Runpod, kind: type[ProviderError], **changes: Any) -> ProviderError:
    """The error of a create that the service refuses: sent once, nothing rented."""
    order = runpod.order(**changes)
    with pytest.raises(kind) as caught:
        runpod.provider.create(order)
    assert len(runpod.server.calls_of("createPod")) == 1
    assert runpod.server.live_pods() == []
    assert caught.value.effect == "nothing was rented"
    assert caught.value.__cause__ is None or runpod.server.api_key not in repr(caught.value.__cause__)
    return caught.value


def test_no_capacity_is_told_from_a_broken_rule_by_its_text(runpod: Runpod) -> None:
    runpod.server.faults.no_capacity(L4)
    error = refused(runpod, NoCapacity)
    assert NO_CAPACITY in str(error)


def test_a_broken_rule_is_shown_in_the_services_words(runpod: Runpod) -> None:
    error = refused(runpod, ProviderError, data_centers=("MARS-1",))
    assert not isinstance(error, NoCapacity | CreateUnknown)
    assert "unknown data center 'MARS-1'" in str(error)


def test_too_little_money_says_how_much_is_left(runpod: Runpod) -> None:
    runpod.server.service.deposit(-24.75)
    error = refused(runpod, ProviderError)
    assert "the balance is $0.25" in str(error)
    assert "pay in" in error.hint
    assert not isinstance(error, NoCapacity)


def test_too_little_money_is_said_without_the_package_too(runpod: Runpod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "runpod.api.graphql", None)
    runpod.server.service.deposit(-24.75)
    assert "insufficient balance" in str(refused(runpod, ProviderError))


def test_a_key_that_may_not_write_is_named_as_the_reason(runpod: Runpod, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNPOD_API_KEY", runpod.server.read_only_key)
    assert "RUNPOD_API_KEY" in refused(runpod, ProviderError).hint


def test_unknown_credentials_of_a_registry(runpod: Runpod) -> None:
    assert "registry credential not found" in str(refused(runpod, ProviderError, registry="nope"))


def test_a_body_against_the_document_is_our_fault_and_sent_once(runpod: Runpod) -> None:
    error = refused(runpod, ProviderError, disk_gb=0)
    assert "$.disk" in str(error)
    assert "report it" in error.hint
    runpod.server.misuses.clear()


# ---- doubt


def unknown(runpod: Runpod) -> CreateUnknown:
    """The error of a create that was sent, once, and may have been carried out."""
    order = runpod.order()
    with pytest.raises(CreateUnknown) as caught:
        runpod.provider.create(order)
    assert len(runpod.server.calls_of("createPod")) == 1
    assert "may exist" in caught.value.effect
    return caught.value


def test_a_lost_reply_leaves_a_machine_that_is_found_by_name_from_anywhere(runpod: Runpod) -> None:
    runpod.server.faults.drop_reply("createPod")
    unknown(runpod)
    (pod,) = runpod.server.live_pods()
    for provider in (runpod.provider, runpod.another()):
        machine = provider.find(NAME)
        assert machine is not None
        assert machine.id == pod.id
    runpod.another().terminate(NAME)
    assert runpod.server.live_pods() == []


@pytest.mark.parametrize("fault", ["drop_request", "bad_gateway"])
def test_a_request_that_may_have_been_lost_is_not_sent_again(runpod: Runpod, fault: str) -> None:
    getattr(runpod.server.faults, fault)("createPod")
    error = unknown(runpod)
    assert TICKET not in str(error)
    before = runpod.clock.now()
    assert runpod.provider.find(NAME) is None
    assert runpod.clock.now() - before >= LIST_LAG
    assert runpod.provider.find(NAME) is None
    assert runpod.clock.now() - before < 2 * LIST_LAG


def test_a_create_without_an_answer_in_time_is_in_doubt(runpod: Runpod) -> None:
    runpod.server.faults.delay("createPod", seconds=30)
    order = runpod.order()
    with pytest.raises(CreateUnknown):
        runpod.another(timeout=1.5).create(order)
    machine = runpod.provider.find(NAME)
    assert machine is not None
    assert [pod.id for pod in runpod.server.live_pods()] == [machine.id]


def test_a_machine_in_doubt_is_found_although_lists_lag(runpod: Runpod) -> None:
    runpod.server.faults.list_lag(LIST_LAG / 2)
    runpod.server.faults.drop_reply("createPod")
    unknown(runpod)
    machine = runpod.provider.find(NAME)
    assert machine is not None
    assert machine.id == runpod.pod.id


def test_by_its_id_a_machine_is_found_and_ended_from_anywhere_although_lists_lag(runpod: Runpod) -> None:
    runpod.server.faults.list_lag(3600)
    machine = runpod.create()
    assert runpod.another().find(NAME) is None
    assert runpod.another().find(NAME, machine.id) == machine
    runpod.another().terminate(NAME, machine.id)
    assert runpod.server.live_pods() == []
    assert runpod.another().find(NAME, machine.id) is None


def test_a_machine_in_doubt_is_ended_although_lists_lag(runpod: Runpod) -> None:
    runpod.server.faults.list_lag(LIST_LAG / 2)
    runpod.server.faults.drop_reply("createPod")
    unknown(runpod)
    runpod.provider.terminate(NAME)
    assert runpod.server.live_pods() == []


def test_an_address_where_nobody_listens_rents_nothing_for_sure(
    runpod: Runpod, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = runpod.order()
    monkeypatch.setenv("RUNPOD_API_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(ProviderError, match="cannot be reached") as caught:
        runpod.provider.create(order)
    assert not isinstance(caught.value, CreateUnknown)
    assert caught.value.effect == "nothing was rented"


# ---- looking and ending


def test_running_means_that_the_container_runs(runpod: Runpod) -> None:
    runpod.create()
    states = []
    for _ in range(5):
        machine = runpod.provider.find(NAME)
        assert machine is not None
        states.append((runpod.pod.shown_status, machine.state))
        runpod.clock.advance(0.1)
    assert ("RUNNING", "starting") in states
    assert states[-1] == ("RUNNING", "running")


def test_a_stopped_machine_has_ended_and_is_still_there(runpod: Runpod) -> None:
    runpod.create()
    runpod.clock.advance(10)
    runpod.server.service.stop(runpod.pod.id)
    machine = runpod.provider.find(NAME)
    assert machine is not None
    assert machine.state == "ended"
    assert machine.rate_usd is None
    assert runpod.provider.machines() == [machine]
    runpod.provider.terminate(NAME)
    assert runpod.provider.find(NAME) is None


def test_a_broken_host_has_ended_and_is_billed_on(runpod: Runpod) -> None:
    runpod.create()
    runpod.clock.advance(10)
    runpod.server.fail_host(runpod.pod.id)
    machine = runpod.provider.find(NAME)
    assert machine is not None
    assert machine.state == "ended"
    assert machine.rate_usd == pytest.approx(0.43 + DISK)


@pytest.mark.parametrize("fault", ["list_lag", "linger_terminated"])
def test_what_is_gone_is_gone_whatever_the_list_still_shows(runpod: Runpod, fault: str) -> None:
    runpod.create()
    runpod.clock.advance(1000)
    getattr(runpod.server.faults, fault)(500)
    runpod.provider.terminate(NAME)
    assert runpod.server.live_pods() == []
    for provider in (runpod.provider, runpod.another()):
        assert provider.find(NAME) is None
        provider.terminate(NAME)


def test_machines_are_ours_alone(runpod: Runpod) -> None:
    runpod.create()
    for name in ("somebody-elses", "cloudft", "cloudft-not-ours"):
        runpod.server.service.create(PodRequest(name=name, image="i", gpu_id=L4))
    second = machine_name("20261120-111111-cd34", 2, 1_793_500_000)
    runpod.create(name=second)
    assert [m.name for m in runpod.another().machines()] == [NAME, second]
    for machine in runpod.another().machines():
        runpod.provider.terminate(machine.name)
    assert {p.name for p in runpod.server.live_pods()} == {"somebody-elses", "cloudft", "cloudft-not-ours"}


def test_two_pods_of_one_name_are_both_ended(runpod: Runpod) -> None:
    runpod.create()
    runpod.create()
    assert len(runpod.server.live_pods()) == 2
    runpod.another().terminate(NAME)
    assert runpod.server.live_pods() == []


def test_a_live_machine_is_shown_before_an_ended_one_of_the_same_name(runpod: Runpod) -> None:
    runpod.create()
    first = runpod.pod.id
    runpod.clock.advance(10)
    second = runpod.create().id
    runpod.server.service.stop(first)
    machine = runpod.another().find(NAME)
    assert machine is not None
    assert machine.id == second


def test_the_end_is_waited_for(runpod: Runpod) -> None:
    runpod.create()
    runpod.server.faults.slow_terminate(NAME, seconds=30)
    began = runpod.clock.now()
    runpod.provider.terminate(NAME)
    assert runpod.clock.now() - began >= 30
    assert runpod.server.live_pods() == []


def test_a_lost_request_to_end_is_asked_again(runpod: Runpod) -> None:
    runpod.create()
    lost = runpod.server.faults.slow_terminate(NAME, times=3)
    runpod.provider.terminate(NAME)
    assert lost.hits == 3
    assert runpod.server.live_pods() == []


def test_a_machine_that_does_not_end_is_an_error_that_says_so(runpod: Runpod) -> None:
    runpod.create()
    runpod.server.faults.slow_terminate(NAME, times=None)
    began = runpod.clock.now()
    with pytest.raises(ProviderError, match=f"{runpod.pod.id}.*still there") as caught:
        runpod.provider.terminate(NAME)
    assert END_WITHIN <= runpod.clock.now() - began < 2 * END_WITHIN
    assert "billed" in caught.value.effect
    assert "console.runpod.io" in caught.value.hint


@pytest.mark.parametrize("call", ["deletePod", "getPod", "listPods"])
def test_an_end_that_cannot_be_confirmed_is_an_error(runpod: Runpod, call: str) -> None:
    runpod.create()
    runpod.server.faults.bad_gateway(call, times=None)
    with pytest.raises(ProviderError, match="HTTP 502") as caught:
        runpod.provider.terminate(NAME)
    assert "may still be there, and is billed" in caught.value.effect


def test_one_pod_that_refuses_to_end_does_not_keep_its_twin(runpod: Runpod) -> None:
    runpod.create()
    runpod.create()
    runpod.server.faults.bad_gateway("deletePod", times=4)  # All tries for the first of them.
    with pytest.raises(ProviderError):
        runpod.another().terminate(NAME)
    assert len(runpod.server.live_pods()) == 1
    runpod.another().terminate(NAME)
    assert runpod.server.live_pods() == []


def test_a_name_that_never_was_is_silently_none(runpod: Runpod) -> None:
    never = machine_name("20261120-000000-aaaa", 1, 1)
    runpod.provider.terminate(never)
    assert runpod.provider.find(never) is None
    assert runpod.provider.log(never) == ""
    assert runpod.server.calls_of("deletePod") == []


def test_the_console_tells_why_a_machine_never_ran(runpod: Runpod) -> None:
    runpod.server.faults.refuse_registry(NAME)
    runpod.create()
    runpod.clock.advance(30)
    text = runpod.provider.log(NAME)
    assert "unauthorized: authentication required" in text
    assert "[system] pod created" in text
    machine = runpod.provider.find(NAME)
    assert machine is not None
    assert machine.state == "starting"


def test_the_console_has_the_containers_lines_as_they_are(runpod: Runpod) -> None:
    runpod.create()
    runpod.clock.advance(10)
    runpod.runner.of(runpod.pod.id)[0].log("12:00:00 supervisor: data: {not: json}")
    runpod.clock.advance(1)
    assert "\n12:00:00 supervisor: data: {not: json}\n" in runpod.provider.log(NAME)
