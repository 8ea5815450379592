"""The lock of an image: what is inside, from what it was made, and where it lies."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationError

from jobs.backends import Backend
from jobs.spec import SHA256, Frozen

# Labels of the image itself, so that it can be asked without this computer's files.
LABEL_CONTENT = "cloudft.content"
LABEL_CONTENTS = "cloudft.lock"


class Contents(Frozen):
    """What is inside: the base by digest (by the engine's id if it came from no registry), and every package."""

    base: str
    base_pinned: str
    platform: str
    backend: Backend = Field(default="trl", description="Who can compute a training in it.")
    python: str
    packages: dict[str, str] = Field(description="Name → version of every installed Python package.")


class ImageLock(Frozen):
    """``image.lock.json``.

    ``content`` is the sha256 over all that the image was made from; equal contents are not built twice.
    ``bytes`` is the size unpacked, ``pull_bytes`` what a machine downloads; None where it could not be read.
    """

    schema_version: Literal[1] = 1
    image: str = Field(description="repository@sha256:…, or the engine's id of an image that was not pushed.")
    tag: str
    content: str = Field(pattern=SHA256)
    contents: Contents | None
    bytes: int | None = None
    pull_bytes: int | None = None


def contents_of(labels: dict[str, str]) -> Contents | None:
    """What an image's own label says; None without one, or with one that another version wrote."""
    try:
        return Contents.model_validate_json(labels.get(LABEL_CONTENTS, ""))
    except ValidationError:
        return None
