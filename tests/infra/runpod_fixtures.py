"""RunPod's double with a provider that talks to it, on a clock that only the tests and the provider's pauses move."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from infra.gpus import parse_wish
from infra.offers import Offer
from infra.provider import Machine, Order, Terms, machine_name
from infra.provider_runpod import RunpodProvider
from tests.doubles.clock import ManualClock
from tests.doubles.runpod import Pod, RunpodDouble, SimRunner

L4 = "NVIDIA L4"
DIGEST = "registry.test/train@sha256:" + "0" * 64
TICKET = "https://store.test/ticket?X-Amz-Signature=5ec4e7"
NAME = machine_name("20261120-101010-ab12", 1, 1_793_500_000)


def new_drivers(server: RunpodDouble) -> None:
    """Hosts that our image can run on, beside older ones."""
    for gpu in server.catalog.gpus.values():
        gpu.cuda_versions = ("12.4", "12.8", "13.0")


@dataclass
class Runpod:
    """The double, its clock, and one provider; ``slept`` is what the provider waited for, in seconds."""

    server: RunpodDouble
    clock: ManualClock
    runner: SimRunner
    slept: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.provider = self.another()

    def another(self, timeout: float = 10) -> RunpodProvider:
        """A provider that remembers nothing, as in another process or on another computer."""
        return RunpodProvider(sleep=self.sleep, clock=self.clock.now, timeout=timeout)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.clock.advance(seconds)

    def offer(self, gpu: str = "L4", cloud: str = "SECURE", *, spot: bool = False) -> Offer:
        """The live offer for that card."""
        wish = parse_wish(gpu)
        found = self.provider.offers([wish], Terms(spot=spot))
        return next(o for o in found if o.gpu == wish.gpu and o.cloud == cloud and o.spot == spot)

    def order(self, **changes: Any) -> Order:
        values: dict[str, Any] = {"name": NAME, "ticket_url": TICKET, "image": DIGEST}
        values["deadline"] = self.clock.now() + 3600
        offer = {} if "offer" in changes else {"offer": self.offer()}
        return Order(**(values | offer | changes))

    def create(self, **changes: Any) -> Machine:
        return self.provider.create(self.order(**changes))

    @property
    def pod(self) -> Pod:
        return self.server.pod_named(NAME)

    def env_of_container(self) -> dict[str, str]:
        """What the machine's first container really sees."""
        self.clock.advance(10)
        return dict(self.runner.of(self.pod.id)[0].launch.env)


@pytest.fixture
def runpod(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runpod]:
    """A well-behaved client leaves no misuse behind; a test that wants one clears the list."""
    clock, runner = ManualClock(), SimRunner()
    with RunpodDouble(clock=clock, runner=runner) as server:
        new_drivers(server)
        monkeypatch.setenv("RUNPOD_API_BASE_URL", server.url)
        monkeypatch.setenv("RUNPOD_API_KEY", server.api_key)
        yield Runpod(server, clock, runner)
        assert server.defects == []
        assert server.misuses == []
