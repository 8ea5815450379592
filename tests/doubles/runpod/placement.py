"""Which machine a create gets, and at what price; or why none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .catalog import DATA_CENTERS, Catalog, CloudTier, Gpu
from .faults import Faults
from .pods import NO_CAPACITY, PodRequest, Refused
from .runners import RegistryLogin

MAX_ENV = 50  # [doc]


@dataclass(frozen=True)
class Place:
    cloud: CloudTier
    data_center: str
    cuda_version: str
    cost_per_gpu: float


def place(request: PodRequest, catalog: Catalog, faults: Faults, registries: Mapping[str, RegistryLogin]) -> Place:
    """Find a machine for ``request``.

    Raises:
        Refused: 400 for a broken rule, and 400 for no capacity, with nothing to tell them apart but the text;
            404 for registry credentials that don't exist.
    """
    gpu = _checked(request, catalog, registries)
    if faults.take_gpu("no_capacity", gpu.id) is not None:
        raise Refused(400, NO_CAPACITY, "NO_CAPACITY")
    data_centers = [dc for dc in gpu.data_centers if dc in request.data_centers or not request.data_centers]
    cuda = [version for version in gpu.cuda_versions if _fits(version, request)]
    clouds = [cloud for cloud in request.clouds if gpu.level(request.gpu_count, cloud) != "NONE"]
    if not (data_centers and cuda and clouds):
        raise Refused(400, NO_CAPACITY, "NO_CAPACITY")
    cloud = min(clouds, key=gpu.price)
    return Place(cloud, data_centers[0], cuda[-1], _cost(request, gpu, cloud, faults))


def _checked(request: PodRequest, catalog: Catalog, registries: Mapping[str, RegistryLogin]) -> Gpu:
    if len(request.env) > MAX_ENV:
        raise Refused(400, f"at most {MAX_ENV} environment variables are allowed")
    if request.registry_id is not None and request.registry_id not in registries:
        raise Refused(404, "container registry credential not found", "NOT_FOUND")
    gpu = catalog.get(request.gpu_id)
    if gpu is None:
        raise Refused(400, f"gpu type {request.gpu_id!r} is not known")
    if request.gpu_count > gpu.max_count:
        raise Refused(400, f"at most {gpu.max_count} GPUs of this type fit into one pod")
    known = {dc.id for dc in DATA_CENTERS}
    if unknown := [dc for dc in request.data_centers if dc not in known]:
        raise Refused(400, f"unknown data center {unknown[0]!r}")
    return gpu


def _cost(request: PodRequest, gpu: Gpu, cloud: CloudTier, faults: Faults) -> float:
    cost = gpu.price(cloud)
    if request.bid is not None:
        if request.bid < gpu.lowest_bid(cloud):
            raise Refused(400, f"the bid must be at least {gpu.lowest_bid(cloud):.2f} per GPU", "BID_TOO_LOW")
        cost = request.bid
    stale = faults.take_gpu("stale_price", gpu.id)
    return cost if stale is None else stale.value


def _fits(version: str, request: PodRequest) -> bool:
    if request.cuda_versions and version not in request.cuda_versions:
        return False
    return request.min_cuda is None or number(version) >= number(request.min_cuda)


def number(version: str) -> tuple[int, ...]:
    """``12.11`` is above ``12.2`` [doc]."""
    return tuple(int(part) for part in version.split("."))
