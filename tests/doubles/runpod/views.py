"""A pod and a GPU as REST v2 shows them."""

from __future__ import annotations

from typing import Any

from .catalog import DATA_CENTERS, CloudTier, Gpu
from .placement import number
from .pods import ACTIONS, Pod, Status, rfc3339


def pod_body(pod: Pod, now: float, status: Status | None = None) -> dict[str, Any]:
    """The document's Pod; ``status`` overrides the true one (a list that lags)."""
    shown = status or pod.shown_status
    request = pod.request
    running = shown == "RUNNING" and pod.container_runs
    body: dict[str, Any] = {
        "id": pod.id,
        "name": pod.name,
        "status": shown,
        "actions": ACTIONS[shown],
        "image": pod.image,
        "args": pod.args,
        "disk": request.disk_gb,
        "mounts": {},
        "ports": list(request.ports),
        "env": dict(pod.env),  # as sent: secrets stay placeholders, what is injected is not shown [assumed]
        "registry": request.registry_id,
        "gpu": {"id": request.gpu_id, "count": request.gpu_count},
        "cloud": pod.cloud,
        "dataCenterId": pod.data_center,
        "cudaVersion": pod.cuda_version,
        "ssh": {"proxy": None, "direct": None},
        "template": None,
        "cost": 0.0 if shown in ("EXITED", "TERMINATED") else pod.rate,
        "locked": pod.locked,
        "runtime": _runtime(pod, now) if running else None,
        "createdAt": rfc3339(pod.created_at),
        "startedAt": None if pod.started_at is None else rfc3339(pod.started_at),
        "globalNetworking": {"enabled": False},
    }
    if request.volume_gb:
        body["mounts"] = {"persistent": {"size": request.volume_gb, "path": request.volume_path}}
    for field, value in (("entrypoint", request.entrypoint), ("cmd", request.cmd)):
        if value is not None:
            body[field] = list(value)
    return body


def _runtime(pod: Pod, now: float) -> dict[str, Any]:
    gpu = {"util": 0, "memoryUtil": 0}
    return {
        "uptime": uptime(pod, now),
        "gpus": [gpu] * pod.request.gpu_count,
        "cpu": {"util": 0},
        "memory": {"util": 0},
        "ports": [],
    }


def uptime(pod: Pod, now: float) -> int:
    """Whole seconds since the container's last start."""
    return 0 if pod.launched_at is None else max(0, int(now - pod.launched_at))


def gpu_body(gpu: Gpu, query: dict[str, Any]) -> dict[str, Any]:
    """The document's GpuType, with the stock if the query asks for it."""
    body: dict[str, Any] = {
        "id": gpu.id,
        "name": gpu.name,
        "pool": gpu.pool,
        "manufacturer": "NVIDIA",
        "memory": gpu.memory,
        "secure": "SECURE" in gpu.prices,
        "community": "COMMUNITY" in gpu.prices,
        "price": {"secure": gpu.price("SECURE"), "community": gpu.price("COMMUNITY")},
        "maxCount": {
            "secure": gpu.max_count if "SECURE" in gpu.prices else 0,
            "community": gpu.max_count if "COMMUNITY" in gpu.prices else 0,
        },
    }
    if "include" in query:
        body |= _availability(gpu, query)
    return body


def _availability(gpu: Gpu, query: dict[str, Any]) -> dict[str, Any]:
    cloud: CloudTier = query.get("cloud", "SECURE")
    places = offered_in(gpu, query)
    versions = [version for version in gpu.cuda_versions if _wanted(version, query)]
    level = gpu.level(query.get("count", 1), cloud) if places and versions else "NONE"
    body: dict[str, Any] = {"availability": level}
    if level != "NONE":
        body["dataCenters"] = [{"id": dc.id, "name": dc.name, "availability": level} for dc in places]
    if versions:
        body["cudaVersions"] = [{"version": version, "available": level != "NONE"} for version in versions]
    return body


def offered_in(gpu: Gpu, query: dict[str, Any]) -> list[Any]:
    """The data centres that have this GPU, of those that the query allows."""
    countries = query.get("countryCodes")
    return [dc for dc in DATA_CENTERS if dc.id in gpu.data_centers and (not countries or dc.country in countries)]


def _wanted(version: str, query: dict[str, Any]) -> bool:
    if "cudaVersions" in query:
        return version in query["cudaVersions"]
    return "minCudaVersion" not in query or number(version) >= number(query["minCudaVersion"])
