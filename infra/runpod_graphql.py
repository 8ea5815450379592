"""What RunPod's REST v2 lacks, through GraphQL: the balance, the lowest bids, and spot machines.

The ``runpod`` package carries the requests (``run_graphql_query``). Its ``create_pod`` is never called: it puts every
value into the query as raw text, so that a quote in one breaks the query, or adds fields to it.
"""

from __future__ import annotations

import json
import logging
import math
import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from cloudft.errors import EnvironmentProblem, ProviderError
from infra.provider import NoCapacity
from infra.runpod_rest import (
    FIRST_PAUSE,
    NOTHING_CHANGED,
    NOTHING_RENTED,
    TRIES,
    Account,
    Unanswered,
    refusal,
    unknown,
)
from infra.words import clean

NAME = re.compile(r"[_A-Za-z][_0-9A-Za-z]*")
# Errors come with a code, which the package drops: these words say "no". Any other error leaves a doubt.
NO = re.compile(
    r"unauthorized|forbidden|access denied|syntax error|cannot query field|is not defined by type|is required"
    r"|is not known|unknown data center|credential not found|at most \d|insufficient|\bbalance\b|spend limit",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Balance:
    """An account's money: dollars left, dollars per hour being spent now, and the most per hour that may be."""

    usd: float
    spend_per_hour: float
    limit_per_hour: float | None


@dataclass(frozen=True)
class Bid:
    """The lowest bid for one GPU, in dollars per hour, and the stock as the service words it; None: no machine."""

    usd: float
    stock: str | None


class Enum(str):
    """A word that stands in a query without quotes."""


def literal(value: Any) -> str:
    """A value as GraphQL text, whatever is in it.

    A JSON string is a valid GraphQL string, so nothing can break out of its quotes.

    Raises:
        ValueError: GraphQL has no such value: NaN, infinity, half a surrogate pair, a name with other characters.
    """
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case Enum():
            return _name(value)
        case str():
            value.encode()  # UnicodeEncodeError, a ValueError, for half a surrogate pair.
            return json.dumps(value)
        case int():
            return str(value)
        case float():
            if not math.isfinite(value):
                raise ValueError(f"GraphQL has no {value}")
            return repr(value)
        case Mapping():
            return "{" + ", ".join(f"{_name(key)}: {literal(item)}" for key, item in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(literal(item) for item in value) + "]"
    raise ValueError(f"GraphQL has no {type(value).__name__}")


def _name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise ValueError(f"{text!r} is no GraphQL name")
    return str(text)


def read_balance(account: Account, sleep: Callable[[float], None] = time.sleep) -> Balance:
    """The account's money. Raises ``ProviderError`` or ``EnvironmentProblem``."""
    query = "query { myself { clientBalance currentSpendPerHr spendLimit } }"
    myself = _read(account, query, "read the balance", sleep).get("myself") or {}
    if not isinstance(myself.get("clientBalance"), int | float):
        raise ProviderError("cannot read the balance: the answer has none", effect=NOTHING_CHANGED)
    limit = myself.get("spendLimit")
    return Balance(
        float(myself["clientBalance"]),
        float(myself.get("currentSpendPerHr") or 0.0),
        float(limit) if isinstance(limit, int | float) else None,
    )


def lowest_bids(
    account: Account, count: int, sleep: Callable[[float], None] = time.sleep
) -> dict[tuple[str, str], Bid]:
    """The lowest bids for machines of ``count`` GPUs, by GPU id and cloud (SECURE, COMMUNITY).

    Raises:
        ProviderError: the service refuses, or cannot be reached.
        EnvironmentProblem: the package is missing.
    """
    clouds = {"SECURE": True, "COMMUNITY": False}
    parts = [
        f"{cloud}: lowestPrice(input: {literal({'gpuCount': count, 'secureCloud': secure})}) "
        "{ minimumBidPrice stockStatus }"
        for cloud, secure in clouds.items()
    ]
    data = _read(account, f"query {{ gpuTypes {{ id {' '.join(parts)} }} }}", "read the spot prices", sleep)
    found: dict[tuple[str, str], Bid] = {}
    for gpu in data.get("gpuTypes") or []:
        for cloud in clouds:
            price = gpu.get(cloud) or {}
            bid = price.get("minimumBidPrice")
            if isinstance(bid, int | float) and math.isfinite(bid) and bid > 0:
                found[gpu["id"], cloud] = Bid(float(bid), price.get("stockStatus"))
    return found


def rent_spot(account: Account, order: Mapping[str, Any], doing: str, secrets: Collection[str]) -> str:
    """Rent a spot machine, once; its id. ``order`` is the service's PodRentInterruptableInput.

    Raises:
        NoCapacity, ProviderError: nothing was rented.
        CreateUnknown: a machine may exist.
        EnvironmentProblem: the package is missing.
    """
    query = f"mutation {{ podRentInterruptable(input: {literal(order)}) {{ id }} }}"
    try:
        data = _run(account, query, doing, NOTHING_RENTED, secrets)
    except Unanswered as exc:
        raise unknown(doing, exc.what) from exc
    pod_id = (data.get("podRentInterruptable") or {}).get("id")
    if not isinstance(pod_id, str):
        raise unknown(doing, "the answer names no machine")
    return pod_id


def _read(account: Account, query: str, doing: str, sleep: Callable[[float], None]) -> dict[str, Any]:
    """A query that changes nothing, and so may be repeated."""
    for attempt in range(TRIES):
        try:
            return _run(account, query, doing, NOTHING_CHANGED, ())
        except Unanswered as exc:
            if attempt == TRIES - 1:
                raise ProviderError(f"cannot {doing}: {exc.what}", effect=NOTHING_CHANGED) from exc
        sleep(FIRST_PAUSE * 2**attempt)
    raise AssertionError("unreachable")


def _run(account: Account, query: str, doing: str, effect: str, secrets: Collection[str]) -> dict[str, Any]:
    """Send a query and translate what the package raises; ``Unanswered`` where a doubt is left."""
    send = _package()
    from requests.exceptions import ConnectionError as RequestsConnectionError
    from requests.exceptions import RequestException
    from runpod.error import AuthenticationError, QueryError

    hidden = (account.key, *secrets)
    try:
        reply = send(query, api_key=account.key)
    except AuthenticationError as exc:
        raise refusal(401, "the key is not accepted", doing, effect) from exc
    except QueryError as exc:
        detail = clean(str(exc), hidden)
        # It carries the whole query, and with it the machine's environment, to whoever prints it.
        exc.query, exc.message, exc.args = None, detail, (detail,)
        raise _refused(detail, doing, effect) from exc
    except RequestsConnectionError as exc:
        if _never_sent(exc):
            raise ProviderError(f"cannot {doing}: RunPod cannot be reached", effect=effect) from exc
        raise Unanswered(f"the connection broke ({type(exc).__name__})") from exc
    except RequestException as exc:
        raise Unanswered(f"no answer that can be read ({type(exc).__name__})") from exc
    data = reply.get("data")
    if isinstance(data, dict):
        return data
    status, detail = reply.get("status"), clean(str(reply.get("detail") or ""), hidden)
    if isinstance(status, int) and 400 <= status < 500:
        raise refusal(status, detail, doing, effect)
    raise Unanswered("the answer has no data")


def _refused(detail: str, doing: str, effect: str) -> ProviderError:
    """A GraphQL error; it has no code that would reach us."""
    error = refusal(400, detail, doing, effect)
    if isinstance(error, NoCapacity):
        return error
    if re.search(r"\bbid must\b", detail, re.IGNORECASE):
        return NoCapacity(error.what, effect=effect, hint="the price has moved; see it:  cloudft offers --spot")
    if re.search(r"insufficient|\bbalance\b", detail, re.IGNORECASE):
        return refusal(402, detail, doing, effect)
    if re.search(r"unauthorized|forbidden|access denied", detail, re.IGNORECASE):
        return refusal(403, detail, doing, effect)
    return error if NO.search(detail) else Unanswered(detail)


def _never_sent(exc: Exception) -> bool:
    """Whether the connection was never made, as far as the package's HTTP library tells."""
    from requests.exceptions import ConnectTimeout
    from urllib3.exceptions import NewConnectionError

    reason = getattr(exc.args[0] if exc.args else None, "reason", None)
    return isinstance(exc, ConnectTimeout) or isinstance(reason, NewConnectionError)


def _package() -> Callable[..., dict[str, Any]]:
    """The package's way to send a query; its import installs a root log handler, which is undone."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        from runpod.api.graphql import run_graphql_query
    except ImportError as exc:
        raise EnvironmentProblem(
            "RunPod's balance and spot machines need the package runpod",
            effect=NOTHING_CHANGED,
            hint="install it:  pip install 'cloudft[runpod]'",
        ) from exc
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    send: Callable[..., dict[str, Any]] = run_graphql_query
    return send
