"""One file as several objects of a store. Standard library only.

A presigned URL takes one request, and S3 takes 5 GB in one. An adapter fits; a full fine-tune and its checkpoints may
not, so they are cut: ``adapter.tar``, ``adapter.tar.1``, ``adapter.tar.2`` …, each read back on its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from jobs import transfer
from jobs.ticket import Output
from jobs.transfer import TransferError


def piece_name(name: str, number: int) -> str:
    """The object's name; the first piece has the file's own."""
    return f"{name}.{number}" if number else name


def piece_names(name: str, size: int, piece_bytes: int) -> list[str]:
    """Of a file of ``size`` bytes; an empty one is one object too."""
    return [piece_name(name, number) for number in range(max(1, math.ceil(size / piece_bytes)))]


def send(
    outputs: Mapping[str, Output],
    name: str,
    path: Path,
    piece_bytes: int,
    given_up: Callable[[], bool] = lambda: False,
) -> list[str]:
    """Upload a file and look that it arrived; returns the objects' names.

    Raises:
        TransferError: a piece could not be sent or reads back otherwise, or (final) the ticket has too few places.
    """
    size = path.stat().st_size
    names = piece_names(name, size, piece_bytes)
    if not set(names) <= set(outputs):
        room = sum(piece_name(name, i) in outputs for i in range(len(names))) * piece_bytes
        raise TransferError(f"{name} has {size / 1e9:.1f} GB, and the ticket has room for {room / 1e9:.0f}", final=True)
    for number, piece in enumerate(names):
        window = transfer.Window(path, number * piece_bytes, min(piece_bytes, size - number * piece_bytes))
        md5 = transfer.put_window(outputs[piece].put, window, given_up)
        if not transfer.arrived(outputs[piece].get, window, md5):
            raise TransferError(f"the uploaded {piece} is not what was sent")
    return names


def fetch(outputs: Mapping[str, Output], name: str, path: Path, sha256: str, size: int, piece_bytes: int) -> None:
    """Download a file that ``send`` sent; goes on where an earlier try ended. Raises ``TransferError``."""
    names = piece_names(name, size, piece_bytes)
    if not set(names) <= set(outputs):
        raise TransferError(f"the ticket does not know all {len(names)} pieces of {name}", final=True)
    transfer.fetch([outputs[piece].get for piece in names], path, sha256, size, piece_bytes=piece_bytes)
