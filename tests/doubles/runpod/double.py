"""``RunpodDouble``: the server that tests start."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType

from ..clock import Clock, RealClock  # noqa: TID252 (tests are no installed package)
from .catalog import Catalog, Gpu
from .contract import Contract
from .faults import Faults
from .graphql_api import GraphQl
from .ledger import Ledger
from .lifecycle import Money
from .pods import BootTimes, Pod
from .rest import Rest
from .runners import Runner, SimRunner
from .server import Limiter, Server
from .service import Service
from .wire import Call, Principal

ACCOUNT_KEY = "rpa_DOUBLEACCOUNTKEY0000000000000000000000"
READ_KEY = "rpa_DOUBLEREADONLYKEY000000000000000000000"
LOOK_EVERY_S = 0.05


class RunpodDouble:
    """RunPod, for tests: ``with RunpodDouble() as server: … server.url``.

    Args:
        clock: the time; a ``ManualClock`` is moved by the test. The wall clock by default.
        runner: what pods are made of; a ``SimRunner`` by default.
        boot: how long a pod takes to boot.
        money: the account's balance and limits.
        gpus: another catalogue.
        hosts: the addresses to listen on, one port for all; pods are told the last one.
        newer_fields: REST v2 takes ``entrypoint`` and ``cmd`` too.
        pod_key_rest: REST v2 lets a pod's key read and delete its own pod.
        requests_per_minute: a rate limit; none by default.
        point_pods_here: give pods ``RUNPOD_API_BASE_URL`` (the real service does not: there, its default is right).

    Attributes:
        service, ledger, catalog, faults, secrets: what the tests look at and change.
        calls: every request, in order.
        misuses: requests that break the contract (422, an unknown path); a good client leaves it empty.
        defects: answers of the double that break the contract; always empty, or the double is wrong.
    """

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        runner: Runner | None = None,
        boot: BootTimes | None = None,
        money: Money | None = None,
        gpus: list[Gpu] | None = None,
        hosts: Sequence[str] = ("127.0.0.1",),
        newer_fields: bool = False,
        pod_key_rest: bool = False,
        requests_per_minute: int | None = None,
        point_pods_here: bool = True,
    ) -> None:
        self._closed = threading.Event()
        self.clock: Clock = clock or RealClock()
        self.runner: Runner = runner or SimRunner()
        self.faults = Faults()
        self.catalog = Catalog(gpus)
        self.service = Service(
            self.clock,
            self.runner,
            catalog=self.catalog,
            faults=self.faults,
            boot=boot or BootTimes(),
            money=money or Money(),
            environment=lambda: {"RUNPOD_API_BASE_URL": self.pod_url} if point_pods_here else {},
        )
        self.contract = Contract(newer_fields=newer_fields)
        self.rest = Rest(self.service, self.contract, pod_key_rest=pod_key_rest, closing=self._closed.is_set)
        self.graphql = GraphQl(self.service)
        self.limiter = Limiter(requests_per_minute)
        self.calls: list[Call] = []
        self.misuses: list[str] = []
        self.defects: list[str] = []
        self._hosts = tuple(hosts)
        self._servers: list[Server] = []
        self._threads: list[threading.Thread] = []

    def start(self) -> RunpodDouble:
        """Listen; real containers are watched from now on."""
        port = 0
        for host in self._hosts:
            server = Server((host, port), self)
            port = int(server.server_address[1])
            self._servers.append(server)
            self._spawn(partial(server.serve_forever, poll_interval=0.02))
        if self.runner.real or isinstance(self.clock, RealClock):
            self._spawn(self._watch)
        return self

    def close(self) -> None:
        """End all pods, then the server."""
        self._closed.set()
        self.service.close()
        for server in self._servers:
            server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join(timeout=10)

    def __enter__(self) -> RunpodDouble:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # for clients
    @property
    def url(self) -> str:
        """The value of ``RUNPOD_API_BASE_URL`` for clients on this machine."""
        return self._url(0)

    @property
    def pod_url(self) -> str:
        """The value of ``RUNPOD_API_BASE_URL`` for pods."""
        return self._url(-1)

    api_key = ACCOUNT_KEY
    read_only_key = READ_KEY

    def principal(self, key: str) -> Principal | None:
        """Whose key this is; a pod's key ends with its pod [assumed]."""
        if key == ACCOUNT_KEY:
            return Principal("account")
        if key == READ_KEY:
            return Principal("read")
        for pod in list(self.service.pods.values()):
            if key == pod.api_key and not pod.gone:
                return Principal("pod", pod.id)
        return None

    # for tests
    @property
    def ledger(self) -> Ledger:
        """What the server charges: ``ledger.total("name-prefix")`` in dollars."""
        return self.service.ledger

    @property
    def secrets(self) -> dict[str, str]:
        """The account's secrets by name, for ``{{ RUNPOD_SECRET_name }}``."""
        return self.service.secrets

    def live_pods(self, name_prefix: str = "") -> list[Pod]:
        """Every pod that has not been terminated: the truth, whatever lists say."""
        return [pod for pod in self.service.live_pods() if pod.name.startswith(name_prefix)]

    def pod_named(self, name: str) -> Pod:
        """The newest pod of this name, gone or not; ``KeyError`` if there never was one."""
        pods = [pod for pod in self.service.pods.values() if pod.name == name]
        if not pods:
            raise KeyError(name)
        return pods[-1]

    def calls_of(self, name: str) -> list[Call]:
        """All calls of one operation or GraphQL field."""
        return [call for call in self.calls if call.name == name]

    def log_of(self, pod: Pod) -> str:
        """What a pod's container has printed, over all its starts."""
        self.service.settle()
        return "\n".join(entry.line for entry in pod.log if entry.source == "container")

    def preempt(self, pod_id: str) -> None:
        """Take a spot pod's machine away."""
        self.service.preempt(pod_id)

    def fail_host(self, pod_id: str) -> None:
        """Break the host of a pod."""
        self.service.fail_host(pod_id)

    def wait(self, seconds: float) -> None:
        """Sleep in real time, but not longer than the server lives."""
        self._closed.wait(seconds)

    def _url(self, index: int) -> str:
        host, port = self._servers[index].server_address[:2]
        return f"http://{host!s}:{port}"

    def _spawn(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _watch(self) -> None:
        while not self._closed.wait(LOOK_EVERY_S):
            self.service.settle()
