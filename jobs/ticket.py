"""The ticket: the spec plus presigned URLs, and all that a machine gets.

It holds no account's keys: each URL reads or writes one object of this run and stops working soon after
the deadline. The supervisor reads it, so this module is standard library only.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

SCHEMA_VERSION = 1

# Names of the objects that a machine writes, below the run's (`RUN_OUTPUTS`) or the attempt's prefix (all others).
RESULT = "result.json"
# A checkpoint goes to the slot that does not hold the newest one, then CHECKPOINT says where it is: a machine that is
# lost in the middle leaves the older one whole. They belong to the run, since the next attempt goes on from them.
CHECKPOINT = "checkpoint.json"
SLOTS = ("checkpoint-0.tar", "checkpoint-1.tar")
RUN_OUTPUTS = (RESULT, CHECKPOINT, *SLOTS)
OUTCOME = "outcome.json"
HEARTBEAT = "heartbeat.json"
LOG = "train.log"
METRICS = "metrics.jsonl"
ADAPTER = "adapter.tar"
# What the trainer found in the tokens before it began, and the files of trackers that keep theirs on the machine.
AUDIT = "audit.json"
TRACKING = "tracking.tar"
ATTEMPT_OUTPUTS = (OUTCOME, HEARTBEAT, LOG, METRICS, ADAPTER, AUDIT, TRACKING)
# Written by the user's side: a machine that finds it stops softly. It works at every provider alike.
STOP = "stop"

# Environment of the machine. The deadline stands beside the ticket's URL, not inside the ticket: it must be
# known even when the ticket cannot be read.
ENV_DEADLINE = "CLOUDFT_DEADLINE"
ENV_TICKET = "CLOUDFT_TICKET_URL"
ENV_WORK = "CLOUDFT_WORK"


class TicketError(ValueError):
    """The ticket is not one that this version can read."""


@dataclass(frozen=True)
class Input:
    """A file to fetch before training. ``path`` is relative to the ``inputs`` folder."""

    path: str
    url: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Output:
    """Where one object goes: ``put`` writes it, ``get`` reads it back to prove that it arrived."""

    put: str
    get: str


@dataclass(frozen=True)
class Ticket:
    """Everything one attempt needs.

    Units: ``deadline`` is seconds since the epoch, after which the machine may cost nothing more;
    ``save_reserve`` the seconds before it that are kept for saving, uploading and verifying;
    ``heartbeat_every`` seconds. ``stop`` reads the object by which the user asks for a soft stop. ``rented``: the
    provider may take the machine away, so a SIGTERM is not the user's wish. ``gpus``: so many train together.
    ``followed``: the deadline is the machine's and not the run's, which then goes on elsewhere.
    """

    run_id: str
    attempt: int
    name: str
    deadline: float
    save_reserve: float
    heartbeat_every: float
    spec: dict[str, Any]
    inputs: tuple[Input, ...]
    outputs: dict[str, Output]
    stop: str
    rented: bool = False
    gpus: int = 1
    followed: bool = False
    # A larger file is cut into several objects (``jobs.pieces``).
    piece_bytes: int = 4_000_000_000
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_json(cls, raw: bytes) -> Ticket:
        """Parse a ticket. Raises ``TicketError`` for a broken one or one of another version."""
        try:
            data = json.loads(raw)
            version = data["schema_version"]
            if version != SCHEMA_VERSION:
                raise TicketError(f"the ticket has version {version}, this image reads version {SCHEMA_VERSION}")
            data["inputs"] = tuple(Input(**item) for item in data["inputs"])
            data["outputs"] = {key: Output(**item) for key, item in data["outputs"].items()}
            return cls(**data)
        except (KeyError, TypeError, ValueError) as exc:
            if isinstance(exc, TicketError):
                raise
            raise TicketError(f"the ticket cannot be read: {exc}") from exc
