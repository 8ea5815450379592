"""What a project adds to the training image: its own requirements and files, in layers above the locked libraries.

Requirements are installed under the constraints of the lock, so that they cannot pull another torch into a second
layer of gigabytes. Files lie in ``/opt/cloudft/files``, which is on PYTHONPATH after our own code.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cloudft.errors import ConfigError

# In the Dockerfile, what a project adds goes right before this line.
OURS = "COPY jobs/ /opt/cloudft/jobs/"
INSTALLS = "/opt/cloudft/requirements"

_NOTHING = "nothing was built"

# What tokens and keys look like, wherever they stand.
_SECRETS = (
    ("a private key", re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")),
    ("an AWS key", re.compile(rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b")),
    ("a Hugging Face token", re.compile(rb"\bhf_[A-Za-z0-9]{30,}")),
    ("a RunPod key", re.compile(rb"\brpa_[A-Za-z0-9]{30,}")),
    ("a GitHub token", re.compile(rb"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{40,})")),
    ("an OpenAI-style key", re.compile(rb"\bsk-(?:proj-|ant-)?[A-Za-z0-9]{32,}")),
)
# Only where addresses are used, not where a comment may show one. `ssh://git@host` has a user and no secret.
_PASSWORD = ("an address with a password", re.compile(rb"://(?:[^\s/:@]*:[^\s/@$]+|[^\s/:@$]{16,})@"))
# The value of such a variable, of at least so many characters, is a secret also when it looks like nothing.
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|API_?KEY|ACCESS_KEY|CREDENTIAL")
_SECRET_LENGTH = 12
_PIECE = 8 << 20
_OVERLAP = 4096


@dataclass(frozen=True)
class Extras:
    """Name in the project, with forward slashes → file on this computer."""

    requirements: Mapping[str, Path] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)


NONE = Extras()


def collect(root: Path, requirements: Sequence[str], files: Sequence[str]) -> Extras:
    """Find and check what a project adds. A folder means all files below it but hidden ones.

    Args:
        root: the project; everything lies inside it.

    Raises:
        ConfigError: something is not there, lies outside, cannot be read, or holds a secret.
    """
    found = Extras(
        dict(_find(root, "build.requirements", requirements, folders=False)),
        dict(_find(root, "build.files", files, folders=True)),
    )
    for key, group in (("build.requirements", found.requirements), ("build.files", found.files)):
        for name, path in group.items():
            for piece in _read(key, path):
                refuse_secret(f"{key}: {name}", piece, addresses=group is found.requirements)
    return found


def refuse_secret(where: str, content: bytes, *, addresses: bool) -> None:
    """Whoever can pull an image can read all its layers and its history.

    Args:
        addresses: look for addresses with a password too.

    Raises:
        ConfigError: ``content`` holds a key, a token or a password; the message never shows it.
    """
    known = (*_SECRETS, _PASSWORD) if addresses else _SECRETS
    kind = next((kind for kind, pattern in known if pattern.search(content)), None)
    kind = kind or next(
        (
            f"the value of {name} in your environment"
            for name, value in os.environ.items()
            if _SECRET_NAME.search(name) and len(value) >= _SECRET_LENGTH and value.encode() in content
        ),
        None,
    )
    if kind:
        raise ConfigError(
            f"{where} holds what looks like {kind}",
            effect=f"{_NOTHING}: whoever can pull an image can read everything in it",
            hint="leave it out; the machine gets secrets from its provider, see machine.secrets",
        )


def add(extras: Extras, folder: Path, dockerfile: str) -> None:
    """Put the extras into the build context ``folder``, and their layers into its Dockerfile.

    Raises:
        OSError: a file cannot be copied.
    """
    for top, group in (("requirements", extras.requirements), ("files", extras.files)):
        for name, source in group.items():
            target = folder / top / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            target.chmod(0o644)
    lines = "".join(f"{line}\n" for line in _instructions(extras))
    recipe = folder / dockerfile
    before, ours, after = recipe.read_text(encoding="utf-8").partition(f"\n{OURS}")
    assert ours, f"{dockerfile} lacks the line {OURS!r}"
    recipe.write_text(f"{before}\n{lines}{ours[1:]}{after}", encoding="utf-8")


def _instructions(extras: Extras) -> Iterator[str]:
    if extras.requirements:
        named = " ".join(f"-r {shlex.quote(f'{INSTALLS}/{name}')}" for name in extras.requirements)
        yield f"COPY requirements/ {INSTALLS}/"
        yield (
            "RUN PIP_BREAK_SYSTEM_PACKAGES=1 python -m pip install --no-cache-dir --disable-pip-version-check "
            f"--root-user-action=ignore -c /opt/cloudft/images/${{LOCK}}-constraints.txt {named}"
        )
    if extras.files:
        yield "ENV PYTHONPATH=/opt/cloudft:/opt/cloudft/files"
        yield "COPY files/ /opt/cloudft/files/"


def _find(root: Path, key: str, names: Sequence[str], *, folders: bool) -> Iterator[tuple[str, Path]]:
    top = root.resolve()
    for name in names:
        path = (top / name).resolve()
        if not path.is_relative_to(top) or path == top:
            raise ConfigError(
                f"{key}: {name} lies outside the project {top}" if path != top else f"{key}: {name} is the project",
                effect=_NOTHING,
                hint="copy what the training needs into a folder of the project, and name that",
            )
        if path.is_file():
            yield _named(key, path, top), path
        elif path.is_dir() and folders:
            yield from ((_named(key, file, top), file) for file in _below(path, top, key))
        else:
            what = "is a folder" if path.is_dir() else "is not there"
            raise ConfigError(f"{key}: {path} {what}", effect=_NOTHING, hint=f"correct {key} in cloudft.yaml")


def _below(folder: Path, top: Path, key: str) -> Iterator[Path]:
    """The files of a folder, in order. Hidden ones stay out: they are settings and secrets of this computer."""
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        if "__pycache__" in inside or any(part.startswith(".") for part in inside) or not path.is_file():
            continue
        if not path.resolve().is_relative_to(top):
            raise ConfigError(
                f"{key}: {path} is a link to a file outside the project",
                effect=_NOTHING,
                hint="put the file itself there",
            )
        yield path


def _named(key: str, path: Path, top: Path) -> str:
    name = path.relative_to(top).as_posix()
    if not name.isprintable():
        raise ConfigError(f"{key}: the name {name!r} cannot be used in an image", effect=_NOTHING, hint="rename it")
    return name


def _read(key: str, path: Path) -> Iterator[bytes]:
    """The file in pieces, each with the end of the one before, so that no secret falls between two."""
    try:
        with path.open("rb") as src:
            piece = b""
            while more := src.read(_PIECE):
                piece = piece[-_OVERLAP:] + more
                yield piece
    except OSError as exc:
        raise ConfigError(f"{key}: {path} cannot be read: {exc.strerror}", effect=_NOTHING) from exc
