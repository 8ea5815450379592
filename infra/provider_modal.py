"""Provider ``modal``: GPU Sandboxes at Modal, through its package.

A Sandbox ends with its command and at its timeout, which Modal's own servers keep: the one deadline that needs nobody.
Its name is unique among those that live, so a create that is sent twice cannot rent twice. All of ours live in one app
and carry tags, by which they are found from any computer.

What Modal says of an end is not believed: after a failed start, an eviction or a lack of memory the return code is 0.
Only the result in the store means success; here an end is an end.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from cloudft.errors import CloudftError, ProviderError
from infra.gpus import Wish
from infra.modal_rates import LONGEST_SECONDS, gpu_of, hourly, offers_at, shape_of
from infra.modal_talk import DASHBOARD, HELLO, NOTHING_RENTED, TIMEOUT, Unanswered, package, talk
from infra.offers import Offer
from infra.provider import (
    ORDINARY,
    CreateUnknown,
    Machine,
    NoCapacity,
    Order,
    TakenBack,
    Terms,
    machine_name,
    parse_machine_name,
)
from jobs.ticket import ENV_DEADLINE, ENV_TICKET

T = TypeVar("T")

APP = "cloudft"
# The image's own entrypoint, in words: whether Modal keeps an image's entrypoint is not relied upon.
COMMAND = ("python", "-m", "jobs.supervisor")
TAG = {"cloudft": "machine"}

# Seconds: how long Modal may take to fetch an image it does not know, and to find a machine. Both count into the time
# that a machine has until its first sign of life (boot_minutes, 15 by default). A Sandbox that gets its
# machine late ends late by as much, which must stay within what the budget keeps for the teardown.
IMAGE_WITHIN = 600.0
MACHINE_WITHIN = 300.0
TELL_EVERY = 2.0
END_WITHIN = 90.0
LOOK_EVERY = 2.0
LOG_LINES = 2000


class ModalProvider:
    """Machines are Sandboxes.

    Args:
        sleep, clock: the time that passes while waiting, and the time (epoch seconds).
        timeout, hello: seconds without an answer, and without the first.
        machine_within, image_within: seconds to wait for a machine, and for an image.
    """

    name = "modal"

    def __init__(
        self,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
        timeout: float = TIMEOUT,
        hello: float = HELLO,
        machine_within: float = MACHINE_WITHIN,
        image_within: float = IMAGE_WITHIN,
    ) -> None:
        self._sleep, self._clock, self._timeout, self._hello = sleep, clock, timeout, hello
        self._machine_within, self._image_within = machine_within, image_within
        self._ids: dict[str, str] = {}

    def check(self) -> None:
        async def work(client: Any) -> None:
            """The greeting is all there is to it."""

        self._talk(work, "use the workspace at Modal")

    def offers(self, wishes: Sequence[Wish], terms: Terms = ORDINARY) -> list[Offer]:
        rates = self._talk(_rates, "read Modal's prices")
        return offers_at(rates, wishes, terms)

    def create(self, order: Order) -> Machine:
        _checked(order)
        # An echo of the request in an answer may be cut: the part that is the capability is hidden by itself too.
        secrets = (order.ticket_url, order.ticket_url.partition("?")[2])
        ordered = _Ordered(order, self._clock, self._machine_within, self._image_within)
        try:
            machine = talk(
                ordered.place,
                f"rent {order.name}",
                within=self._image_within + self._machine_within + 2 * self._timeout,
                hello=self._hello,
                effect=NOTHING_RENTED,
                secrets=secrets,
            )
        except KeyboardInterrupt:
            if ordered.seen:
                self._take_back(order.name)
            raise
        except Unanswered as exc:
            if ordered.sent:
                raise _unknown(exc) from exc
            raise
        if machine is None:
            raise self._no_machine(order, ordered.seen)
        self._ids[order.name] = machine.id
        return machine

    def find(self, name: str, machine_id: str | None = None) -> Machine | None:
        async def work(client: Any) -> Machine | None:
            for sandbox_id in _ours([machine_id, self._ids.get(name)]):
                known = await _by_id(client, sandbox_id)
                if known is not None and known.returncode is None:
                    return await _machine(known, await _rates(client))
            sandbox = await _named(client, name)
            return None if sandbox is None else await _machine(sandbox, await _rates(client), await sandbox.poll.aio())

        machine = self._talk(work, f"look for {name}")
        if machine is not None:
            self._ids[name] = machine.id
        return machine

    def machines(self) -> list[Machine]:
        async def work(client: Any) -> list[Machine]:
            rates = await _rates(client)
            found = [await _machine(sandbox, rates, sandbox.returncode) for sandbox in await _listed(client, TAG)]
            return [machine for machine in found if parse_machine_name(machine.name)]

        return sorted(self._talk(work, "list the machines at Modal"), key=lambda m: (m.name, m.id))

    def log(self, name: str) -> str:
        async def work(client: Any) -> str:
            sandbox = await self._any(client, name)
            if sandbox is None:
                return ""
            try:
                return "".join([entry.message async for entry in sandbox.logs.tail.aio(LOG_LINES)])
            except package().exception.ExecutionError:  # It never got a machine.
                return ""

        return self._talk(work, f"read the console of {name}")

    def terminate(self, name: str, machine_id: str | None = None) -> None:
        """All Sandboxes of that name, however many there are."""
        for known in _ours([machine_id]):
            self._ids.setdefault(name, known)
        until = self._clock() + END_WITHIN
        try:
            while left := self._talk(lambda client: self._end(client, name), f"end {name}"):
                if self._clock() > until:
                    raise ProviderError(
                        f"{name} ({', '.join(left)}) is still there {END_WITHIN:.0f} s after Modal was told to end it",
                        hint=f"try again:  cloudft reap    or end it by hand at {DASHBOARD}",
                    )
                self._sleep(LOOK_EVERY)
        except ProviderError as exc:
            exc.effect = f"{name} may still be there, and is billed until it is gone"
            raise
        self._ids.pop(name, None)

    def _talk(self, work: Callable[[Any], Awaitable[T]], doing: str) -> T:
        return talk(work, doing, within=self._timeout, hello=self._hello)

    async def _end(self, client: Any, name: str) -> list[str]:
        """Tell all of that name to end; the ids of those that have not yet."""
        found = {sandbox.object_id for sandbox in await _listed(client, {**TAG, "name": name})}
        named = await _named(client, name)
        found |= {named.object_id} if named else set()
        found |= {self._ids[name]} if name in self._ids else set()
        left = []
        for sandbox_id in sorted(found):
            sandbox = await _by_id(client, sandbox_id)
            if sandbox is None:
                continue
            await sandbox.terminate.aio()
            # Read again: an end that was accepted is not yet one that has come.
            again = await _by_id(client, sandbox_id)
            if again is not None and again.returncode is None:
                left.append(sandbox_id)
        return left

    async def _any(self, client: Any, name: str) -> Any:
        """The Sandbox of that name, ended or not, as far as it can still be found."""
        modal = package()
        if name in self._ids and (known := await _by_id(client, self._ids[name])) is not None:
            return known
        with contextlib.suppress(modal.exception.NotFoundError):
            if (live := await _named(client, name)) is not None:
                return live
            return await modal.Sandbox.from_name.aio(APP, name, include_terminated=True, client=client)
        return None

    def _take_back(self, name: str) -> None:
        """After Ctrl-C: end what may have come of the order, and say so when that is proved."""
        try:
            self.terminate(name)
        except CloudftError:
            return  # The interrupt goes on, with the words for a machine that may exist.
        raise TakenBack(
            f"interrupted while Modal was looking for a machine for {name}",
            effect="the order was taken back, and Modal shows no such machine: nothing is billed",
            hint="start anew:  cloudft submit",
        )

    def _no_machine(self, order: Order, seen: bool) -> ProviderError:
        """The wait is over; the order must have been seen, and seen gone, before another may be placed."""
        try:
            self.terminate(order.name)
        except CloudftError as exc:
            return _unknown(exc)
        if not seen:
            return _unknown(ProviderError(f"cannot rent {order.name}: Modal did not answer in time"))
        return NoCapacity(
            f"cannot rent {order.name}: Modal found no machine in {self._machine_within / 60:.0f} min; "
            "the order was taken back",
            effect=NOTHING_RENTED,
            hint="the next offer may do:  cloudft offers",
        )


class _Ordered:
    """An order on its way; ``sent`` once a Sandbox may exist, ``seen`` once Modal shows it, waiting for its machine."""

    def __init__(self, order: Order, clock: Callable[[], float], machine_within: float, image_within: float) -> None:
        self.order, self.sent, self.seen = order, False, False
        self._clock, self._machine_within, self._image_within = clock, machine_within, image_within

    async def place(self, client: Any) -> Machine | None:
        """The machine; None when there was none to be had in time."""
        modal, order = package(), self.order
        app = await modal.App.lookup.aio(APP, client=client, create_if_missing=True)
        login = modal.Secret.from_name(order.registry, client=client) if order.registry else None
        image = modal.Image.from_registry(order.image, secret=login)
        await self._build(image, app)
        rates, tags = await _rates(client), _tags(order, self._clock())
        request = self._request(client, app, image) | {"tags": tags}
        self.sent = True
        try:
            sandbox = await self._wait(client, modal.Sandbox.create.aio(*COMMAND, **request))
        except modal.exception.AlreadyExistsError:
            # The name is this attempt's own: an earlier try of this very order was carried out, its reply was lost.
            sandbox = await _named(client, order.name)
            if sandbox is None:
                raise Unanswered(f"cannot rent {order.name}: Modal says that it exists, and does not show it") from None
        except TimeoutError:
            return None
        # It exists, so nothing here may fail: what it costs is read again if that is possible.
        with contextlib.suppress(Exception):
            rates = await _rates(client)
        return _described(sandbox.object_id, tags, None, rates)

    async def _build(self, image: Any, app: Any) -> None:
        self.order.waiting("Modal fetches the image", "minutes for a new one; not billed as a machine")
        try:
            await asyncio.wait_for(image.build.aio(app), self._image_within)
        except TimeoutError as exc:
            raise ProviderError(
                f"cannot rent {self.order.name}: Modal did not fetch the image in {self._image_within / 60:.0f} min",
                effect=NOTHING_RENTED,
                hint=f"see why at {DASHBOARD}; then submit again, Modal keeps what it has fetched",
            ) from exc

    async def _wait(self, client: Any, creating: Awaitable[Any]) -> Any:
        """Wait for a machine, within bounds and not in silence; giving up takes the order back."""
        task = asyncio.ensure_future(creating)
        waited = 0.0
        try:
            while True:
                self.order.waiting(
                    "Modal looks for a machine",
                    f"{waited:.0f} s of {self._machine_within:.0f} s at most; not billed before there is one; "
                    "Ctrl-C takes the order back",
                )
                step = min(TELL_EVERY, self._machine_within - waited)
                done, _ = await asyncio.wait({task}, timeout=step)
                if done:
                    return task.result()
                waited += step
                if not self.seen:
                    with contextlib.suppress(Exception):
                        self.seen = await _named(client, self.order.name) is not None
                if waited >= self._machine_within:
                    raise TimeoutError
        finally:
            if not task.done():
                task.cancel()
                with contextlib.suppress(BaseException):
                    await task

    def _request(self, client: Any, app: Any, image: Any) -> dict[str, Any]:
        """The arguments of ``Sandbox.create``."""
        modal, order = package(), self.order
        assert order.offer is not None
        assert order.offer.gpu is not None
        shape = shape_of(order.offer.gpu, order.offer.count)
        memory = shape.memory_gib * 1024
        environment = {ENV_DEADLINE: str(order.deadline), ENV_TICKET: order.ticket_url}
        named = [
            modal.Secret.from_name(secret, required_keys=[variable], client=client)
            for variable, secret in order.secrets.items()
        ]
        return {
            "app": app,
            "client": client,
            "image": image,
            "name": order.name,
            "gpu": f"{order.offer.id}:{order.offer.count}",
            "timeout": _timeout(order, self._clock()),
            # Request and limit: what is used above the request is billed, and without a limit that is the whole host.
            "cpu": (shape.cores, shape.cores),
            "memory": (memory, memory),
            "region": list(order.data_centers) or None,
            "secrets": [modal.Secret.from_dict(environment), *named],
        }


def _checked(order: Order) -> None:
    """Refuse here what the service would take and bill."""
    if order.offer is None or order.offer.provider != ModalProvider.name or order.offer.gpu is None:
        raise _bad_order(order, "no offer of Modal's was chosen", "see them:  cloudft offers")
    if order.image is None or not re.search(r"@sha256:[0-9a-f]+$", order.image):
        raise _bad_order(order, "the training image must be named by its digest", "make and push it:  cloudft build")
    for variable, secret in order.secrets.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable) or variable.startswith(("CLOUDFT_", "MODAL_")):
            raise _bad_order(order, f"a secret cannot become the variable {variable!r}", "name another in cloudft.yaml")
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,63}", secret):
            # The value itself may stand there by mistake: it is not shown.
            raise _bad_order(order, f"the secret for {variable} is no name of a secret", "see:  modal secret list")
    parsed = parse_machine_name(order.name)
    if parsed is None or len(order.name) > 63 or order.name != machine_name(*parsed):
        raise _bad_order(order, "its name is none of ours, or longer than 63 letters", "use a shorter run id")


def _timeout(order: Order, now: float) -> int:
    """Whole seconds until the deadline, which Modal keeps by itself."""
    left = order.deadline - now
    if left < 1:
        raise _bad_order(order, "its deadline has passed", "submit again:  cloudft submit")
    return int(min(left, LONGEST_SECONDS))


def _bad_order(order: Order, why: str, hint: str) -> ProviderError:
    return ProviderError(f"cannot rent {order.name}: {why}", effect=NOTHING_RENTED, hint=hint)


def _tags(order: Order, now: float) -> dict[str, str]:
    """All that another computer needs to know of it. Tags hold letters, digits, dashes, dots and underscores."""
    parsed = parse_machine_name(order.name)
    assert parsed is not None
    assert order.offer is not None
    run_id, attempt, deadline = parsed
    return {
        **TAG,
        "name": order.name,
        "run": run_id,
        "attempt": str(attempt),
        "deadline": f"{deadline:.0f}",
        "created": f"{now:.3f}",
        "gpu": order.offer.id,
        "count": str(order.offer.count),
        "region": ".".join(order.data_centers) or "any",
        "rate": f"{order.offer.rate_usd:.6f}",
    }


async def _rates(client: Any) -> Mapping[str, Any]:
    return dict(await package().Workspace.from_context(client=client).billing.rates.aio())


def _ours(ids: Sequence[str | None]) -> list[str]:
    """Those that are a Sandbox's: provider ``auto`` asks all providers for the machine of one."""
    return sorted({known for known in ids if known is not None and known.startswith("sb-")})


async def _by_id(client: Any, sandbox_id: str | None) -> Any:
    """The Sandbox of that id, ended or not, or None when Modal has forgotten it."""
    modal = package()
    try:
        return await modal.Sandbox.from_id.aio(sandbox_id, client=client)
    except modal.exception.NotFoundError:
        return None


async def _named(client: Any, name: str) -> Any:
    """The live Sandbox of that name, or None."""
    modal = package()
    try:
        return await modal.Sandbox.from_name.aio(APP, name, client=client)
    except modal.exception.NotFoundError:
        return None


async def _listed(client: Any, tags: Mapping[str, str]) -> list[Any]:
    """All live Sandboxes of ours with these tags."""
    modal = package()
    try:
        app = await modal.App.lookup.aio(APP, client=client)
    except modal.exception.NotFoundError:
        return []
    return [s async for s in modal.Sandbox.list.aio(app_id=app.app_id, tags=dict(tags), client=client)]


async def _machine(sandbox: Any, rates: Mapping[str, Any], ended: int | None = None) -> Machine:
    return _described(sandbox.object_id, await sandbox.get_tags.aio(), ended, rates)


def _described(sandbox_id: str, tags: Mapping[str, str], ended: int | None, rates: Mapping[str, Any]) -> Machine:
    """A Machine, from what its tags say and what its parts cost now; ``ended`` is the return code of one that has."""
    gpu, count, region = gpu_of(tags.get("gpu", "")), tags.get("count", ""), tags.get("region", "any")
    rate = None
    if gpu is not None and count.isdigit():
        rate = hourly(rates, gpu, int(count), () if region == "any" else region.split("."))
    return Machine(
        provider=ModalProvider.name,
        id=sandbox_id,
        name=tags.get("name", ""),
        state="running" if ended is None else "ended",
        rate_usd=rate if rate is not None else _number(tags.get("rate")),
        created_at=_number(tags.get("created")),
        detail=f"{tags.get('gpu', '?')}:{count or '?'}",
    )


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _unknown(exc: CloudftError) -> CreateUnknown:
    return CreateUnknown(
        f"{exc.what}, and Modal may have carried the order out all the same",
        effect="a machine may exist, and be billed; it is looked for by its name, and ends by itself at its deadline",
        hint="see it:  cloudft status    end whatever is left:  cloudft reap",
    )
