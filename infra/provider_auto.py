"""Provider ``auto``: every rented provider whose account is set up here, as if they were one.

An order goes to the provider of its offer. Whatever looks or ends asks all of them, since a run's attempts may have
been rented at different ones; that a machine is not there is said only when every one of them has said so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from cloudft.errors import CloudftError, ProviderError
from infra.accounts import how_to_set_up
from infra.gpus import Wish
from infra.offers import Offer
from infra.provider import ORDINARY, Machine, Order, Provider, Terms

T = TypeVar("T")


class AutoProvider:
    """Several providers behind the protocol of one.

    Args:
        providers: by name; those whose accounts are set up.

    ``unasked`` are the names of those that could not be asked for offers, with the reason.
    """

    name = "auto"

    def __init__(self, providers: Mapping[str, Provider]) -> None:
        self._providers = dict(providers)
        self.unasked: tuple[tuple[str, str], ...] = ()

    def members(self) -> list[Provider]:
        """The providers behind it."""
        return list(self._providers.values())

    def check(self) -> None:
        self._some(lambda provider: provider.check())

    def offers(self, wishes: Sequence[Wish], terms: Terms = ORDINARY) -> list[Offer]:
        return [offer for offers in self._some(lambda p: p.offers(wishes, terms)) for offer in offers]

    def create(self, order: Order) -> Machine:
        if order.offer is None or order.offer.provider not in self._providers:
            whom = "nobody" if order.offer is None else order.offer.provider
            raise ProviderError(f"cannot rent {order.name}: the account at {whom} is not set up here")
        return self._providers[order.offer.provider].create(order)

    def find(self, name: str, machine_id: str | None = None) -> Machine | None:
        failed: CloudftError | None = None
        for provider in self._configured():
            try:
                found = provider.find(name, machine_id)
            except CloudftError as exc:
                failed = exc
                continue
            if found is not None:
                return found
        if failed is not None:
            raise failed
        return None

    def machines(self) -> list[Machine]:
        return [machine for provider in self._configured() for machine in provider.machines()]

    def log(self, name: str) -> str:
        return "".join(provider.log(name) for provider in self._configured())

    def terminate(self, name: str, machine_id: str | None = None) -> None:
        failed: CloudftError | None = None
        for provider in self._configured():
            try:
                provider.terminate(name, machine_id)
            except CloudftError as exc:
                # The others must be asked all the same: it may be theirs.
                failed = exc
        if failed is not None:
            raise failed

    def _configured(self) -> list[Provider]:
        if not self._providers:
            raise ProviderError(
                "provider auto needs an account at some provider, and none is set up here",
                effect="nothing was rented; machines that other computers can see were not looked for",
                hint=f"set {how_to_set_up()}",
            )
        return list(self._providers.values())

    def _some(self, ask: Callable[[Provider], T]) -> list[T]:
        """The answers of those that answer; an error only when none does."""

        def one(provider: Provider) -> T | CloudftError:
            try:
                return ask(provider)
            except CloudftError as exc:
                return exc

        providers = self._configured()
        with ThreadPoolExecutor(len(providers)) as pool:
            answers = list(pool.map(one, providers))
        failed = [(p.name, a) for p, a in zip(providers, answers, strict=True) if isinstance(a, CloudftError)]
        self.unasked = tuple((name, exc.what) for name, exc in failed)
        if len(failed) == len(providers):
            raise failed[0][1]
        return [answer for answer in answers if not isinstance(answer, CloudftError)]
