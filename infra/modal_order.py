"""One order at Modal on its way: checked, its image fetched, placed, waited for, and in the end taken back."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable
from typing import Any

from cloudft.errors import ProviderError
from infra import modal_images, modal_sandboxes
from infra.modal_rates import LONGEST_SECONDS, Shape, shape_of
from infra.modal_sandboxes import APP, PROVIDER
from infra.modal_talk import NOTHING_RENTED, Unanswered, package
from infra.provider import Machine, Order, machine_name, parse_machine_name
from jobs.ticket import ENV_DEADLINE, ENV_TICKET

# The image's own entrypoint, in words: whether Modal keeps an image's entrypoint is not relied upon. Where it does,
# the supervisor gets these words as arguments, and takes none.
COMMAND = ("python", "-m", "jobs.supervisor")
# Seconds. The first look is early: an order that was seen can be proved to be taken back.
FIRST_LOOK, TELL_EVERY, LOOK_WITHIN = 0.5, 2.0, 10.0


class Placing:
    """An order on its way; ``sent`` once a Sandbox may exist, ``seen`` once Modal shows it, waiting for its machine.

    ``gave_up_at``: when the wait was over, by the clock.

    Args:
        machine_within, image_within: seconds to wait for a machine, and for an image.
    """

    def __init__(self, order: Order, clock: Callable[[], float], machine_within: float, image_within: float) -> None:
        self.order, self.sent, self.seen, self.gave_up_at = order, False, False, 0.0
        self._clock, self._machine_within, self._image_within = clock, machine_within, image_within

    async def place(self, client: Any) -> Machine | None:
        """The machine; None when there was none to be had in time."""
        modal, order = package(), self.order
        assert order.image is not None
        app = await modal.App.lookup.aio(APP, client=client, create_if_missing=True)
        image = modal_images.image_of(client, order.image, order.registry)
        if modal_images.DIGEST.fullmatch(order.image):
            await modal_images.fetch(image, app, order.name, order.waiting, self._image_within)
        workspace, rates = await modal_sandboxes.workspace_of(client), await modal_sandboxes.rates_of(client)
        shape = _shape(order)
        tags = modal_sandboxes.tags_for(order, shape, self._clock())
        request = self._request(client, app, image, shape) | {"tags": tags}
        self.sent = True
        try:
            sandbox = await self._wait(client, modal.Sandbox.create.aio(*COMMAND, **request))
        except modal.exception.AlreadyExistsError:
            # The name is this attempt's own: an earlier try of this very order was carried out, its reply was lost.
            sandbox = await modal_sandboxes.named(client, order.name)
            if sandbox is None:
                raise Unanswered(f"cannot rent {order.name}: Modal says that it exists, and does not show it") from None
        except TimeoutError:
            return None
        # It exists, so nothing here may fail: what it costs is read again if that is possible.
        with contextlib.suppress(Exception):
            rates = await modal_sandboxes.rates_of(client)
        return modal_sandboxes.described(sandbox.object_id, workspace, tags, rates)

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
                step = min(TELL_EVERY if waited else FIRST_LOOK, self._machine_within - waited)
                done, _ = await asyncio.wait({task}, timeout=step)
                if done:
                    return task.result()
                waited += step
                await self._look(client)
                if waited >= self._machine_within:
                    self.gave_up_at = self._clock()
                    raise TimeoutError
        finally:
            if not task.done():
                # Once it is taken back Modal shows it no more: Ctrl-C may have come before the first look's answer.
                await self._look(client)
                task.cancel()
                with contextlib.suppress(BaseException):
                    await task

    async def _look(self, client: Any) -> None:
        """Whether Modal shows the order, unless that is known."""
        if not self.seen:
            with contextlib.suppress(Exception):
                found = await asyncio.wait_for(modal_sandboxes.named(client, self.order.name), LOOK_WITHIN)
                self.seen = found is not None

    def _request(self, client: Any, app: Any, image: Any, shape: Shape) -> dict[str, Any]:
        """The arguments of ``Sandbox.create``."""
        modal, order = package(), self.order
        assert order.offer is not None
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


def check_order(order: Order) -> None:
    """Refuse here what the service would take and bill.

    Raises:
        ProviderError: what is wrong with it.
    """
    if order.offer is None or order.offer.provider != PROVIDER or order.offer.gpu is None:
        raise _bad(order, "no offer of Modal's was chosen", "see them:  cloudft offers")
    known = order.image and (modal_images.DIGEST.fullmatch(order.image) or modal_images.BUILT.fullmatch(order.image))
    if not known:
        raise _bad(order, "the training image must be named by its digest", "make and push it:  cloudft build")
    for variable, secret in order.secrets.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable) or variable.startswith(("CLOUDFT_", "MODAL_")):
            raise _bad(order, f"a secret cannot become the variable {variable!r}", "name another in cloudft.yaml")
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,63}", secret):
            # The value itself may stand there by mistake: it is not shown.
            raise _bad(order, f"the secret for {variable} is no name of a secret", "see:  modal secret list")
    parsed = parse_machine_name(order.name)
    if parsed is None or len(order.name) > 63 or order.name != machine_name(*parsed):
        raise _bad(order, "its name is none of ours, or longer than 63 letters", "use a shorter run id")


def _shape(order: Order) -> Shape:
    """What was quoted: what is asked for is what the price was made of."""
    offer = order.offer
    assert offer is not None
    assert offer.gpu is not None
    quoted = shape_of(offer.gpu, offer.count, None)
    return quoted if offer.memory_gib is None else Shape(quoted.cores, offer.memory_gib)


def _timeout(order: Order, now: float) -> int:
    """Whole seconds until the deadline, which Modal keeps by itself."""
    left = order.deadline - now
    if left < 1:
        raise _bad(order, "its deadline has passed", "submit again:  cloudft submit")
    return int(min(left, LONGEST_SECONDS))


def _bad(order: Order, why: str, hint: str) -> ProviderError:
    return ProviderError(f"cannot rent {order.name}: {why}", effect=NOTHING_RENTED, hint=hint)
