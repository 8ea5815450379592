"""RunPod's catalogue as offers, read from a server as strict as RunPod's."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from infra.gpus import GPUS, parse_wish
from infra.offers import Offer
from infra.provider import Terms
from infra.runpod_offers import MIN_CUDA, TOO_OLD, disk_rate
from tests.doubles.runpod.views import gpu_body
from tests.infra.runpod_fixtures import L4, Runpod, runpod

__all__ = ["runpod"]

DISK = disk_rate(20)


def offers(runpod: Runpod, gpu: str = "L4", **terms: Any) -> list[Offer]:
    """All offers for that card."""
    wish = parse_wish(gpu)
    return [o for o in runpod.provider.offers([wish], Terms(**terms)) if o.gpu == wish.gpu]


def test_offers_are_live_in_both_clouds_with_the_disk_in_the_rate(runpod: Runpod) -> None:
    found = {o.cloud: o for o in offers(runpod, "RTX-4090", disk_gb=72)}
    assert {cloud: o.rate_usd for cloud, o in found.items()} == pytest.approx({"SECURE": 0.70, "COMMUNITY": 0.35})
    assert {(o.provider, o.id, o.memory_gb, o.count, o.stock, o.spot) for o in found.values()} == {
        ("runpod", "NVIDIA GeForce RTX 4090", 24, 1, "high", False)
    }
    assert "72 GB of disk" in found["SECURE"].billing_note
    runpod.server.catalog.set_price("NVIDIA GeForce RTX 4090", 0.99)
    assert offers(runpod, "RTX-4090", disk_gb=72)[0].rate_usd == pytest.approx(1.0)


def test_offers_count_the_gpus_of_every_wish(runpod: Runpod) -> None:
    found = runpod.provider.offers([parse_wish("L4"), parse_wish("L4:2"), parse_wish("A40:2")])
    assert {o.count: o.rate_usd for o in found if o.id == L4} == pytest.approx({1: 0.43 + DISK, 2: 0.86 + DISK})
    assert {o.count for o in found} == {1, 2}
    assert {o.count for o in runpod.provider.offers([])} == {1}
    assert offers(runpod, "L4:8")[0].stock == "none"
    runpod.server.catalog.gpus[L4].max_count = 4
    assert offers(runpod, "L4:8") == []


def test_each_cloud_has_a_stock_of_its_own(runpod: Runpod) -> None:
    runpod.server.catalog.set_stock("NVIDIA GeForce RTX 4090", 0, "COMMUNITY")
    assert {o.cloud: o.stock for o in offers(runpod, "RTX-4090")} == {"SECURE": "high", "COMMUNITY": "none"}


def test_every_card_of_the_table_has_the_name_and_the_memory_that_runpod_knows(runpod: Runpod) -> None:
    for offer in runpod.provider.offers([]):
        assert offer.gpu is not None, offer.id
        assert (offer.gpu.runpod, offer.gpu.memory_gb) == (offer.id, offer.memory_gb)


@pytest.mark.parametrize("price", [0.0, -1.0])
def test_without_a_price_there_is_no_offer(runpod: Runpod, price: float) -> None:
    runpod.server.catalog.set_price(L4, price)
    assert offers(runpod) == []


@pytest.mark.parametrize(
    ("gpu_id", "fits"),
    [("NVIDIA L4", True), ("AMD Instinct MI300X OAM", False), ("Tesla V100-SXM2-32GB", False), ("NVIDIA A100-X", True)],
)
def test_cards_that_the_image_cannot_run_on_are_not_offered(
    runpod: Runpod, monkeypatch: pytest.MonkeyPatch, gpu_id: str, fits: bool
) -> None:
    gpu = dataclasses.replace(runpod.server.catalog.gpus[L4], id=gpu_id)
    runpod.server.catalog.gpus = {gpu_id: gpu}
    if gpu_id.startswith("AMD"):
        amd = {"manufacturer": "AMD"}
        monkeypatch.setattr("tests.doubles.runpod.rest.gpu_body", lambda gpu, query: gpu_body(gpu, query) | amd)
    assert [o.id for o in runpod.provider.offers([])] == ([gpu_id] if fits else [])


def test_no_known_card_is_taken_for_one_that_is_too_old(runpod: Runpod) -> None:
    assert [g.name for g in GPUS if g.runpod and TOO_OLD.search(g.runpod)] == []


def test_hosts_whose_driver_is_too_old_are_no_stock(runpod: Runpod) -> None:
    runpod.server.catalog.gpus[L4].cuda_versions = ("12.4", "12.8")
    assert [o.stock for o in offers(runpod)] == ["none"]


def test_the_cuda_floor_is_the_images(repo: Path) -> None:
    label = re.search(r'cloudft\.cuda="([\d.]+)"', (repo / "Dockerfile.train").read_text())
    assert label is not None
    assert label[1] == MIN_CUDA


def test_the_stock_is_that_of_the_data_centers_asked_for(runpod: Runpod) -> None:
    runpod.server.catalog.gpus[L4].data_centers = ("EU-RO-1",)
    assert [o.stock for o in offers(runpod, data_centers=("EU-RO-1", "US-KS-2"))] == ["medium"]
    assert [o.stock for o in offers(runpod, data_centers=("US-KS-2",))] == ["none"]


def test_spot_offers_come_only_when_asked_for_at_the_lowest_bid(runpod: Runpod) -> None:
    assert not [o for o in runpod.provider.offers([]) if o.spot]
    assert runpod.server.calls_of("gpuTypes") == []
    found = {(o.spot, o.cloud): o for o in offers(runpod, "RTX-4090:2", spot=True)}
    assert set(found) == {(s, c) for s in (True, False) for c in ("SECURE", "COMMUNITY")}
    lowest = runpod.server.catalog.gpus["NVIDIA GeForce RTX 4090"].lowest_bid("SECURE")
    assert found[True, "SECURE"].rate_usd == pytest.approx(2 * lowest + DISK)
    assert found[True, "SECURE"].stock == "high"
    assert "taken away" in found[True, "SECURE"].billing_note
    runpod.server.catalog.set_stock(L4, 0)
    assert [o.spot for o in offers(runpod, spot=True)] == [False]
