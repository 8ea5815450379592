"""Provider auto over both doubles: that nothing is there is said only when everybody has said so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cloudft.errors import CloudftError, ProviderError
from infra.gpus import parse_wish
from infra.provider import Order, Provider, open_provider
from tests.infra.modal_fixtures import DIGEST, TICKET, Modal, modal
from tests.infra.runpod_fixtures import Runpod, runpod

__all__ = ["modal", "runpod"]


@pytest.fixture
def auto(tmp_path: Path, modal: Modal, runpod: Runpod) -> Callable[[], Provider]:
    return lambda: open_provider("auto", tmp_path)


def order(auto: Provider, name: str, provider: str) -> Order:
    offer = next(o for o in auto.offers([parse_wish("L4")]) if o.provider == provider and o.name == "L4")
    return Order(name, TICKET, 4e9, DIGEST, offer)


@pytest.mark.parametrize("provider", ["runpod", "modal"])
def test_an_order_goes_where_its_offer_is_from_and_is_found_and_ended_there(
    auto: Callable[[], Provider], modal: Modal, runpod: Runpod, provider: str
) -> None:
    auto().check()
    machine = auto().create(order(auto(), modal.name, provider))
    assert machine.provider == provider
    for machine_id in (None, machine.id):
        found = auto().find(modal.name, machine_id)
        assert found is not None
        assert (found.provider, found.id) == (provider, machine.id)
    assert [m.id for m in auto().machines()] == [machine.id]
    auto().log(modal.name)
    auto().terminate(modal.name, machine.id)
    assert auto().find(modal.name) is None
    assert auto().machines() == []
    assert modal.server.live() == []
    assert runpod.server.live_pods() == []


def test_one_that_cannot_be_asked_hides_no_machine_and_proves_no_absence(
    auto: Callable[[], Provider], modal: Modal, runpod: Runpod, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto().create(order(auto(), modal.name, "modal"))
    monkeypatch.setenv("RUNPOD_API_KEY", "wrong")
    found = auto().find(modal.name)
    assert found is not None
    assert found.provider == "modal"
    for ask in (lambda: auto().find("cloudft-r-a9-4000000000"), lambda: auto().machines()):
        with pytest.raises(CloudftError):
            ask()
    # What can be ended is ended, and what is left open is said.
    with pytest.raises(ProviderError):
        auto().terminate(modal.name)
    assert modal.server.live() == []


def test_without_any_account_it_says_which_to_set_up(tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match="none is set up") as info:
        open_provider("auto", tmp_path).check()
    assert "RUNPOD_API_KEY, or MODAL_TOKEN_ID and MODAL_TOKEN_SECRET" in info.value.hint
