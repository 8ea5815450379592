"""Modal's double with a provider that talks to it, on a clock that only the tests and the provider's pauses move."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from infra.gpus import parse_wish
from infra.offers import Offer
from infra.provider import Machine, Order, Terms, machine_name
from infra.provider_modal import ModalProvider
from tests.doubles.clock import ManualClock
from tests.doubles.modal import Box, ModalDouble
from tests.doubles.runpod.runners import SimRunner

DIGEST = "registry.test/train@sha256:" + "0" * 64
TICKET = "https://store.test/ticket?X-Amz-Signature=5ec4e7"
RUN = "20261120-101010-ab12"


@dataclass
class Modal:
    """The double, its clock, and one provider; ``told`` is what a create said while it waited."""

    server: ModalDouble
    clock: ManualClock
    runner: SimRunner
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.provider = self.another()
        self.name = machine_name(RUN, 1, self.clock.now() + 3600)

    def another(self, **options: Any) -> ModalProvider:
        """A provider that remembers nothing, as in another process or on another computer."""
        return ModalProvider(sleep=self.clock.advance, clock=self.clock.now, **{"machine_within": 1.5, **options})

    def offer(self, gpu: str = "L4", **terms: Any) -> Offer:
        """The live offer for that card."""
        wish = parse_wish(gpu)
        found = self.provider.offers([wish], Terms(**terms))
        return next(o for o in found if o.gpu == wish.gpu and o.count == wish.count)

    def order(self, **changes: Any) -> Order:
        values: dict[str, Any] = {"name": self.name, "ticket_url": TICKET, "image": DIGEST}
        values |= {"deadline": self.clock.now() + 3600, "waiting": self._told}
        offer = {} if "offer" in changes else {"offer": self.offer()}
        return Order(**(values | offer | changes))

    def _told(self, what: str, note: str) -> None:
        self.told.append(f"{what}: {note}")

    def create(self, **changes: Any) -> Machine:
        return self.provider.create(self.order(**changes))

    @property
    def box(self) -> Box:
        return self.server.box(self.name)


@pytest.fixture
def modal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Modal]:
    """A well-behaved client leaves no misuse behind."""
    clock, runner = ManualClock(), SimRunner()
    with ModalDouble(clock=clock, runner=runner) as server:
        for name, value in server.env().items():
            monkeypatch.setenv(name, value)
        yield Modal(server, clock, runner)
        assert server.misuses == []
