"""The record of a run: ``runs/<id>/run.json``, replaced whole under a lock, and ``events.jsonl``, appended."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Iterator
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import ValidationError

from cloudft.errors import Busy, IntegrityError, NotFound
from infra.budget import BOOT_SECONDS, Charge, committed
from jobs.spec import Frozen, RunSpec
from local.config import StoreConfig
from local.files import write_json
from local.project import RunFolder

RunStatus = Literal["submitting", "running", "completed", "stopped", "failed", "lost"]
ENDED: frozenset[RunStatus] = frozenset({"completed", "stopped", "failed", "lost"})


class PlannedOffer(Frozen):
    """An offer to try, as it was quoted. ``rate_usd``: dollars per hour, disk included; 0 where nothing is rented.

    ``longest_seconds``: the provider itself ends a machine after so long; None: it does not. ``memory_gib``: memory
    that is asked for and paid; None: what comes with the GPU.
    """

    provider: str
    id: str
    name: str
    rate_usd: float
    why: str = ""
    count: int = 1
    memory_gb: int = 0
    cloud: str = ""
    spot: bool = False
    longest_seconds: float | None = None
    memory_gib: int | None = None

    def seconds_at_most(self, wanted: float) -> float:
        """How long a machine may run, by what the user allows and by what the provider keeps."""
        return wanted if self.longest_seconds is None else min(wanted, self.longest_seconds)


class Receipt(Frozen):
    """Proof that a machine is gone, and what it cost at most.

    ``seconds`` runs from its creation to the moment when it was seen gone, which may be long after it went:
    ``told_seconds`` ends when the machine itself said that it ends, None if it said nothing. ``phases``
    says where they went, by the machine's own account; what that leaves over is "teardown". ``to_first_step``: seconds
    from the container's start to its first step, ``after_last_step`` from its last to its end. ``resumed_from`` is the
    step that this machine began at, ``kept_step`` that of the newest checkpoint in the store at its end.
    """

    machine_id: str | None
    seconds: float
    told_seconds: float | None
    rate_usd: float
    usd: float
    price_source: str
    phases: dict[str, float]
    to_first_step: float | None = None
    after_last_step: float | None = None
    resumed_from: int = 0
    kept_step: int = 0


class Attempt(Frozen):
    """One machine for a run. Times are epoch seconds, rates dollars per hour.

    ``state``: *intended* before the create call, *doubtful* when its reply was lost, *alive*, *ending* once we have
    asked for its end, *gone*, or *refused* when it never came to be. ``asked_at``: when the create call was sent, or
    its reply given up; ``alive_at``: when we learned that it exists; ``heartbeat``: the machine's own time of its last
    one, ``heartbeat_seen_at``: when we saw that it was new; ``ending``: why its end was asked for; ``spoiled``: its
    offer is not worth another try.
    """

    number: int
    name: str
    offer: PlannedOffer
    state: Literal["intended", "doubtful", "alive", "ending", "gone", "refused"]
    created_at: float
    deadline: float
    exhausted_at: float
    asked_at: float | None = None
    alive_at: float | None = None
    machine_id: str | None = None
    rate_usd: float | None = None
    seen: bool = False
    heartbeat: float | None = None
    heartbeat_seen_at: float | None = None
    ending: str = ""
    spoiled: bool = False
    ended_at: float | None = None
    receipt: Receipt | None = None

    @property
    def as_long_as_may_be(self) -> bool:
        """Whether its deadline is the longest that its provider lets a machine live; the run may have more time."""
        longest = self.offer.longest_seconds
        return longest is not None and self.deadline - self.created_at >= longest - 1

    @property
    def charge(self) -> Charge:
        """What it counts for in the run's ledger: never less than it was quoted for."""
        rate = max(self.offer.rate_usd, self.rate_usd or 0.0)
        return Charge(self.created_at, self.exhausted_at, rate, self.ended_at)


class ImageBuild(Frozen):
    """A training image that a provider built for a run, and what that counts for in its ledger.

    ``image`` is what every attempt orders; ``content`` the sha256 over all that it was made from. Whether the minutes
    are billed is not told: they are counted as if they were, at ``rate_usd`` dollars per hour.
    """

    provider: str
    image: str
    content: str
    started_at: float
    seconds: float
    rate_usd: float

    @property
    def charge(self) -> Charge:
        ended = self.started_at + self.seconds
        return Charge(self.started_at, ended, self.rate_usd, ended)


class RunRecord(Frozen):
    """All that this computer knows of a run. The spec stands beside it, unchanged since submit."""

    schema_version: Literal[1] = 1
    run_id: str
    project: str
    created_at: float
    provider: str
    store: StoreConfig
    spec_sha256: str
    budget_usd: float | None = None
    max_hours: float = 24.0
    boot_seconds: float = BOOT_SECONDS
    plan: tuple[PlannedOffer, ...] = ()
    next_offer: int = 0
    refusals: tuple[str, ...] = ()
    status: RunStatus = "submitting"
    reason: str = ""
    stop_asked: bool = False
    build: ImageBuild | None = None
    attempts: tuple[Attempt, ...] = ()

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def attempt(self) -> Attempt:
        """The latest attempt."""
        return self.attempts[-1]

    @property
    def charges(self) -> list[Charge]:
        """The run's ledger: the build of its image, and every attempt that may have cost something."""
        built = [self.build.charge] if self.build else []
        return [*built, *(attempt.charge for attempt in self.attempts)]

    def spent(self, now: float) -> float:
        """Dollars that the run has cost by ``now``, at most."""
        return math.fsum(charge.spent(now) for charge in self.charges)

    def worst_case(self) -> float:
        """Dollars that it can cost at most, as things stand."""
        return committed(self.charges)


def run_prefix(run_id: str) -> str:
    """Where a run's objects lie in the store."""
    return f"runs/{run_id}"


def attempt_prefix(run_id: str, number: int) -> str:
    return f"{run_prefix(run_id)}/attempts/{number}"


def read_record(run: RunFolder) -> RunRecord:
    """The run's record.

    Raises:
        NotFound: there is none.
        IntegrityError: it cannot be read, or a newer cloudft wrote it.
    """
    try:
        return RunRecord.model_validate_json(run.record.read_bytes())
    except FileNotFoundError as exc:
        raise NotFound(f"{run.record} is not there", hint="see the runs:  cloudft status --all") from exc
    except ValidationError as exc:
        raise IntegrityError(
            f"{run.record} cannot be read: {exc.errors()[0]['msg']}",
            effect="the run itself is not touched by this",
            hint="a newer cloudft may have written it; update, or restore the file",
        ) from exc


def write_record(run: RunFolder, record: RunRecord, event: str, **details: Any) -> None:
    """Replace the record, and append what happened to the journal."""
    write_json(run.record, record.model_dump(mode="json"))
    line = {"at": time.time(), "event": event, "status": record.status, **details}
    with run.events.open("a", encoding="utf-8") as journal:
        journal.write(json.dumps(line, ensure_ascii=False) + "\n")


def read_spec(run: RunFolder) -> RunSpec:
    """The frozen spec of a run.

    Raises:
        NotFound: it is missing.
        IntegrityError: it is damaged, or was changed after submit.
    """
    try:
        data = run.spec.read_bytes()
        spec = RunSpec.model_validate_json(data)
    except FileNotFoundError as exc:
        raise NotFound(
            f"{run.spec} is not there, so nobody knows what the run's base is",
            effect="nothing was changed",
            hint="restore the file, or submit again",
        ) from exc
    except (OSError, ValidationError) as exc:
        said = exc.errors()[0]["msg"] if isinstance(exc, ValidationError) else exc
        raise IntegrityError(
            f"{run.spec} is damaged: {said}", effect="nothing was changed", hint="restore the file, or submit again"
        ) from exc
    if run.record.is_file() and hashlib.sha256(data).hexdigest() != read_record(run).spec_sha256:
        raise IntegrityError(
            f"{run.spec} was changed after submit: its sha256 is not the one in {run.record.name}",
            effect="nothing was changed",
            hint="restore the file, or submit again",
        )
    return spec


@contextlib.contextmanager
def acting(run: RunFolder, patience: float) -> Iterator[bool]:
    """Be the one process that decides and acts for a run; yields False if another is, after ``patience`` seconds.

    It is held while a machine is being created: whoever looks meanwhile must not judge what is not done.
    """
    lock = FileLock(run.root / ".acting.lock")
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextlib.contextmanager
def locked(run: RunFolder, doing: str) -> Iterator[None]:
    """Hold the run: two commands must not change one run at once.

    Raises:
        Busy: another command holds it for more than ten seconds.
    """
    try:
        with FileLock(run.lock, timeout=10):
            yield
    except Timeout as exc:
        raise Busy(
            f"cannot {doing} {run.run_id}: another cloudft command is working on it",
            effect="nothing was changed",
            hint="wait for it to end, then type the same command again",
        ) from exc
