"""The real ``runpod`` package against the double: what works, and what it raises."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from .helpers import L4
from .runpod import NO_CAPACITY, PodRequest, RunpodDouble
from .runpod.fixture import import_runpod

pytestmark = pytest.mark.filterwarnings("ignore")


def rent(server: RunpodDouble, name: str = "run-1") -> str:
    return server.service.create(PodRequest(name=name, image="i", gpu_id=L4, env={"A": "1"})).id


def test_importing_it_leaves_the_root_logger_alone() -> None:
    before = list(logging.getLogger().handlers)
    import_runpod()
    assert logging.getLogger().handlers == before


def test_gpus(runpod_package: Any) -> None:
    gpus = {gpu["id"]: gpu for gpu in runpod_package.get_gpus()}
    assert gpus[L4] == {"id": L4, "displayName": "L4", "memoryInGb": 24}
    one = runpod_package.get_gpu(L4, 2)
    assert (one["securePrice"], one["lowestPrice"]["uninterruptablePrice"]) == (0.43, 0.43)
    with pytest.raises(ValueError, match="No GPU found"):
        runpod_package.get_gpu("NVIDIA A10G")


def test_pods(runpod_package: Any, runpod_double: RunpodDouble) -> None:
    pod_id = rent(runpod_double)
    assert [pod["id"] for pod in runpod_package.get_pods()] == [pod_id]
    pod = runpod_package.get_pod(pod_id)
    assert (pod["name"], pod["costPerHr"], pod["env"], pod["machine"]["gpuDisplayName"]) == (
        "run-1",
        0.43,
        ["A=1"],
        "L4",
    )
    assert runpod_package.stop_pod(pod_id)["desiredStatus"] == "EXITED"
    assert runpod_package.resume_pod(pod_id, 1)["desiredStatus"] == "RUNNING"
    runpod_package.terminate_pod(pod_id)
    assert runpod_package.get_pod(pod_id) is None
    assert runpod_package.get_pods() == []
    with pytest.raises(runpod_package.error.QueryError, match="pod not found to terminate"):
        runpod_package.terminate_pod(pod_id)


def test_balance(runpod_package: Any, runpod_double: RunpodDouble) -> None:
    from runpod.api.graphql import run_graphql_query

    rent(runpod_double)
    body = run_graphql_query("{ myself { clientBalance currentSpendPerHr spendLimit } }")
    assert body["data"]["myself"]["clientBalance"] == 25.0
    assert body["data"]["myself"]["currentSpendPerHr"] > 0.43


def test_registry_auth(runpod_package: Any, runpod_double: RunpodDouble) -> None:
    made = runpod_package.create_container_registry_auth("r", "u", "p")
    assert runpod_double.service.registries[made["id"]].password == "p"


def test_create_pod_as_the_package_writes_it(runpod_package: Any, runpod_double: RunpodDouble) -> None:
    pod = runpod_package.create_pod("n", "image", L4, env={"K": "v"})
    assert runpod_double.service.get(pod["id"]).env == {"K": "v"}


def test_create_pod_interpolates_raw_text(runpod_package: Any, runpod_double: RunpodDouble) -> None:
    """Why cloudft never calls it: quotes break the document, and a crafted value adds a field."""
    with pytest.raises(runpod_package.error.QueryError, match="Syntax Error") as failed:
        runpod_package.create_pod("n", "image", L4, docker_args='bash -c "x"', env={"TOKEN": "hf_SECRET"})
    assert "hf_SECRET" in failed.value.query
    assert runpod_double.live_pods() == []
    crafted = 'v" }], containerRegistryAuthId: "stolen", ports: "1/tcp", env: [{ key: "K", value: "v'
    with pytest.raises(runpod_package.error.QueryError):
        runpod_package.create_pod("n", "image", L4, env={"K": crafted})


def test_errors(runpod_package: Any, runpod_double: RunpodDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    runpod_double.faults.no_capacity()
    with pytest.raises(runpod_package.error.QueryError) as full:
        runpod_package.create_pod("n", "image", L4)
    assert str(full.value) == NO_CAPACITY
    runpod_double.faults.bad_gateway("gpuTypes")
    with pytest.raises(requests.exceptions.JSONDecodeError):
        runpod_package.get_gpus()
    runpod_double.faults.rate_limit("gpuTypes")
    with pytest.raises(KeyError, match="data"):
        runpod_package.get_gpus()
    runpod_double.faults.drop_reply("gpuTypes")
    with pytest.raises(requests.exceptions.ConnectionError):
        runpod_package.get_gpus()
    monkeypatch.setattr(runpod_package, "api_key", "rpa_WRONG")
    with pytest.raises(runpod_package.error.AuthenticationError):
        runpod_package.get_gpus()
    monkeypatch.setattr(runpod_package, "api_key", None)
    with pytest.raises(runpod_package.error.AuthenticationError, match="No API key"):
        runpod_package.get_gpus()


def test_a_pods_key(runpod_package: Any, runpod_double: RunpodDouble) -> None:
    pod_id = rent(runpod_double)
    key = runpod_double.service.get(pod_id).api_key
    with pytest.raises(runpod_package.error.QueryError, match="Unauthorized"):
        runpod_package.get_pods(api_key=key)
    assert runpod_package.get_pod(pod_id, api_key=key)["id"] == pod_id
