"""REST v2: what each operation of the document does here. Bodies are already checked against the document."""

from __future__ import annotations

import json
import secrets as random_secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

from .billing import pod_billing
from .contract import Contract, Operation
from .pods import Pod, PodRequest, Refused, parse_rfc3339
from .runners import RegistryLogin
from .service import Service
from .views import gpu_body, offered_in, pod_body
from .wire import Principal, Reply, problem

WRITES = ("post", "put", "patch", "delete")
KEEP_ALIVE_S = 1.0  # [assumed]


class Rest:
    """Answers REST v2 calls.

    Args:
        pod_key_rest: let a pod's own key read and delete its own pod; the service mostly says 403 [3p].
        closing: true once the server shuts down, so that log streams end.
    """

    def __init__(
        self, service: Service, contract: Contract, *, pod_key_rest: bool, closing: Callable[[], bool]
    ) -> None:
        self.service, self.contract = service, contract
        self._pod_key_rest, self._closing = pod_key_rest, closing
        self._handlers: dict[str, Callable[[Operation, dict[str, Any], Any], Reply]] = {
            "listPods": self._list_pods,
            "createPod": self._create_pod,
            "getPod": self._get_pod,
            "updatePod": self._update_pod,
            "deletePod": self._delete_pod,
            "podAction": self._pod_action,
            "getPodLogs": self._logs,
            "listGpuTypes": self._list_gpus,
            "getGpuType": self._get_gpu,
            "listPodBilling": self._billing,
            "listRegistries": self._list_registries,
            "createRegistry": self._create_registry,
            "getRegistry": self._get_registry,
            "deleteRegistry": self._delete_registry,
        }

    def handle(self, operation: Operation, query: dict[str, Any], body: Any, who: Principal) -> Reply:
        """Do it, and answer as the document says."""
        if not self._may(operation, who):
            return problem(403, "access denied")
        handler = self._handlers.get(operation.id)
        if handler is None:
            return problem(501, f"the test double has no {operation.id}")
        try:
            return handler(operation, query, body)
        except Refused as exc:
            return problem(exc.status, exc.detail)

    def _may(self, operation: Operation, who: Principal) -> bool:
        if who.kind == "pod":
            own = operation.path_params.get("id") == who.pod_id
            return self._pod_key_rest and own and operation.id in ("getPod", "deletePod")
        return who.kind == "account" or operation.method not in WRITES

    # pods
    def _list_pods(self, operation: Operation, query: dict[str, Any], body: Any) -> Reply:
        now = self.service.clock.now()
        return Reply(200, {"pods": [pod_body(pod, now, status) for pod, status in self.service.listed()]})

    def _create_pod(self, operation: Operation, query: dict[str, Any], body: Any) -> Reply:
        return self._pod(self.service.create(_pod_request(body)), 201)

    def _get_pod(self, operation: Operation, query: dict[str, Any], body: Any) -> Reply:
        pod = self.service.find(operation.path_params["id"])
        return problem(404, "pod not found") if pod is None else self._pod(pod)

    def _update_pod(self, operation: Operation, query: dict[str, Any], body: Any) -> Reply:
        if refused := sorted(set(body) & {"disk", "ports", "registry", "mounts", "templateId", "globalNetworking"}):
            return problem(501, f"the test double does not change {', '.join(refused)}")
        return self._pod(self.service.update(operation.path_params["id"], body))

    def _delete_pod(self, operation: Operation, query: dict[str, Any], body: Any) -> Reply:
        self.service.terminate(operation.path_params["id"])
        return Reply(204)

    def _pod_action(self, operation: Operation, query: dict[str, Any], body: Any) -> Reply:
        pod_id, action = operation.path_params["id"], body["action"]
        if action == "terminate":
            return self._delete_pod(operation, query, body)
        act = {"start": self.service.start, "stop": self.service.stop, "restart": self.service.restart}[action]
        return self._pod(act(pod_id))

    def _pod(self, pod: Pod, status: int = 200) -> Reply:
        return Reply(status, pod_body(pod, self.service.clock.now()))

    # logs
    def _logs(self, operation: Operation, query: dict[str, Any], body: Any) -> Reply:
        pod = self.service.get(operation.path_params["id"])
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        stream = self._events(pod, query.get("source"), _first_line(pod, query))
        return Reply(200, content_type="text/event-stream", headers=headers, stream=stream)

    def _events(self, pod: Pod, source: str | None, index: int) -> Iterator[str]:
        """All lines from ``index`` on, and new ones until the pod is gone [assumed]."""
        quiet_since = time.monotonic()
        while True:
            ending = pod.gone or self._closing()
            self.service.settle()
            for entry in pod.log[index:]:
                index += 1
                if source in (None, entry.source):
                    data = {"ts": entry.event_id.partition("/")[0], "source": entry.source, "line": entry.line}
                    yield f"id: {entry.event_id}\ndata: {json.dumps(data)}\n\n"
            if ending:
                return
            if time.monotonic() - quiet_since > KEEP_ALIVE_S:  # also finds out that the client has left
                quiet_since = time.monotonic()
                yield ": keep-alive\n\n"
            time.sleep(0.02)

    # catalogue and billing
    def _list_gpus(self, operation: Operation, query: dict[str, Any], body: Any) -> Reply:
        _check_catalog_query(query)
        gpus = [gpu for gpu in self.service.catalog.gpus.values() if offered_in(gpu, query)]
        return Reply(200, {"gpus": [gpu_body(gpu, query) for gpu in gpus]})

    def _get_gpu(self, operation: Operation, query: dict[str, Any], body: Any) -> Reply:
        _check_catalog_query(query)
        gpu = self.service.catalog.get(operation.path_params["id"])
        return problem(404, "gpu type not found") if gpu is None else Reply(200, gpu_body(gpu, query))

    def _billing(self, operation: Operation, query: dict[str, Any], body: Any) -> Reply:
        self.service.settle()
        return Reply(200, pod_billing(self.service.ledger, query, self.service.clock.now()))

    # registries
    def _list_registries(self, operation: Operation, query: dict[str, Any], body: Any) -> Reply:
        return Reply(200, {"registries": [_registry(login) for login in self.service.registries.values()]})

    def _create_registry(self, operation: Operation, query: dict[str, Any], body: Any) -> Reply:
        login = RegistryLogin(random_secrets.token_hex(6), body["name"], body["username"], body["password"])
        self.service.registries[login.id] = login
        return Reply(201, _registry(login))

    def _get_registry(self, operation: Operation, query: dict[str, Any], body: Any) -> Reply:
        login = self.service.registries.get(operation.path_params["id"])
        return problem(404, "registry not found") if login is None else Reply(200, _registry(login))

    def _delete_registry(self, operation: Operation, query: dict[str, Any], body: Any) -> Reply:
        gone = self.service.registries.pop(operation.path_params["id"], None)
        return problem(404, "registry not found") if gone is None else Reply(204)


def _registry(login: RegistryLogin) -> dict[str, str]:
    return {"id": login.id, "name": login.name}


def _pod_request(body: dict[str, Any]) -> PodRequest:
    """A checked CreatePodRequest; ``Refused`` for the rules that only the handler knows [doc]."""
    gpu, mounts = body.get("gpu"), body.get("mounts", {})
    if (gpu is None) == (body.get("cpu") is None):
        raise Refused(400, "exactly one of gpu or cpu must be set")
    if gpu is None:
        raise Refused(501, "the test double has no CPU pods")
    if "templateId" in body:
        raise Refused(404, "template not found")
    if mounts.get("persistent") and mounts.get("network"):
        raise Refused(400, "mounts.persistent and mounts.network exclude each other")
    if mounts.get("network"):
        raise Refused(404, "network volume not found")
    if gpu.get("allowedCudaVersions") and gpu.get("minCudaVersion"):
        raise Refused(400, "allowedCudaVersions and minCudaVersion exclude each other")
    volume = mounts.get("persistent", {})
    return PodRequest(
        name=body["name"],
        image=body["image"],
        gpu_id=gpu["id"],
        gpu_count=gpu.get("count", 1),
        clouds=(body.get("cloud", "SECURE"),),
        args=body.get("args", ""),
        entrypoint=tuple(body["entrypoint"]) if "entrypoint" in body else None,
        cmd=tuple(body["cmd"]) if "cmd" in body else None,
        env=dict(body.get("env", {})),
        ports=tuple(body.get("ports", ())),
        disk_gb=body.get("disk", 10),
        volume_gb=volume.get("size", 0),
        volume_path=volume.get("path", "/workspace"),
        registry_id=body.get("registry"),
        data_centers=tuple(body.get("dataCenterIds", ())),
        cuda_versions=tuple(gpu.get("allowedCudaVersions", ())),
        min_cuda=gpu.get("minCudaVersion"),
    )


def _first_line(pod: Pod, query: dict[str, Any]) -> int:
    """The index of the first log line to send: a cursor beats ``since``, which beats ``tail`` [doc]."""
    cursor = query.get("Last-Event-ID")
    if cursor is not None and "/" in cursor:
        stamp, _, number = cursor.partition("/")
        return next((i for i, e in enumerate(pod.log) if e.event_id > f"{stamp}/{number}"), len(pod.log))
    moment = cursor or query.get("since")
    if moment is not None:
        try:
            at = parse_rfc3339(moment)
        except ValueError:
            raise Refused(422, "since and Last-Event-ID must be RFC 3339 times") from None
        return next((i for i, entry in enumerate(pod.log) if entry.at >= at), len(pod.log))
    lines = [i for i, e in enumerate(pod.log) if query.get("source") in (None, e.source)]
    tail = query.get("tail", 100)
    return lines[-tail] if 0 < tail <= len(lines) else (0 if tail else len(pod.log))


def _check_catalog_query(query: dict[str, Any]) -> None:
    if ("include" in query) != ("product" in query):
        raise Refused(400, "include=AVAILABILITY and product are valid only together")
    extra = {"count", "cloud", "countryCodes", "cudaVersions", "minCudaVersion"} & set(query)
    if extra and "include" not in query:
        raise Refused(400, f"{', '.join(sorted(extra))}: valid only with include=AVAILABILITY")
    if "cudaVersions" in query and "minCudaVersion" in query:
        raise Refused(400, "cudaVersions and minCudaVersion exclude each other")
