"""A provider rents machines. One file in ``infra/`` and one class that keeps this small protocol.

The words: a *machine* runs one *attempt* of a run; its *name* carries run, attempt and deadline, so that it can
be found and ended by name alone, from any computer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from cloudft.errors import Interrupted, ProviderError
from infra.gpus import Wish
from infra.offers import Offer

PREFIX = "cloudft"


class NoCapacity(ProviderError):
    """The provider has no such machine free now: none was created, the next offer may do.

    ``billed_seconds``: how long one may have been there all the same, between the end of a wait and its being seen
    gone.
    """

    billed_seconds = 0.0


class CreateUnknown(ProviderError):
    """The create call broke off: a machine may exist. Look for it by name; never create again blindly."""


class TakenBack(Interrupted):
    """Ctrl-C during a create, and the order is proved to be taken back: nothing exists, nothing is billed any more.

    ``billed_seconds``: as in ``NoCapacity``.
    """

    billed_seconds = 0.0


def _unheard(what: str, note: str) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class Order:
    """What is asked of a provider: one machine for one attempt.

    ``deadline`` is the epoch second after which the machine may cost nothing more. ``ticket_url`` reads the
    ticket, which holds everything else that the machine needs. ``offer`` is None where nothing is rented.
    ``registry`` names the provider's own record of the credentials for a private image; ``secrets`` maps
    environment names to names of secrets that the provider keeps. ``bid_usd`` is the most per hour for a spot machine.
    ``image`` is one of a registry by its digest, or what a ``Builder`` returned.
    ``waiting`` is told what a create that takes its time waits for, and for how long, each in a few words.
    """

    name: str
    ticket_url: str
    deadline: float
    image: str | None = None
    offer: Offer | None = None
    disk_gb: int = 20
    data_centers: tuple[str, ...] = ()
    registry: str | None = None
    secrets: Mapping[str, str] = field(default_factory=dict)
    bid_usd: float | None = None
    waiting: Callable[[str, str], None] = field(default=_unheard, repr=False, compare=False)


@dataclass(frozen=True)
class Terms:
    """What an order will ask for besides its GPUs, as far as price and stock depend on it; see ``Order``.

    ``spot`` adds the machines that may be taken away at any time, at their lowest bids. ``max_rate_usd`` stands in for
    a price that the provider does not tell, dollars per hour: without it, such a card is refused. ``parameters`` is
    the size of the base, which must pass through the machine's memory; None when it is not known.
    """

    disk_gb: int = 20
    data_centers: tuple[str, ...] = ()
    spot: bool = False
    max_rate_usd: float | None = None
    parameters: int | None = None


ORDINARY = Terms()


@dataclass(frozen=True)
class Machine:
    """A machine as its provider describes it; one that is not listed any more has no ``Machine``.

    ``rate_usd`` is dollars per hour, disk included, None when the provider does not say; ``created_at`` epoch
    seconds, from when on it is billed, None when unknown.
    """

    provider: str
    id: str
    name: str
    state: Literal["starting", "running", "ended"]
    rate_usd: float | None
    created_at: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class Recipe:
    """How to make the training image: a build context, the Dockerfile's name in it, and build arguments.

    ``registry`` names the provider's own record of the credentials for a private base.
    """

    folder: Path
    dockerfile: str
    args: Mapping[str, str] = field(default_factory=dict)
    registry: str | None = None


@dataclass(frozen=True)
class BuildTerms:
    """What a build may cost at most: dollars per hour, for so many seconds."""

    rate_usd: float
    longest_seconds: float


@runtime_checkable
class Builder(Protocol):
    """A provider that makes images itself, so that neither an engine nor a registry is needed here."""

    @property
    def name(self) -> str:
        """Its name as a provider."""

    def build_terms(self) -> BuildTerms:
        """Raise ``ProviderError`` if they cannot be told."""

    def build(self, recipe: Recipe, waiting: Callable[[str, str], None]) -> str:
        """Make the image, unless the provider has it already, and return what ``Order.image`` takes. Rents nothing.

        Raises:
            ProviderError: it could not be built; the message ends with the last lines of the build's log.
        """


# The providers that are builders, in words: what refuses an order without an image must not load them.
BUILDERS = frozenset({"modal"})


class Provider(Protocol):
    """What cloudft needs of a provider. Vendors' exceptions become ``ProviderError`` inside it."""

    @property
    def name(self) -> str:
        """The name that ``--provider`` takes."""

    def check(self) -> None:
        """Raise ``ProviderError`` or ``EnvironmentProblem`` if an order could not be placed from here."""

    def offers(self, wishes: Sequence[Wish], terms: Terms = ORDINARY) -> list[Offer]:
        """What can be rented now, at live prices; every card, so that the nearest can be shown for one not offered.

        The counts of GPUs are those of the wishes. Empty where nothing is rented.
        """

    def create(self, order: Order) -> Machine:
        """Start one machine. The caller has journalled the order's name before.

        Raises:
            NoCapacity: nothing was created.
            CreateUnknown: a machine may exist.
            ProviderError: refused; nothing was created.
        """

    def find(self, name: str, machine_id: str | None = None) -> Machine | None:
        """The machine of that name, or None: it was never created, or it is gone.

        ``machine_id``, where it is known, is read first: a list may lag behind.
        """

    def machines(self) -> list[Machine]:
        """All machines that bear our prefix."""

    def log(self, name: str) -> str:
        """The machine's console, as far as the provider has it; for a machine that never sent a heartbeat."""

    def terminate(self, name: str, machine_id: str | None = None) -> None:
        """End the machine of that name for good; silent when it is gone already.

        Returns only when a further read shows it gone; else raises ``ProviderError``.
        """


def machine_name(run_id: str, attempt: int, deadline: float) -> str:
    """``cloudft-<run>-a<attempt>-<deadline epoch>``: all that a reaper needs to know."""
    return f"{PREFIX}-{run_id}-a{attempt}-{int(deadline)}"


def parse_machine_name(name: str) -> tuple[str, int, float] | None:
    """``(run id, attempt, deadline)`` of a name that ``machine_name`` made; None for any other."""
    head, _, deadline = name.rpartition("-")
    head, _, attempt = head.rpartition("-a")
    prefix, _, run_id = head.partition("-")
    if prefix != PREFIX or not run_id or not attempt.isdigit() or not deadline.isdigit():
        return None
    return run_id, int(attempt), float(deadline)


def _local(state: Path) -> Provider:
    from infra.provider_local import LocalProvider

    return LocalProvider(state / "machines")


def _docker(state: Path) -> Provider:
    from infra.provider_docker import DockerProvider

    return DockerProvider()


def _runpod(state: Path) -> Provider:
    from infra.provider_runpod import RunpodProvider

    return RunpodProvider()


def _modal(state: Path) -> Provider:
    from infra.provider_modal import ModalProvider

    return ModalProvider()


def _auto(state: Path) -> Provider:
    from infra.accounts import accounts
    from infra.provider_auto import AutoProvider

    return AutoProvider({name: PROVIDERS[name](state) for name in accounts()})


def _manual(state: Path) -> Provider:
    from infra.provider_manual import ManualProvider

    return ManualProvider(state / "manual")


PROVIDERS: dict[str, Callable[[Path], Provider]] = {
    "local": _local,
    "docker": _docker,
    "runpod": _runpod,
    "modal": _modal,
    "auto": _auto,
    "manual": _manual,
}


def open_provider(name: str, state: Path) -> Provider:
    """The provider of that name. ``state`` is the project's folder for what a provider keeps on this computer.

    Raises:
        ProviderError: there is no such provider.
    """
    if name not in PROVIDERS:
        raise ProviderError(
            f"unknown provider {name!r}", effect="nothing was rented", hint=f"known: {', '.join(PROVIDERS)}"
        )
    return PROVIDERS[name](state)
