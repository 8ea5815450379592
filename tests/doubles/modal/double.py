"""``ModalDouble``: the server that tests start."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType

from grpclib.server import Server

from ..clock import Clock, RealClock  # noqa: TID252 (tests are no installed package)
from ..runpod.runners import Runner, SimRunner  # noqa: TID252
from .boxes import Box
from .faults import Faults
from .images import ImageStore
from .ledger import Ledger
from .service import Service
from .servicer import Servicer

TOKEN_ID = "ak-DOUBLETOKENID0000000000"
TOKEN_SECRET = "as-DOUBLETOKENSECRET000000"
# Of the service's image builder; the package makes other layers for later ones.
BUILDER = "2025.06"
LOOK_EVERY_S = 0.05


class ModalDouble:
    """Modal, for tests: ``with ModalDouble() as server: … server.env()``.

    Args:
        clock: the time; a ``ManualClock`` is moved by the test. The wall clock by default.
        runner: what runs in sandboxes; a ``SimRunner`` by default.
        schedule_s, boot_s: seconds until a machine is given, and from then until the command starts.
        idempotent: a create that is repeated with the same key is known as the same.
        workspace: the name of the workspace that the token belongs to.
        builder: the version of the service's image builder.

    Attributes:
        service, ledger, faults, secrets, images: what the tests look at and change.
        calls: the name of every call, in order.
        misuses: what a client got wrong; a good one leaves it empty.
    """

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        runner: Runner | None = None,
        schedule_s: float = 0.0,
        boot_s: float = 0.0,
        idempotent: bool = False,
        workspace: str = "double",
        builder: str = BUILDER,
    ) -> None:
        self.clock: Clock = clock or RealClock()
        self.runner: Runner = runner or SimRunner()
        self.faults = Faults()
        self.service = Service(self.clock, self.runner, self.faults, schedule_s=schedule_s, boot_s=boot_s)
        self.idempotent = idempotent
        self.token_id, self.token_secret = TOKEN_ID, TOKEN_SECRET
        self.workspace, self.builder = workspace, builder
        self.secrets: dict[str, dict[str, str]] = {}
        self.calls: list[str] = []
        self.misuses: list[str] = []
        self.url = ""
        self._closing = threading.Event()
        self._up = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._threads: list[threading.Thread] = []

    def start(self) -> ModalDouble:
        """Listen; real commands are watched from now on."""
        self._spawn(self._serve)
        assert self._up.wait(30), "the server does not start"
        if self.runner.real or isinstance(self.clock, RealClock):
            self._spawn(self._watch)
        return self

    def close(self) -> None:
        """End all sandboxes, then the server."""
        self._closing.set()
        self.service.close()
        for thread in self._threads:
            thread.join(timeout=10)

    def __enter__(self) -> ModalDouble:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # for clients
    def env(self) -> dict[str, str]:
        """The variables that move the package here."""
        return {
            "MODAL_SERVER_URL": self.url,
            "MODAL_TOKEN_ID": self.token_id,
            "MODAL_TOKEN_SECRET": self.token_secret,
        }

    # for tests
    @property
    def ledger(self) -> Ledger:
        """What the server charges: ``ledger.total("name-prefix")`` in dollars."""
        return self.service.ledger

    @property
    def images(self) -> ImageStore:
        """The images, and what was sent for them; ``images.registry_login`` makes those of registries private."""
        return self.service.images

    @property
    def closed(self) -> bool:
        return self._closing.is_set()

    def live(self, name_prefix: str = "") -> list[Box]:
        """Every sandbox that has not ended: the truth, whatever lists say."""
        return self.service.live(name_prefix)

    def box(self, name: str) -> Box:
        """The newest sandbox of this name, ended or not; ``KeyError`` if there never was one."""
        boxes = [box for box in self.service.boxes.values() if box.name == name]
        if not boxes:
            raise KeyError(name)
        return boxes[-1]

    def log_of(self, box: Box) -> str:
        """What its command has printed."""
        self.service.settle()
        return "\n".join(line.text for line in box.lines)

    def preempt(self, sandbox_id: str) -> None:
        """Take its machine away."""
        self.service.preempt(sandbox_id)

    def _spawn(self, target: object) -> None:
        thread = threading.Thread(target=target, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        self._loop.close()

    async def _listen(self) -> None:
        server = Server([Servicer(self)])
        await server.start("127.0.0.1", 0)
        sockets = server._server.sockets  # type: ignore[union-attr] # grpclib does not say which port it got.
        self.url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
        self._up.set()
        while not self.closed:
            await asyncio.sleep(LOOK_EVERY_S)
        server.close()
        await server.wait_closed()

    def _watch(self) -> None:
        while not self._closing.wait(LOOK_EVERY_S):
            self.service.settle()
