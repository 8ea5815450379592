"""The GraphQL API, parsed and checked by graphql-core against ``schema.graphql``.

A document that does not parse, or does not fit the schema, is 400 with ``errors`` (GRAPHQL_PARSE_FAILED,
GRAPHQL_VALIDATION_FAILED [3p]); whatever goes wrong inside is 200 with ``errors`` (facts).
"""

from __future__ import annotations

import secrets as random_secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from graphql import (
    DocumentNode,
    ExecutionResult,
    FieldNode,
    GraphQLError,
    OperationDefinitionNode,
    build_schema,
    execute_sync,
    parse,
    validate,
)

from .catalog import CLOUDS, CloudTier, Gpu
from .pods import Pod, PodRequest, Refused, Status, rfc3339
from .runners import RegistryLogin
from .service import Service
from .views import uptime
from .wire import Principal, Reply

SCHEMA = build_schema(Path(__file__).with_name("schema.graphql").read_text())
STOCK = {"NONE": None, "LOW": "Low", "MEDIUM": "Medium", "HIGH": "High"}  # [3p]
CLOUD_CHOICE: dict[str, tuple[CloudTier, ...]] = {"ALL": CLOUDS, "SECURE": ("SECURE",), "COMMUNITY": ("COMMUNITY",)}


def root_fields(query: str) -> list[str]:
    """The names of the calls in a document, before anything is executed; none if it does not parse."""
    try:
        document = parse(query)
    except GraphQLError:
        return []
    return [
        node.name.value
        for definition in document.definitions
        if isinstance(definition, OperationDefinitionNode)
        for node in definition.selection_set.selections
        if isinstance(node, FieldNode)
    ]


class Info(Protocol):
    """What resolvers use of graphql-core's info, whose type differs between its releases."""

    context: Any


class GraphQl:
    """Answers GraphQL calls for one service."""

    def __init__(self, service: Service) -> None:
        self.service = service
        handlers: dict[str, Callable[..., Any]] = {
            "gpuTypes": self._gpu_types,
            "myself": self._myself,
            "pod": self._pod,
            "podFindAndDeployOnDemand": self._deploy,
            "podRentInterruptable": self._deploy,
            "podStop": self._stop,
            "podResume": self._resume,
            "podTerminate": self._terminate,
            "saveRegistryAuth": self._save_registry,
            "deleteRegistryAuth": self._delete_registry,
        }
        self._root = {name: _translated(handler) for name, handler in handlers.items()}

    def handle(self, body: Any, who: Principal) -> Reply:
        """Parse, check, execute."""
        if not isinstance(body, dict) or not isinstance(body.get("query"), str):
            return _failed("POST body missing, or without a query", "BAD_REQUEST")
        try:
            document = parse(body["query"])
        except GraphQLError as exc:
            return _invalid([exc], "GRAPHQL_PARSE_FAILED")
        if errors := validate(SCHEMA, document):
            return _invalid(errors, "GRAPHQL_VALIDATION_FAILED")
        return self._execute(document, body, who)

    def _execute(self, document: DocumentNode, body: dict[str, Any], who: Principal) -> Reply:
        result = execute_sync(
            SCHEMA,
            document,
            root_value=self._root,
            context_value=who,
            variable_values=body.get("variables"),
            operation_name=body.get("operationName"),
        )
        if not isinstance(result, ExecutionResult):
            raise TypeError(f"one result expected, not {result!r}")
        if result.data is None and result.errors and not any(error.path for error in result.errors):
            return _invalid(result.errors, "BAD_USER_INPUT")  # variables that do not fit
        return Reply(200, result.formatted)

    # queries
    def _gpu_types(self, info: Info, input: dict[str, Any] | None = None) -> list[Any]:
        given = input or {}
        wanted = [given["id"]] if given.get("id") else given.get("ids") or []
        gpus = self.service.catalog.gpus.values()
        return [_gpu(gpu) for gpu in gpus if not wanted or gpu.id in wanted]

    def _myself(self, info: Info) -> dict[str, Any]:
        _account_only(info)
        service = self.service
        listed = service.listed()
        return {
            "id": "user_double",
            "pubKey": "",
            "clientBalance": round(service.balance, 6),
            "currentSpendPerHr": service.ledger.rate(),
            "spendLimit": int(service.money.spend_limit),
            "networkVolumes": [],
            "pods": [self._view(pod, status) for pod, status in listed if status != "TERMINATED"],
        }

    def _pod(self, info: Info, input: dict[str, Any] | None = None) -> dict[str, Any] | None:
        pod_id = (input or {}).get("podId", "")
        _own_only(info, pod_id)
        pod = self.service.find(pod_id)
        return None if pod is None else self._view(pod, pod.shown_status)

    # mutations
    def _deploy(self, info: Info, input: dict[str, Any] | None = None) -> dict[str, Any]:
        _account_only(info, write=True)
        pod = self.service.create(_pod_request(input or {}))
        return self._view(pod, pod.shown_status)

    def _stop(self, info: Info, input: dict[str, Any]) -> dict[str, Any]:
        _own_only(info, input["podId"], write=True)
        pod = self.service.stop(input["podId"])
        return self._view(pod, pod.shown_status)

    def _resume(self, info: Info, input: dict[str, Any]) -> dict[str, Any]:
        _account_only(info, write=True)
        pod = self.service.start(input["podId"])
        return self._view(pod, pod.shown_status)

    def _terminate(self, info: Info, input: dict[str, Any]) -> None:
        _own_only(info, input["podId"], write=True)
        self.service.terminate(input["podId"])

    def _save_registry(self, info: Info, input: dict[str, Any]) -> dict[str, str]:
        _account_only(info, write=True)
        login = RegistryLogin(random_secrets.token_hex(6), input["name"], input["username"], input["password"])
        self.service.registries[login.id] = login
        return {"id": login.id, "name": login.name}

    def _delete_registry(self, info: Info, registryAuthId: str = "") -> bool:
        _account_only(info, write=True)
        return self.service.registries.pop(registryAuthId, None) is not None

    def _view(self, pod: Pod, status: Status) -> dict[str, Any]:
        now = self.service.clock.now()
        request = pod.request
        running = status == "RUNNING" and pod.container_runs
        return {
            "id": pod.id,
            "name": pod.name,
            "imageName": pod.image,
            "dockerArgs": pod.args,
            "env": [f"{key}={value}" for key, value in pod.env.items()],
            "containerDiskInGb": request.disk_gb,
            "volumeInGb": request.volume_gb,
            "volumeMountPath": request.volume_path,
            "containerRegistryAuthId": request.registry_id,
            "costPerHr": pod.rate,
            "adjustedCostPerHr": 0.0 if status in ("EXITED", "TERMINATED") else pod.rate,
            "desiredStatus": status if status in ("EXITED", "TERMINATED") else "RUNNING",
            "lastStatusChange": f"{status.title()}: {rfc3339(pod.changed_at)}",
            "createdAt": rfc3339(pod.created_at),
            "lastStartedAt": None if pod.started_at is None else rfc3339(pod.started_at),
            "gpuCount": request.gpu_count,
            "vcpuCount": 8.0,
            "memoryInGb": 32.0,
            "machineId": f"machine-{pod.data_center}",
            "machine": self._machine(pod),
            "podType": "INTERRUPTABLE" if pod.spot else "RESERVED",
            "ports": ",".join(request.ports),
            "uptimeSeconds": uptime(pod, now) if running else 0,
            "locked": pod.locked,
            "runtime": {"uptimeInSeconds": uptime(pod, now), "ports": []} if running else None,
        }

    def _machine(self, pod: Pod) -> dict[str, str]:
        gpu = self.service.catalog.gpus[pod.request.gpu_id]
        return {
            "podHostId": f"{pod.id}-64411eb2",
            "gpuDisplayName": gpu.name,
            "location": pod.data_center[:2],
            "dataCenterId": pod.data_center,
        }


def _gpu(gpu: Gpu) -> dict[str, Any]:
    def lowest(info: Info, input: dict[str, Any] | None = None) -> dict[str, Any]:
        return _lowest_price(gpu, input or {})

    return {
        "id": gpu.id,
        "displayName": gpu.name,
        "manufacturer": "Nvidia",
        "memoryInGb": gpu.memory,
        "cudaCores": 0,
        "maxGpuCount": gpu.max_count,
        "secureCloud": "SECURE" in gpu.prices,
        "communityCloud": "COMMUNITY" in gpu.prices,
        "securePrice": gpu.price("SECURE"),
        "communityPrice": gpu.price("COMMUNITY"),
        "secureSpotPrice": gpu.lowest_bid("SECURE"),
        "communitySpotPrice": gpu.lowest_bid("COMMUNITY"),
        "lowestPrice": lowest,
    }


def _lowest_price(gpu: Gpu, query: dict[str, Any]) -> dict[str, Any]:
    """The cheapest cloud with room; all null where there is none [assumed]."""
    secure = query.get("secureCloud")
    clouds = CLOUDS if secure is None else CLOUD_CHOICE["SECURE" if secure else "COMMUNITY"]
    count = query.get("gpuCount", 1)
    free = [cloud for cloud in clouds if gpu.level(count, cloud) != "NONE"]
    if not free:
        return {"gpuTypeId": gpu.id}
    cloud = min(free, key=gpu.price)
    return {
        "gpuTypeId": gpu.id,
        "minimumBidPrice": gpu.lowest_bid(cloud),
        "uninterruptablePrice": gpu.price(cloud),
        "stockStatus": STOCK[gpu.level(count, cloud)],
        "maxUnreservedGpuCount": gpu.stock[cloud],
    }


def _pod_request(data: dict[str, Any]) -> PodRequest:
    """Deadlines are taken and never acted on, as at the service (facts: runpodctl#330, #331)."""
    if not data.get("imageName"):
        raise Refused(400, "imageName is required", "BAD_USER_INPUT")
    if not data.get("gpuTypeId"):
        raise Refused(400, "gpuTypeId is required", "BAD_USER_INPUT")
    ports = data.get("ports") or ""
    center = data.get("dataCenterId")
    return PodRequest(
        name=data.get("name") or "",
        image=data["imageName"],
        gpu_id=data["gpuTypeId"],
        gpu_count=data.get("gpuCount") or 1,
        clouds=CLOUD_CHOICE[data.get("cloudType") or "ALL"],
        args=data.get("dockerArgs") or "",
        env={pair["key"]: pair["value"] for pair in data.get("env") or []},
        ports=tuple(port for port in ports.split(",") if port),
        disk_gb=data.get("containerDiskInGb") or 10,
        volume_gb=data.get("volumeInGb") or 0,
        volume_path=data.get("volumeMountPath") or "/workspace",
        registry_id=data.get("containerRegistryAuthId"),
        data_centers=(center,) if center else (),
        cuda_versions=tuple(data.get("allowedCudaVersions") or ()),
        bid=data.get("bidPerGpu"),
        ignored_deadlines={key: data[key] for key in ("stopAfter", "terminateAfter") if data.get(key)},
    )


def _account_only(info: Info, *, write: bool = False) -> None:
    who: Principal = info.context
    if who.kind == "pod" or (write and who.kind == "read"):
        raise Refused(403, "Unauthorized", "UNAUTHORIZED")


def _own_only(info: Info, pod_id: str, *, write: bool = False) -> None:
    """A pod's key reads and ends its own pod, and no other [3p]."""
    who: Principal = info.context
    if not (who.kind == "pod" and who.pod_id == pod_id):
        _account_only(info, write=write)


def _translated(handler: Callable[..., Any]) -> Callable[..., Any]:
    def call(info: Info, **arguments: Any) -> Any:
        try:
            return handler(info, **arguments)
        except Refused as exc:
            raise GraphQLError(exc.detail, extensions={"code": exc.code}) from exc

    return call


def _invalid(errors: list[GraphQLError], code: str) -> Reply:
    return Reply(400, {"errors": [{**error.formatted, "extensions": {"code": code}} for error in errors]})


def _failed(message: str, code: str) -> Reply:
    return Reply(400, {"errors": [{"message": message, "extensions": {"code": code}}]})
