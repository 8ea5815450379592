"""Provider ``runpod``: pods at RunPod, by its REST v2; spot machines and the balance by GraphQL.

A machine is found by its name alone, from any computer. The list that shows names may lag behind by some seconds,
reading one pod by its id does not: so each pod that the list names is read, an id that was seen once is
remembered, and a name whose create ended in doubt is looked for a while before it counts as not there.

A stopped pod (EXITED) or a broken one (ERROR) is ``ended``, but it is there, and may be billed, until it is
terminated. Deadlines given to the service are not acted on: the machine ends itself (``jobs.teardown``).
"""

from __future__ import annotations

import datetime
import math
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal
from urllib.parse import quote

from cloudft.errors import CloudftError, ProviderError
from infra.gpus import Wish
from infra.offers import Offer
from infra.provider import ORDINARY, CreateUnknown, Machine, NoCapacity, Order, Terms, parse_machine_name
from infra.runpod_graphql import Balance, Enum, lowest_bids, read_balance, rent_spot
from infra.runpod_offers import CLOUDS, MIN_CUDA, cuda_versions, disk_rate, offers_of, read_catalog
from infra.runpod_rest import CONSOLE, NOTHING_RENTED, TIMEOUT, ApiError, Rest, account, events
from jobs.ticket import ENV_DEADLINE, ENV_TICKET

MOST_ENV = 50

# Seconds: how long a pod may take to disappear, how often that is looked at, how long a list may lag.
END_WITHIN = 90.0
LOOK_EVERY = 2.0
LIST_LAG = 20.0
# A pod's console is a stream that does not end: it is read until it is silent for so long, and no longer than that.
LOG_QUIET, LOG_AT_MOST, LOG_LINES = 3.0, 15.0, 2000

Pod = dict[str, Any]


class RunpodProvider:
    """Machines are pods.

    Args:
        sleep, clock: the time that passes while waiting (seconds).
        timeout: seconds without an answer.
    """

    name = "runpod"

    def __init__(
        self,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        timeout: float = TIMEOUT,
    ) -> None:
        self._sleep, self._clock, self._timeout = sleep, clock, timeout
        self._ids: dict[str, str] = {}
        self._doubtful: dict[str, float] = {}

    def check(self) -> None:
        with self._rest() as rest:
            rest.get("/v2/pods", "use the account at RunPod")

    def balance(self) -> Balance:
        """The account's money: what is left is the only wall that RunPod itself keeps.

        Raises:
            ProviderError: it cannot be read.
            EnvironmentProblem: the package ``runpod`` is missing.
        """
        return read_balance(account(), self._sleep)

    def offers(self, wishes: Sequence[Wish], terms: Terms = ORDINARY) -> list[Offer]:
        found: list[Offer] = []
        with self._rest() as rest:
            for count in sorted({wish.count for wish in wishes} or {1}):
                bids = lowest_bids(account(), count, self._sleep) if terms.spot else {}
                for cloud in CLOUDS:
                    for gpu in read_catalog(rest, cloud, count):
                        found += offers_of(gpu, cloud, count, terms, bids)
        return found

    def create(self, order: Order) -> Machine:
        offer = _checked(order)
        doing = f"rent {order.name}"
        # An echo of the request in an answer may be cut: the part that is the capability is hidden by itself too.
        secrets = (order.ticket_url, order.ticket_url.partition("?")[2])
        try:
            with self._rest(secrets) as rest:
                if offer.spot:
                    pod = {"id": self._rent_spot(rest, order, offer, doing, secrets), "name": order.name}
                else:
                    pod = rest.create("/v2/pods", _pod_body(order, offer), doing)
                self._ids[order.name] = pod["id"]
                return _machine(self._with_real_rate(rest, pod))
        except (CreateUnknown, KeyboardInterrupt):
            self._doubtful[order.name] = self._clock()
            raise
        except ApiError as exc:
            if exc.status != 402:
                raise
            raise ApiError(402, exc.what + self._balance_note(), effect=exc.effect, hint=exc.hint) from exc

    def find(self, name: str, machine_id: str | None = None) -> Machine | None:
        self._know(name, machine_id)
        with self._rest() as rest:
            while True:
                pod = self._first(rest, name)
                if pod is not None:
                    self._ids[name] = pod["id"]
                    self._doubtful.pop(name, None)
                    return _machine(pod)
                if not self._in_doubt(name):
                    return None
                self._sleep(LOOK_EVERY)

    def machines(self) -> list[Machine]:
        with self._rest() as rest:
            ours = [pod for pod in _listed(rest) if parse_machine_name(str(pod.get("name")))]
        return sorted((_machine(pod) for pod in ours), key=lambda m: (m.name, m.id))

    def log(self, name: str) -> str:
        with self._rest() as rest:
            pod = self._first(rest, name)
            if pod is None:
                return ""
            params: dict[str, str | int] = {"tail": LOG_LINES}
            path = f"/v2/pods/{quote(pod['id'], safe='')}/logs"
            lines = rest.lines(path, f"read the console of {name}", params, LOG_QUIET, LOG_AT_MOST)
        entries = [(str(e.get("source")), str(e.get("line", ""))) for e in events(lines)]
        return "".join(f"{'' if source == 'container' else f'[{source}] '}{line}\n" for source, line in entries)

    def terminate(self, name: str, machine_id: str | None = None) -> None:
        """All pods of that name: an order that was carried out twice has two, and both are billed."""
        self._know(name, machine_id)
        try:
            self._terminate(name)
        except ProviderError as exc:
            exc.effect = f"{name} may still be there, and is billed until it is gone"
            raise

    def _terminate(self, name: str) -> None:
        until = self._clock() + END_WITHIN
        gone: set[str] = set()
        with self._rest() as rest:
            while True:
                known = [self._ids[name]] if name in self._ids else []
                left = [i for i in dict.fromkeys([*known, *_ids_of(rest, name)]) if i not in gone]
                problem = _end_all(rest, left, name)
                gone |= {pod_id for pod_id in left if _read(rest, pod_id) is None}
                left = [i for i in left if i not in gone]
                if not left and (gone or not self._in_doubt(name)):
                    self._ids.pop(name, None)
                    self._doubtful.pop(name, None)
                    return
                if problem is not None:
                    raise problem
                if self._clock() > until:
                    raise _still_there(name, left)
                self._sleep(LOOK_EVERY)

    def _know(self, name: str, machine_id: str | None) -> None:
        """Another process may have created it: reading by its id does not lag behind, as the list does."""
        if machine_id is not None:
            self._ids.setdefault(name, machine_id)

    def _rest(self, secrets: Sequence[str] = ()) -> Rest:
        return Rest(account(), sleep=self._sleep, timeout=self._timeout, secrets=secrets)

    def _first(self, rest: Rest, name: str) -> Pod | None:
        """The pod of that name: one that is not ended before one that is, then the oldest."""
        if name in self._ids and (pod := _read(rest, self._ids[name])) is not None:
            return pod
        pods = [pod for pod_id in _ids_of(rest, name) if (pod := _read(rest, pod_id)) is not None]
        return min(pods, key=lambda p: (_state(p) == "ended", str(p.get("createdAt"))), default=None)

    def _in_doubt(self, name: str) -> bool:
        """Whether a pod of that name may exist that no list shows yet."""
        since = self._doubtful.get(name)
        return since is not None and self._clock() < since + LIST_LAG

    def _with_real_rate(self, rest: Rest, pod: Pod) -> Pod:
        """The pod, read again: what it costs is not what was quoted. It exists, so nothing here may fail."""
        for attempt in range(3):
            if attempt:
                self._sleep(LOOK_EVERY)
            try:
                read = _read(rest, pod["id"])
            except ProviderError:
                break
            if read is not None:
                pod = read
                if _machine(pod).rate_usd is not None:
                    break
        return pod

    def _rent_spot(self, rest: Rest, order: Order, offer: Offer, doing: str, secrets: Sequence[str]) -> str:
        """In each of the data centers in turn: unlike REST, the spot call takes one."""
        body = _spot_body(order, offer, cuda_versions(rest, offer))
        refused: NoCapacity | None = None
        for center in order.data_centers or ("",):
            try:
                return rent_spot(account(), body | ({"dataCenterId": center} if center else {}), doing, secrets)
            except NoCapacity as exc:
                refused = exc
        assert refused is not None
        raise refused

    def _balance_note(self) -> str:
        """For a message about too little money; best effort, since the package may not be installed."""
        try:
            return f" (the balance is ${self.balance().usd:.2f})"
        except CloudftError:
            return ""


def _checked(order: Order) -> Offer:
    """Refuse here what the service would take and bill."""
    if order.offer is None or order.offer.provider != RunpodProvider.name:
        raise _bad_order(order, "no offer of RunPod's was chosen", "see them:  cloudft offers")
    if order.image is None or not re.search(r"@sha256:[0-9a-f]+$", order.image):
        raise _bad_order(order, "the training image must be named by its digest", "make and push it:  cloudft build")
    for variable, secret in order.secrets.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable) or variable.startswith(("CLOUDFT_", "RUNPOD_")):
            raise _bad_order(order, f"a secret cannot become the variable {variable!r}", "name another in cloudft.yaml")
        if not re.fullmatch(r"[A-Za-z0-9_-]+", secret):
            # The value itself may stand there by mistake: it is not shown.
            raise _bad_order(
                order, f"the secret for {variable} is no name of a secret", "make it in RunPod's console under Secrets"
            )
    if len(order.secrets) + 2 > MOST_ENV:
        raise _bad_order(order, f"RunPod takes at most {MOST_ENV} variables", "name fewer secrets")
    lowest = order.offer.rate_usd
    if order.offer.spot and order.bid_usd is not None and order.bid_usd < lowest:
        raise NoCapacity(
            f"cannot rent {order.name}: the lowest bid is ${lowest:.3f}/h, above the ceiling of ${order.bid_usd:.3f}/h",
            effect=NOTHING_RENTED,
            hint="a higher ceiling would do, or another offer:  cloudft offers --spot",
        )
    return order.offer


def _bad_order(order: Order, why: str, hint: str) -> ProviderError:
    return ProviderError(f"cannot rent {order.name}: {why}", effect=NOTHING_RENTED, hint=hint)


def _environment(order: Order) -> dict[str, str]:
    """All that the machine is told: its end, its ticket, and which of the account's secrets it gets."""
    references = {variable: f"{{{{ RUNPOD_SECRET_{secret} }}}}" for variable, secret in order.secrets.items()}
    return {ENV_DEADLINE: str(order.deadline), ENV_TICKET: order.ticket_url, **references}


def _pod_body(order: Order, offer: Offer) -> dict[str, Any]:
    """A CreatePodRequest of REST v2. The image's entrypoint is the supervisor: no arguments, no ports, no volume."""
    body: dict[str, Any] = {
        "name": order.name,
        "image": order.image,
        "gpu": {"id": offer.id, "count": offer.count, "minCudaVersion": MIN_CUDA},
        "cloud": offer.cloud,
        "disk": order.disk_gb,
        "env": _environment(order),
    }
    if order.data_centers:
        body["dataCenterIds"] = list(order.data_centers)
    if order.registry:
        body["registry"] = order.registry
    return body


def _spot_body(order: Order, offer: Offer, versions: Sequence[str]) -> dict[str, Any]:
    """A PodRentInterruptableInput of GraphQL; the bid is the offer's, the lowest, for each GPU."""
    gpus = (offer.rate_usd - disk_rate(order.disk_gb)) / offer.count
    body: dict[str, Any] = {
        "name": order.name,
        "imageName": order.image,
        "gpuTypeId": offer.id,
        "gpuCount": offer.count,
        # Up to the next hundredth of a cent: a rounding error must not bid below the lowest.
        "bidPerGpu": math.ceil(round(gpus, 7) * 1e4) / 1e4,
        "cloudType": Enum(offer.cloud),
        "containerDiskInGb": order.disk_gb,
        "volumeInGb": 0,
        "allowedCudaVersions": list(versions),
        "env": [{"key": key, "value": value} for key, value in _environment(order).items()],
        # Taken and not acted on by the service; sent in case that it is one day.
        "terminateAfter": datetime.datetime.fromtimestamp(order.deadline, tz=datetime.UTC).isoformat(),
    }
    if order.registry:
        body["containerRegistryAuthId"] = order.registry
    return body


def _listed(rest: Rest) -> list[Pod]:
    """All pods of the account that are not terminated; the list has no pages."""
    pods = rest.get("/v2/pods", "list the machines at RunPod").get("pods")
    if not isinstance(pods, list):
        raise ProviderError("cannot list the machines at RunPod: the answer has no list of pods")
    return [pod for pod in pods if isinstance(pod.get("id"), str) and pod.get("status") != "TERMINATED"]


def _ids_of(rest: Rest, name: str) -> list[str]:
    return [pod["id"] for pod in _listed(rest) if pod.get("name") == name]


def _read(rest: Rest, pod_id: str) -> Pod | None:
    """One pod as it is now; None when it is gone."""
    try:
        pod = rest.get(_path(pod_id), f"read pod {pod_id}")
    except ApiError as exc:
        if exc.status == 404:
            return None
        raise
    return None if pod.get("status") == "TERMINATED" else pod | {"id": pod_id}


def _path(pod_id: str) -> str:
    return f"/v2/pods/{quote(pod_id, safe='')}"


def _end_all(rest: Rest, pod_ids: Sequence[str], name: str) -> ProviderError | None:
    """Ask for the end of each; a refusal for one must not keep the others. A conflict (409) may pass."""
    problem: ProviderError | None = None
    for pod_id in pod_ids:
        try:
            rest.delete(_path(pod_id), f"end pod {pod_id} of {name}")
        except ProviderError as exc:
            if not (isinstance(exc, ApiError) and exc.status == 409):
                problem = exc
    return problem


def _still_there(name: str, pod_ids: Sequence[str]) -> ProviderError:
    pods = ", ".join(pod_ids) or "its pod"
    return ProviderError(
        f"{name} ({pods}) is still there {END_WITHIN:.0f} s after RunPod was told to end it",
        hint=f"try again:  cloudft reap    or end it by hand at {CONSOLE}",
    )


def _state(pod: Pod) -> Literal["starting", "running", "ended"]:
    status = pod.get("status")
    if status in ("EXITED", "ERROR", "TERMINATED"):
        return "ended"
    # RUNNING is said before the container runs: only then has the pod a runtime. A status that is not known is
    # taken for one that costs.
    starts = status in (None, "PROVISIONING", "STARTING") or (status == "RUNNING" and pod.get("runtime") is None)
    return "starting" if starts else "running"


def _machine(pod: Pod) -> Machine:
    gpu = pod.get("gpu")
    parts = (
        pod.get("status"),
        gpu.get("id") if isinstance(gpu, dict) else None,
        pod.get("cloud"),
        pod.get("dataCenterId"),
    )
    return Machine(
        provider=RunpodProvider.name,
        id=pod["id"],
        name=str(pod.get("name")),
        state=_state(pod),
        rate_usd=_rate(pod),
        created_at=_epoch(pod.get("createdAt")),
        detail=", ".join(str(part) for part in parts if part),
    )


def _rate(pod: Pod) -> float | None:
    """Dollars per hour with the disk, None where it is not known.

    The service shows no cost for a pod that has stopped; what it cost while it ran is not known from that.
    """
    cost, disk = pod.get("cost"), pod.get("disk")
    if not isinstance(cost, int | float) or not isinstance(disk, int):
        return None
    if cost <= 0:
        return None
    return float(cost) + disk_rate(disk)


def _epoch(text: Any) -> float | None:
    try:
        moment = datetime.datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()
