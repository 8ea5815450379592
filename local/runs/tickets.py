"""Makes the ticket of an attempt: the spec, and one URL for each object that the machine may read or write."""

from __future__ import annotations

from collections.abc import Callable

from infra.gpus import find_gpu
from infra.offers import Offer
from infra.provider import Order
from infra.store import Store
from jobs.pieces import piece_names
from jobs.spec import RunSpec
from jobs.ticket import ADAPTER, ATTEMPT_OUTPUTS, RUN_OUTPUTS, SLOTS, STOP, Input, Output, Ticket
from local.runs.records import Attempt, attempt_prefix, run_prefix

# URLs outlive the deadline by a little, so that clocks that differ do not lose a result.
URL_GRACE = 900.0
# Share of the time, and bounds in seconds, that are kept to save, upload and verify.
RESERVE_SHARE, RESERVE_LEAST, RESERVE_MOST = 0.1, 5.0, 600.0

# An object takes one request, and S3 takes 5 GB in one.
PIECE_BYTES = 4_000_000_000
# A full fine-tune's bytes for each weight. The result has 16 bits, or 32 where it is taken from a checkpoint that holds
# no best; of a checkpoint the weight, the optimiser's two averages, what the stage began with and its best have 32 bits
# each, and the best has 16 once more.
RESULT_BYTES, CHECKPOINT_BYTES = 4, 22
UNKNOWN_PARAMETERS = 8_000_000_000


def save_reserve(seconds: float) -> float:
    """How many of an attempt's seconds are kept for saving, uploading and verifying."""
    return min(max(seconds * RESERVE_SHARE, RESERVE_LEAST), RESERVE_MOST)


def input_key(run_id: str, path: str) -> str:
    return f"{run_prefix(run_id)}/inputs/{path}"


def base_input(path: str) -> str:
    """Where a file of a folder base lies among the inputs."""
    return f"base/{path}"


def make_ticket(store: Store, spec: RunSpec, attempt: Attempt, heartbeat_every: float) -> Ticket:
    """The ticket for one attempt; its URLs cover this run's prefix only and end soon after the deadline."""
    until = attempt.deadline + URL_GRACE
    prefix = attempt_prefix(spec.run_id, attempt.number)

    def output(key: str) -> Output:
        return Output(put=store.url_to_put(key, until), get=store.url_to_get(key, until))

    files = {f.path: f for f in spec.data_files()} | {base_input(f.path): f for f in spec.base.files}
    inputs = tuple(
        Input(path, store.url_to_get(input_key(spec.run_id, path), until), f.sha256, f.bytes)
        for path, f in files.items()
    )
    pieces = _pieces(spec)
    outputs = {
        piece: output(f"{prefix}/{piece}")
        for name in ATTEMPT_OUTPUTS
        for piece in (pieces(name, RESULT_BYTES) if name == ADAPTER else [name])
    }
    outputs |= {
        piece: output(f"{run_prefix(spec.run_id)}/{piece}")
        for name in RUN_OUTPUTS
        for piece in (pieces(name, CHECKPOINT_BYTES) if name in SLOTS else [name])
    }
    return Ticket(
        run_id=spec.run_id,
        attempt=attempt.number,
        name=attempt.name,
        deadline=attempt.deadline,
        save_reserve=save_reserve(attempt.deadline - attempt.created_at),
        heartbeat_every=heartbeat_every,
        spec=spec.model_dump(mode="json"),
        inputs=inputs,
        outputs=outputs,
        stop=store.url_to_get(f"{prefix}/{STOP}", until),
        rented=attempt.offer.rate_usd > 0,
        gpus=attempt.offer.count,
        followed=attempt.as_long_as_may_be,
        piece_bytes=PIECE_BYTES,
    )


def _pieces(spec: RunSpec) -> Callable[[str, int], list[str]]:
    """How many objects a file of so many bytes a weight may need, by their names. An adapter's are one each."""
    parameters = 0 if spec.method != "full" else spec.base.parameters or UNKNOWN_PARAMETERS

    def names(name: str, weight_bytes: int) -> list[str]:
        # One more: tokenizer, configuration, and what else is in a tar.
        return piece_names(name, parameters * weight_bytes + (PIECE_BYTES if parameters else 0), PIECE_BYTES)

    return names


def put_ticket(store: Store, ticket: Ticket) -> str:
    """Store the ticket; the URL to it is the only thing that a machine is told."""
    key = ticket_key(ticket.run_id, ticket.attempt)
    store.put_bytes(key, ticket.to_json())
    return store.url_to_get(key, ticket.deadline + URL_GRACE)


def make_order(spec: RunSpec, attempt: Attempt, ticket_url: str) -> Order:
    """What the provider is asked for."""
    planned = attempt.offer
    offer = Offer(
        provider=planned.provider,
        id=planned.id,
        gpu=find_gpu(planned.id),
        memory_gb=planned.memory_gb,
        count=planned.count,
        rate_usd=planned.rate_usd,
        stock="unknown",
        cloud=planned.cloud,
        spot=planned.spot,
        memory_gib=planned.memory_gib,
    )
    machine = spec.machine
    return Order(
        name=attempt.name,
        ticket_url=ticket_url,
        deadline=attempt.deadline,
        image=spec.image,
        offer=offer if planned.rate_usd > 0 else None,
        disk_gb=machine.disk_gb,
        data_centers=machine.data_centers,
        registry=machine.registry,
        secrets=machine.secrets,
        bid_usd=planned.rate_usd if planned.spot else None,
    )


def ticket_key(run_id: str, attempt: int) -> str:
    return f"{attempt_prefix(run_id, attempt)}/ticket.json"
