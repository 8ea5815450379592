"""Versions: the models that can be served, with their lineage, and which one is current.

A version is a folder that was renamed into place when it was whole; ``models/current`` is a relative symbolic link,
replaced in one step, so that a server sees the old version or the new one and nothing between.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from cloudft.errors import EnvironmentProblem, IntegrityError, NotFound
from local.project import Project
from local.quantizing.verify import Verification

MODEL = "model.gguf"
MANIFEST = "manifest.json"
TEMPLATE = "chat_template.jinja"
PROMPTS = "prompts.json"  # conversations with the token ids that training makes of them, for a server to be asked
BASES = "bases"
LADDER = "ladder"  # files of 16 bits that are measured and removed


class Manifest(BaseModel):
    """Where a model file comes from, and what was found when it was verified.

    ``run_id`` None: a model as it is. ``merge`` says how the adapter was merged, empty without one.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: Literal[1] = 1
    version: str
    run_id: str | None
    base_id: str
    base_revision: str
    adapter_sha256: str | None
    spec_sha256: str | None
    type: str
    merge: str = ""
    imatrix: bool = False
    gguf_sha256: str
    gguf_bytes: int
    llama_cpp_python: str
    created_at: str
    verification: Verification


@dataclass(frozen=True)
class Version:
    """One model that can be served."""

    root: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.manifest.version

    @property
    def gguf(self) -> Path:
        return self.root / MODEL


def read_version(root: Path) -> Version:
    """The version in a folder.

    Raises:
        NotFound: there is none.
        IntegrityError: its manifest is damaged, or the model file is missing or of another size.
    """
    try:
        text = (root / MANIFEST).read_text(encoding="utf-8")
    except OSError as exc:
        raise NotFound(f"{root} holds no version", hint="make one:  cloudft quantize") from exc
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as exc:
        raise IntegrityError(f"{root / MANIFEST} is damaged", hint="make it again:  cloudft quantize") from exc
    model = root / MODEL
    if not model.is_file() or model.stat().st_size != manifest.gguf_bytes:
        raise IntegrityError(
            f"{model} is missing or not whole: {manifest.gguf_bytes} bytes were made",
            hint="make it again:  cloudft quantize",
        )
    return Version(root, manifest)


def list_versions(project: Project) -> list[Version]:
    """All whole versions, oldest first."""
    if not project.models.is_dir():
        return []
    found = []
    for root in project.models.iterdir():
        if root.is_symlink() or root.name.startswith(".") or not (root / MANIFEST).is_file():
            continue
        try:
            found.append(read_version(root))
        except IntegrityError:
            continue  # it can't be served, and asking for it by name says why
    return sorted(found, key=lambda version: (version.manifest.created_at, version.name))


def current(project: Project) -> Version | None:
    """The version that is served; None before the first.

    Raises:
        NotFound, IntegrityError: the link leads nowhere, or to a damaged version.
    """
    if not project.current_model.is_symlink():
        return None
    return read_version(project.current_model.resolve())


def promote(project: Project, version: str) -> Version:
    """Make a version the one that is served. Servers read it when they start again.

    Raises:
        NotFound: no such version; names those that there are.
        IntegrityError: it is damaged.
        EnvironmentProblem: ``models/current`` is a file or folder of somebody's.
    """
    root = project.models / version
    if not version or Path(version).name != version or not (root / MANIFEST).is_file() or root.is_symlink():
        known = ", ".join(v.name for v in list_versions(project)) or "none"
        raise NotFound(
            f"no version {version!r} in {project.models}",
            effect="what is served stays as it is",
            hint=f"the versions are: {known}",
        )
    found = read_version(root)
    link = project.current_model
    if link.exists() and not link.is_symlink():
        raise EnvironmentProblem(
            f"{link} is no symbolic link, so it was not made by cloudft",
            effect="what is served stays as it is",
            hint="move it away, then type the same command again",
        )
    new = link.with_name(f".current-{secrets.token_hex(4)}")
    new.symlink_to(version, target_is_directory=True)
    try:
        new.replace(link)
    finally:
        new.unlink(missing_ok=True)
    return found
