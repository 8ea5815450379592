"""Provider ``modal``: GPU Sandboxes at Modal, through its package.

A Sandbox ends with its command and at its timeout, which Modal's own servers keep: the one deadline that needs nobody.
Its name is unique among those that live, so a create that is sent twice cannot rent twice.

What Modal says of an end is not believed: after a failed start, an eviction or a lack of memory the return code is 0.
Only the result in the store means success; here an end is an end.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from cloudft.errors import CloudftError, ProviderError
from infra import modal_images, modal_sandboxes
from infra.gpus import Wish
from infra.modal_order import Placing, check_order
from infra.modal_rates import offers_at
from infra.modal_sandboxes import PROVIDER, TAG
from infra.modal_talk import DASHBOARD, HELLO, NOTHING_RENTED, TIMEOUT, Unanswered, package, talk
from infra.offers import Offer
from infra.provider import (
    ORDINARY,
    BuildTerms,
    CreateUnknown,
    Machine,
    NoCapacity,
    Order,
    Recipe,
    TakenBack,
    Terms,
    parse_machine_name,
)

T = TypeVar("T")

# Seconds: how long Modal may take to fetch an image it does not know, and to find a machine. A Sandbox that gets its
# machine late ends late by as much, which must stay within what the budget keeps for the teardown.
IMAGE_WITHIN = 600.0
MACHINE_WITHIN = 300.0
END_WITHIN = 90.0
LOOK_EVERY = 2.0
LOG_LINES = 2000
# How long a machine may be there before the package, which asks every half second, notices.
UNSEEN = 2.0


class ModalProvider:
    """Machines are Sandboxes; it also builds images.

    Args:
        sleep, clock: the time that passes while waiting, and the time (epoch seconds).
        timeout, hello: seconds without an answer, and without the first.
        machine_within, image_within, build_within: seconds to wait for a machine, for an image, and for a build.
    """

    name = PROVIDER

    def __init__(
        self,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
        timeout: float = TIMEOUT,
        hello: float = HELLO,
        machine_within: float = MACHINE_WITHIN,
        image_within: float = IMAGE_WITHIN,
        build_within: float = modal_images.BUILD_WITHIN,
    ) -> None:
        self._sleep, self._clock, self._timeout, self._hello = sleep, clock, timeout, hello
        self._machine_within, self._image_within, self._build_within = machine_within, image_within, build_within
        self._ids: dict[str, str] = {}

    def check(self) -> None:
        async def work(client: Any) -> None:
            """The greeting is all there is to it."""

        self._talk(work, "use the workspace at Modal")

    def offers(self, wishes: Sequence[Wish], terms: Terms = ORDINARY) -> list[Offer]:
        return offers_at(self._talk(modal_sandboxes.rates_of, "read Modal's prices"), wishes, terms)

    def build_terms(self) -> BuildTerms:
        rates = self._talk(modal_sandboxes.rates_of, "read Modal's prices")
        return modal_images.build_terms(rates, self._build_within)

    def build(self, recipe: Recipe, waiting: Callable[[str, str], None]) -> str:
        async def work(client: Any) -> str:
            return await modal_images.build(client, recipe, waiting, self._build_within)

        return talk(
            work,
            "build the training image",
            within=self._build_within + 2 * self._timeout,
            hello=self._hello,
            effect=NOTHING_RENTED,
        )

    def create(self, order: Order) -> Machine:
        check_order(order)
        # An echo of the request in an answer may be cut: the part that is the capability is hidden by itself too.
        secrets = (order.ticket_url, order.ticket_url.partition("?")[2])
        placing = Placing(order, self._clock, self._machine_within, self._image_within)
        try:
            machine = talk(
                placing.place,
                f"rent {order.name}",
                within=self._image_within + self._machine_within + 2 * self._timeout,
                hello=self._hello,
                effect=NOTHING_RENTED,
                secrets=secrets,
            )
        except KeyboardInterrupt:
            if not placing.sent:
                raise _taken_back(f"interrupted before {order.name} was ordered at Modal") from None
            if placing.seen:
                self._take_back(order.name, self._clock())
            raise
        except Unanswered as exc:
            if placing.sent:
                raise _unknown(exc) from exc
            raise
        if machine is None:
            raise self._no_machine(order, placing)
        self._ids[order.name] = machine.id
        return machine

    def find(self, name: str, machine_id: str | None = None) -> Machine | None:
        async def work(client: Any) -> Machine | None:
            workspace = await modal_sandboxes.workspace_of(client)
            rates = await modal_sandboxes.rates_of(client)
            for sandbox_id in modal_sandboxes.sandbox_ids([machine_id, self._ids.get(name)], workspace):
                known = await modal_sandboxes.by_id(client, sandbox_id)
                if known is not None and known.returncode is None:
                    return await modal_sandboxes.machine_of(known, workspace, rates)
            sandbox = await modal_sandboxes.named_anywhere(client, name)
            return None if sandbox is None else await modal_sandboxes.machine_of(sandbox, workspace, rates)

        machine = self._talk(work, f"look for {name}")
        if machine is not None:
            self._ids[name] = machine.id
        return machine

    def machines(self) -> list[Machine]:
        async def work(client: Any) -> list[Machine]:
            workspace = await modal_sandboxes.workspace_of(client)
            rates = await modal_sandboxes.rates_of(client)
            found = [
                await modal_sandboxes.machine_of(sandbox, workspace, rates)
                async for sandbox in modal_sandboxes.listed(client, TAG)
            ]
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
        if machine_id is not None:
            self._ids.setdefault(name, machine_id)
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
        found = set(await self._known(client, name))
        found |= {sandbox.object_id async for sandbox in modal_sandboxes.listed(client, {**TAG, "name": name})}
        live = await modal_sandboxes.named_anywhere(client, name)
        found |= {live.object_id} if live else set()
        left = []
        for sandbox_id in sorted(found):
            sandbox = await modal_sandboxes.by_id(client, sandbox_id)
            if sandbox is None:
                continue
            await sandbox.terminate.aio()
            # Read again: an end that was accepted is not yet one that has come.
            again = await modal_sandboxes.by_id(client, sandbox_id)
            if again is not None and again.returncode is None:
                left.append(sandbox_id)
        return left

    async def _any(self, client: Any, name: str) -> Any:
        """The Sandbox of that name, ended or not, as far as it can still be found."""
        for sandbox_id in await self._known(client, name):
            if (known := await modal_sandboxes.by_id(client, sandbox_id)) is not None:
                return known
        live = await modal_sandboxes.named_anywhere(client, name)
        return live if live is not None else await modal_sandboxes.last_named(client, name)

    async def _known(self, client: Any, name: str) -> list[str]:
        """The Sandbox of that name whose id is remembered."""
        return modal_sandboxes.sandbox_ids([self._ids.get(name)], await modal_sandboxes.workspace_of(client))

    def _take_back(self, name: str, since: float) -> None:
        """After Ctrl-C: end what may have come of the order, and say so when that is proved."""
        try:
            self.terminate(name)
        except CloudftError:
            return  # The interrupt goes on, with the words for a machine that may exist.
        taken = _taken_back(f"interrupted while Modal was looking for a machine for {name}")
        taken.billed_seconds = self._clock() - since + UNSEEN
        raise taken

    def _no_machine(self, order: Order, placing: Placing) -> ProviderError:
        """The wait is over; the order must have been seen, and seen gone, before another may be placed."""
        try:
            self.terminate(order.name)
        except CloudftError as exc:
            return _unknown(exc)
        if not placing.seen:
            return _unknown(ProviderError(f"cannot rent {order.name}: Modal did not answer in time"))
        none = NoCapacity(
            f"cannot rent {order.name}: Modal found no machine in {self._machine_within / 60:.0f} min; "
            "the order was taken back",
            effect=NOTHING_RENTED,
            hint="the next offer may do:  cloudft offers",
        )
        none.billed_seconds = self._clock() - placing.gave_up_at + UNSEEN
        return none


def _taken_back(what: str) -> TakenBack:
    return TakenBack(
        what,
        effect="the order was taken back, and Modal shows no such machine: nothing is billed",
        hint="start anew:  cloudft submit",
    )


def _unknown(exc: CloudftError) -> CreateUnknown:
    return CreateUnknown(
        f"{exc.what}, and Modal may have carried the order out all the same",
        effect="a machine may exist, and be billed; it is looked for by its name, and ends by itself at its deadline",
        hint="see it:  cloudft status    end whatever is left:  cloudft reap",
    )
