"""``GET /v2/billing/pods``: the ledger in the document's time buckets."""

from __future__ import annotations

import datetime
from typing import Any

from .ledger import Ledger
from .pods import Refused, parse_rfc3339, rfc3339

DAY_S = 86_400
Moment = datetime.datetime


def bucket_start(at: Moment, size: str) -> Moment:
    """The start of the bucket that ``at`` falls into (weeks begin on Monday [assumed])."""
    if size == "hour":
        return at.replace(minute=0, second=0, microsecond=0)
    day = at.replace(hour=0, minute=0, second=0, microsecond=0)
    if size == "week":
        return day - datetime.timedelta(days=day.weekday())
    if size == "month":
        return day.replace(day=1)
    return day.replace(month=1, day=1) if size == "year" else day


def bucket_end(start: Moment, size: str) -> Moment:
    """The end of the bucket that begins at ``start``."""
    step = {"hour": 1 / 24, "day": 1, "week": 7, "month": 32, "year": 370}[size]
    later = start + datetime.timedelta(days=step)
    return bucket_start(later, size) if size in ("month", "year") else later


def window(query: dict[str, Any], now: float) -> list[tuple[float, float]]:
    """The buckets that a query means, the oldest first; ``Refused`` 400 if its parts exclude each other."""
    size = query.get("bucketSize", "day")
    moments = {name: _moment(query, name) for name in ("startTime", "endTime") if name in query}
    last_n = query.get("lastN")
    if last_n is not None and moments:
        raise Refused(400, "lastN and startTime/endTime exclude each other")
    end = moments.get("endTime", _utc(now))
    start = bucket_start(moments.get("startTime", end - datetime.timedelta(days=30)), size)
    if start >= end:
        raise Refused(400, "startTime must be before endTime")
    if last_n is not None:  # the last of them is the one in progress [doc]
        start = bucket_start(end, size)
        end = bucket_end(start, size)
        for _ in range(last_n - 1):
            start = bucket_start(start - datetime.timedelta(seconds=1), size)
    buckets: list[tuple[float, float]] = []
    while start < end or not buckets:
        until = bucket_end(start, size)
        buckets.append((start.timestamp(), until.timestamp()))
        start = until
    return buckets


def pod_billing(ledger: Ledger, query: dict[str, Any], now: float) -> dict[str, Any]:
    """The document's ListPodBillingResponse."""
    buckets = window(query, now)
    wanted = query.get("podId")
    records: list[dict[str, Any]] = []
    for start, end in buckets:
        for pod_id in ledger.pod_ids():
            gpu, disk = ledger.amounts(pod_id, start, min(end, now))
            if gpu + disk > 0 and wanted in (None, pod_id):
                period = {"startTime": rfc3339(start), "endTime": rfc3339(end)}
                records.append({**period, "podId": pod_id, **_amounts(gpu, disk)})
    totals = _amounts(sum(r["gpuAmount"] for r in records), sum(r["diskAmount"] for r in records))
    echo = {
        "startTime": rfc3339(buckets[0][0]),
        "endTime": rfc3339(buckets[-1][1]),
        "bucketSize": query.get("bucketSize", "day"),
        "podId": wanted,
    }
    unique = len({record["podId"] for record in records})
    metadata = {"query": echo, "recordCount": len(records), "uniquePodCount": unique, "totals": totals}
    return {"records": records, "metadata": metadata}


def _amounts(gpu: float, disk: float) -> dict[str, float]:
    return {"totalAmount": gpu + disk, "gpuAmount": gpu, "cpuAmount": 0.0, "diskAmount": disk}


def _moment(query: dict[str, Any], name: str) -> Moment:
    try:
        return _utc(parse_rfc3339(query[name]))
    except ValueError:
        raise Refused(422, f"{name} is not an RFC 3339 time") from None


def _utc(at: float) -> Moment:
    return datetime.datetime.fromtimestamp(at, tz=datetime.UTC)
