"""One contract for all providers: whatever is rented is found by its name alone, and is gone when it is ended.

A new provider is one more entry of ``CASES``: how to make it, how to place an order, and how to let time pass.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
from modal_proto import api_pb2

from infra.gpus import parse_wish
from infra.provider import Machine, Order, Provider, Terms, machine_name
from tests.doubles.clock import ManualClock
from tests.doubles.modal import ModalDouble
from tests.doubles.runpod import PodRequest, ProcessRunner, RunpodDouble
from tests.infra.runpod_fixtures import DIGEST, L4, new_drivers

REPO = Path(__file__).resolve().parents[2]
# A ticket that never comes keeps the supervisor trying until its deadline: a machine that lives.
NO_TICKET = "http://127.0.0.1:9/ticket?signature=5ec4e7"


@dataclass
class Case:
    """One provider under test.

    ``another`` makes a provider that remembers nothing, as on another computer; ``order`` an order with what the
    provider needs beyond name and deadline; ``sleep`` lets time pass, ``now`` tells it. ``stranger`` starts something
    of somebody else's, and returns how to see whether it is still there. ``members``: the providers behind this one.
    ``outlive`` lets a machine be there for a while after it has asked for its own end.
    """

    another: Callable[[], Provider]
    order: Callable[[str, float], Order]
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], float] = time.time
    stranger: Callable[[], Callable[[], bool]] | None = None
    members: frozenset[str] = frozenset()
    outlive: Callable[[], object] = lambda: None


def plain_order(name: str, deadline: float) -> Order:
    return Order(name=name, ticket_url=NO_TICKET, deadline=deadline)


@contextlib.contextmanager
def local(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    from infra import provider_local

    # A supervisor that waits for its ticket does not end by SIGTERM: shorter than the ten seconds it would get.
    request.getfixturevalue("monkeypatch").setattr(provider_local, "GRACE", 1.0)
    case = Case(lambda: provider_local.LocalProvider(tmp_path / "machines"), plain_order)
    yield case
    for machine in case.another().machines():
        case.another().terminate(machine.name)


@contextlib.contextmanager
def docker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    """The training image itself."""
    from infra import provider_docker

    request.getfixturevalue("monkeypatch").setattr(provider_docker, "STOP_SECONDS", 1)
    engine, image = request.getfixturevalue("docker_engine"), request.getfixturevalue("train_image")
    strangers: list[str] = []

    def stranger() -> Callable[[], bool]:
        strangers.append(f"cloudft-test-stranger-{os.getpid()}")
        engine.run("run", "-d", "--name", strangers[-1], "--entrypoint", "sleep", image, "600")
        return lambda: engine.run("inspect", "-f", "{{.State.Running}}", strangers[-1]).stdout.strip() == "true"

    def order(name: str, deadline: float) -> Order:
        return Order(name=name, ticket_url=NO_TICKET, deadline=deadline, image=image)

    case = Case(provider_docker.DockerProvider, order, stranger=stranger)
    try:
        yield case
    finally:
        # Only those of this test: other tests' machines may run on the same engine.
        for name in NAMES:
            case.another().terminate(name)
        for name in strangers:
            engine.run("rm", "-f", name)


def runpod_order(provider: Callable[[], Provider]) -> Callable[[str, float], Order]:
    """Orders for one L4 at its live price."""

    def order(name: str, deadline: float) -> Order:
        offer = next(o for o in provider().offers([parse_wish("L4")]) if o.id == L4)
        return Order(name=name, ticket_url=NO_TICKET, deadline=deadline, image=DIGEST, offer=offer)

    return order


def runpod_stranger(server: RunpodDouble) -> Callable[[], bool]:
    pod = server.service.create(PodRequest(name="somebody-elses-1", image="i", gpu_id=L4))
    return lambda: not pod.gone


@contextlib.contextmanager
def runpod_case(request: pytest.FixtureRequest, server: RunpodDouble) -> Iterator[None]:
    new_drivers(server)
    monkeypatch = request.getfixturevalue("monkeypatch")
    monkeypatch.setenv("RUNPOD_API_BASE_URL", server.url)
    monkeypatch.setenv("RUNPOD_API_KEY", server.api_key)
    yield
    assert server.defects == []
    assert server.misuses == []


@contextlib.contextmanager
def runpod_played(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    """RunPod's double on a clock that stands still; nothing runs in its pods."""
    from infra.provider_runpod import RunpodProvider

    clock = ManualClock()

    def another() -> Provider:
        return RunpodProvider(sleep=clock.advance, clock=clock.now)

    with RunpodDouble(clock=clock) as server, runpod_case(request, server):
        yield Case(
            another,
            runpod_order(another),
            clock.advance,
            clock.now,
            stranger=lambda: runpod_stranger(server),
        )


@contextlib.contextmanager
def runpod_real(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    """RunPod's double in real time, whose pods are processes of the real supervisor, restarted when they end."""
    from infra.provider_runpod import RunpodProvider

    runner = ProcessRunner(
        lambda launch: (
            [sys.executable, "-P", "-m", "jobs.supervisor"]
            if ENTRY in launch.env
            else [sys.executable, "-c", "import time; time.sleep(600)"]
        ),
        env={"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": str(REPO), "PYTHONUNBUFFERED": "1"},
    )
    with RunpodDouble(runner=runner) as server, runpod_case(request, server):
        yield Case(
            RunpodProvider,
            runpod_order(RunpodProvider),
            stranger=lambda: runpod_stranger(server),
            # It asks twice at a time, after one second and after two: its first four words are lost.
            outlive=lambda: server.faults.slow_terminate(times=4),
        )


def modal_order(provider: Callable[[], Provider]) -> Callable[[str, float], Order]:
    """Orders for one L4 at its live price; Modal's own deadline is a day away at most."""

    def order(name: str, deadline: float) -> Order:
        offer = next(o for o in provider().offers([parse_wish("L4")]) if o.id == "L4")
        return Order(name=name, ticket_url=NO_TICKET, deadline=deadline, image=DIGEST, offer=offer)

    return order


def modal_stranger(server: ModalDouble) -> Callable[[], bool]:
    definition = api_pb2.Sandbox(name="somebody-elses-1", timeout_secs=86400, entrypoint_args=["sleep", "600"])
    # In the very app that ours live in.
    box = server.service.create(server.service.app("", "cloudft", create=True), definition, {}, {}, "i")
    return lambda: box.live


@contextlib.contextmanager
def modal_case(request: pytest.FixtureRequest, server: ModalDouble) -> Iterator[None]:
    pytest.importorskip("modal")
    for name, value in server.env().items():
        request.getfixturevalue("monkeypatch").setenv(name, value)
    yield
    assert server.misuses == []


@contextlib.contextmanager
def modal_played(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    """Modal's double on a clock that stands still; nothing runs in its sandboxes."""
    from infra.provider_modal import ModalProvider

    clock = ManualClock()

    def another() -> Provider:
        return ModalProvider(sleep=clock.advance, clock=clock.now)

    with ModalDouble(clock=clock) as server, modal_case(request, server):
        yield Case(another, modal_order(another), clock.advance, clock.now, stranger=lambda: modal_stranger(server))


@contextlib.contextmanager
def modal_real(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    """Modal's double in real time, whose sandboxes are processes: the very command that the provider asks for."""
    from infra.provider_modal import ModalProvider

    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    runner = ProcessRunner([], env={"PATH": path, "PYTHONPATH": str(REPO), "PYTHONUNBUFFERED": "1"})
    with ModalDouble(runner=runner) as server, modal_case(request, server):
        yield Case(ModalProvider, modal_order(ModalProvider), stranger=lambda: modal_stranger(server))


@contextlib.contextmanager
def auto(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    """Both doubles behind one provider, on one clock; the orders go to RunPod and to Modal in turns."""
    from infra.provider_auto import AutoProvider
    from infra.provider_modal import ModalProvider
    from infra.provider_runpod import RunpodProvider

    clock = ManualClock()
    turns = itertools.cycle([L4, "L4"])

    def another() -> Provider:
        runpod = RunpodProvider(sleep=clock.advance, clock=clock.now)
        return AutoProvider({"runpod": runpod, "modal": ModalProvider(sleep=clock.advance, clock=clock.now)})

    def order(name: str, deadline: float) -> Order:
        wanted = next(turns)
        offer = next(o for o in another().offers([parse_wish("L4")]) if o.id == wanted)
        return Order(name=name, ticket_url=NO_TICKET, deadline=deadline, image=DIGEST, offer=offer)

    def stranger() -> Callable[[], bool]:
        seen = runpod_stranger(runpods), modal_stranger(modals)
        return lambda: all(alive() for alive in seen)

    with contextlib.ExitStack() as opened:
        runpods, modals = (
            opened.enter_context(RunpodDouble(clock=clock)),
            opened.enter_context(ModalDouble(clock=clock)),
        )
        opened.enter_context(runpod_case(request, runpods))
        opened.enter_context(modal_case(request, modals))
        yield Case(another, order, clock.advance, clock.now, stranger, frozenset({"runpod", "modal"}))


@contextlib.contextmanager
def manual(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    """Notes: what runs is somewhere else, and nobody here can look at it."""
    from infra.provider_manual import ManualProvider

    yield Case(lambda: ManualProvider(tmp_path / "manual"), plain_order)


ENTRY = "CLOUDFT_DEADLINE"

Opener = Callable[[pytest.FixtureRequest, Path], AbstractContextManager[Case]]
CASES: dict[str, Opener] = {
    "local": local,
    "docker": docker,
    "runpod-played": runpod_played,
    "runpod-real": runpod_real,
    "modal-played": modal_played,
    "modal-real": modal_real,
    "auto-played": auto,
    "manual": manual,
}
# Nothing runs in these machines: a test plays them.
PLAYED = {"runpod-played", "modal-played", "auto-played", "manual"}
MARKS = {"docker": [pytest.mark.docker, pytest.mark.timeout(1200)]}

# Of this process alone: other test runs may use the same engine.
RUN = f"20261120-101010-{os.getpid():x}"
FAR = 4e9
NAMES = [machine_name(RUN, number, FAR) for number in (1, 2)]


ALL = [pytest.param(name, marks=MARKS.get(name, [])) for name in CASES]
LIVING = [pytest.param(name, marks=MARKS.get(name, [])) for name in CASES if name not in PLAYED]


@pytest.fixture(params=ALL)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    with CASES[request.param](request, tmp_path) as opened:
        yield opened


@pytest.fixture
def provider(case: Case) -> Provider:
    return case.another()


def ours(provider: Provider, *names: str) -> list[Machine]:
    """Those of this test: an engine may hold others."""
    return [m for m in provider.machines() if m.name in (names or NAMES)]


def wait_for(case: Case, condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"never happened: {what}"
        case.sleep(0.2)


def test_the_name_is_the_one_it_is_opened_by(case: Case, provider: Provider) -> None:
    from infra.provider import PROVIDERS

    assert provider.name in PROVIDERS
    provider.check()


def test_what_was_never_there_is_not_there(provider: Provider) -> None:
    never = machine_name(RUN, 9, FAR)
    assert provider.find(never) is None
    assert provider.log(never) == ""
    provider.terminate(never)
    assert ours(provider, never) == []


def test_offers_have_the_counts_asked_for_and_a_known_price(case: Case, provider: Provider) -> None:
    for offer in provider.offers([parse_wish("24GB"), parse_wish("H100:2")], Terms(disk_gb=50)):
        assert offer.provider in (case.members or {provider.name})
        assert offer.count in (1, 2)
        assert offer.rate_usd > 0
        assert not offer.spot


def test_a_machine_is_found_by_name_from_anywhere_until_it_is_ended(case: Case, provider: Provider) -> None:
    began = case.now()
    order = case.order(NAMES[0], FAR)
    machine = provider.create(order)
    assert (machine.provider, machine.name) == (order.offer.provider if order.offer else provider.name, NAMES[0])
    assert machine.id
    assert machine.state in ("starting", "running")
    assert machine.rate_usd is not None
    assert machine.rate_usd == pytest.approx(order.offer.rate_usd if order.offer else 0.0)
    if machine.created_at is not None:
        assert began - 1 <= machine.created_at <= case.now() + 1
    assert "5ec4e7" not in repr(machine)
    for one in (provider, case.another()):
        found = one.find(NAMES[0])
        assert found is not None
        assert (found.id, found.rate_usd, found.created_at) == (machine.id, machine.rate_usd, machine.created_at)
        assert [m.id for m in ours(one)] == [machine.id]
    case.another().terminate(NAMES[0])
    for one in (provider, case.another()):
        assert one.find(NAMES[0]) is None
        assert ours(one) == []
        one.terminate(NAMES[0])


def test_ending_one_leaves_the_others(case: Case, provider: Provider) -> None:
    alive = case.stranger() if case.stranger else lambda: True
    machines = [provider.create(case.order(name, FAR)) for name in NAMES]
    assert [m.name for m in ours(provider)] == NAMES
    provider.terminate(NAMES[0])
    assert [m.id for m in ours(provider)] == [machines[1].id]
    assert provider.find(NAMES[1]) is not None
    provider.terminate(NAMES[1])
    assert ours(provider) == []
    assert alive()


def test_it_comes_to_run(case: Case, provider: Provider) -> None:
    provider.create(case.order(NAMES[0], FAR))

    def runs() -> bool:
        found = provider.find(NAMES[0])
        return found is not None and found.state == "running"

    wait_for(case, runs, "the machine runs")
    provider.terminate(NAMES[0])


@pytest.mark.parametrize("case", LIVING, indirect=True)
def test_its_console_can_be_read_and_does_not_hold_the_ticket(case: Case, provider: Provider) -> None:
    """The supervisor's first line comes when the ticket did not, shortly before the deadline."""
    case.outlive()  # with the machine its console is gone
    deadline = case.now() + 4
    soon = machine_name(RUN, 3, deadline)
    provider.create(case.order(soon, deadline))
    seen: list[str] = []

    def said() -> bool:
        seen.append(provider.log(soon))
        return "supervisor: " in seen[-1]

    try:
        wait_for(case, said, "the supervisor's first line")
        assert "5ec4e7" not in seen[-1]
    finally:
        provider.terminate(soon)


@pytest.mark.parametrize("case", LIVING, indirect=True)
def test_the_deadline_ends_it_from_inside(case: Case, provider: Provider) -> None:
    """No call from outside: at the deadline nothing of it runs any more, and where that costs, nothing is left."""
    deadline = case.now() + 2
    name = machine_name(RUN, 4, deadline)
    machine = provider.create(case.order(name, deadline))

    def over() -> bool:
        found = provider.find(name)
        return found is None or (found.state == "ended" and machine.rate_usd == 0)

    try:
        wait_for(case, over, "the machine's own end")
    finally:
        provider.terminate(name)
    assert provider.find(name) is None
