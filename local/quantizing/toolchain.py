"""The converter that turns a model folder into GGUF: upstream's own, pinned, and kept in a cache.

It is part of llama-cpp-python's source archive, so it matches the runtime library that loads its files. pip fetches
the archive, from wherever pip is configured to fetch, and checks its sha256; the needed 2 MB are unpacked, and used
offline from then on. Nothing is compiled and nothing of the archive is run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock, Timeout

from cloudft.errors import Busy, EnvironmentProblem, IntegrityError
from local.files import need_space, sha256_file, write_json
from local.progress import Progress

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
SDIST_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
SDIST_BYTES = 76_600_000

# Of the archive: the converter, the library that it writes with, and the licence that both stand under.
SUBSET = ("conversion/", "gguf-py/gguf/", "convert_lora_to_gguf.py", "LICENSE")
PREFIX = f"llama_cpp_python-{VERSION}/vendor/llama.cpp/"

INSTALL = "pip install 'cloudft[local]'"
OFFLINE = (
    "connect this computer once, then:  cloudft toolchain install"
    "    or bring the archive:  cloudft toolchain install --sdist FILE"
)


@dataclass(frozen=True)
class Toolchain:
    """An unpacked converter. ``root`` holds ``conversion/`` and ``gguf-py/``."""

    root: Path
    version: str


def cache_folder() -> Path:
    """This user's cache: ``CLOUDFT_CACHE``, or ``cloudft`` in ``XDG_CACHE_HOME``, or ``~/.cache/cloudft``."""
    if own := os.environ.get("CLOUDFT_CACHE"):
        return Path(own).expanduser().resolve()
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".cache") / "cloudft"


def ensure_toolchain(progress: Progress, sdist: Path | None = None) -> Toolchain:
    """The pinned converter, from the cache when it is whole there, else installed into it.

    Args:
        sdist: the source archive, already on this computer; default: pip fetches it (77 MB).

    Raises:
        EnvironmentProblem: it can't be had (offline, no pip, disk full).
        IntegrityError: the archive is not the pinned one.
        Busy: another process has been installing it for minutes.
    """
    home = cache_folder() / "toolchain"
    root = home / f"{PACKAGE}-{VERSION}"
    if is_whole(root):
        return Toolchain(root, VERSION)
    try:
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / ".lock", timeout=600):
            if not is_whole(root):
                _install(home, root, sdist, progress)
    except Timeout as exc:
        raise Busy(
            f"another process is installing the converter in {home}", hint="wait for it, then try again"
        ) from exc
    except OSError as exc:
        raise EnvironmentProblem(
            f"the converter can't be written to {home}: {exc.strerror}",
            effect="no model was changed",
            hint="make room there, or set CLOUDFT_CACHE to another folder",
        ) from exc
    return Toolchain(root, VERSION)


@dataclass(frozen=True)
class State:
    """What there is of the converter on this computer."""

    package: str
    version: str
    root: Path
    whole: bool
    why: str
    files: int
    bytes: int
    sdist_sha256: str


def toolchain_state() -> State:
    """Whether the pinned converter is here and whole. Fetches nothing."""
    root = cache_folder() / "toolchain" / f"{PACKAGE}-{VERSION}"
    whole = is_whole(root)
    files = [path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    why = "" if whole else "damaged, and will be installed again" if root.exists() else "not installed"
    return State(
        PACKAGE, VERSION, root, whole, why, len(files), sum(path.stat().st_size for path in files), SDIST_SHA256
    )


def remove_toolchain() -> list[Path]:
    """Remove every version of the converter from the cache, and what killed installs left there.

    Raises:
        Busy: one is being installed.
    """
    home = cache_folder() / "toolchain"
    if not home.is_dir():
        return []
    try:
        with FileLock(home / ".lock", timeout=0):
            found = sorted(path for path in home.iterdir() if path.is_dir())
            for path in found:
                # Renamed first, so that a removal that is killed leaves debris and no half of a converter.
                gone = path if path.name.startswith(".new-") else path.replace(home / f".new-{path.name}")
                shutil.rmtree(gone)
    except Timeout as exc:
        raise Busy(f"the converter is being installed in {home}", hint="wait for it, then try again") from exc
    return [path for path in found if not path.name.startswith(".new-")]


def is_whole(root: Path) -> bool:
    """Whether every file of an unpacked converter has the bytes that it was unpacked with."""
    try:
        files = json.loads((root / "files.json").read_text())["files"]
        return bool(files) and all(sha256_file(root / name) == sha for name, sha in files.items())
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def _install(home: Path, root: Path, sdist: Path | None, progress: Progress) -> None:
    """Fetch, check, unpack beside, rename. Runs under the lock, so what else lies there is debris."""
    for debris in home.glob(".new-*"):
        shutil.rmtree(debris, ignore_errors=True)
    need_space(home, 2 * SDIST_BYTES, "the converter")
    new = Path(tempfile.mkdtemp(dir=home, prefix=".new-"))
    try:
        progress("fetch converter", 0, None, "", f"{PACKAGE} {VERSION}, source archive")
        archive = sdist or _download(new)
        if not archive.is_file() or sha256_file(archive) != SDIST_SHA256:
            raise IntegrityError(
                f"{archive} is not the source archive of {PACKAGE} {VERSION}: its sha256 differs",
                effect="nothing was installed",
                hint="leave it to cloudft to fetch the archive, or get it again",
            )
        progress("unpack converter")
        _unpack(archive, new / "root")
        shutil.rmtree(root, ignore_errors=True)
        (new / "root").replace(root)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _unpack(archive: Path, root: Path) -> None:
    """The subset of the archive, with a list of its files and their sha256."""
    files: dict[str, str] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.removeprefix(PREFIX)
            if not member.isfile() or name == member.name or not name.startswith(SUBSET) or ".." in name:
                continue
            source = tar.extractfile(member)
            assert source is not None  # a regular file has contents
            target = root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with source, target.open("wb") as out:
                shutil.copyfileobj(source, out)
            files[name] = sha256_file(target)
    write_json(root / "files.json", {"version": VERSION, "sdist_sha256": SDIST_SHA256, "files": files})


# pip can't download a source archive without asking its build system for metadata. The archive's own build system
# would be fetched (with cmake) just to repeat the name and version; this one answers in its place.
STAND_IN = f"""
from pathlib import Path

def get_requires_for_build_wheel(config_settings=None):
    return []

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = Path(folder) / "llama_cpp_python-{VERSION}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: llama_cpp_python\\nVersion: {VERSION}\\n")
    (info / "WHEEL").write_text("Wheel-Version: 1.0\\nGenerator: cloudft\\nTag: py3-none-any\\n")
    return info.name
"""


def _download(folder: Path) -> Path:
    """Let pip fetch the archive, with pip's own configuration of indexes, proxies and certificates."""
    if find_spec("pip") is None:
        raise _unavailable("this Python has no pip", f"install it:  {sys.executable} -m ensurepip")
    backend = folder / "backend" / "scikit_build_core"
    backend.mkdir(parents=True)
    (backend / "__init__.py").touch()
    (backend / "build.py").write_text(STAND_IN)
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SDIST_SHA256}\n")
    path = os.pathsep.join(filter(None, [str(backend.parent), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-binary", PACKAGE, "--no-build-isolation"]
    command += ["--require-hashes", "--requirement", str(requirement), "--dest", str(folder)]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    archives = list(folder.glob("*.tar.gz"))
    if done.returncode != 0 or not archives:
        if "DO NOT MATCH THE HASHES" in done.stderr:
            raise IntegrityError(
                f"what pip fetched as {PACKAGE} {VERSION} is not the pinned archive: its sha256 differs",
                effect="it was thrown away; no model was changed",
                hint="look at the package index that pip is configured to use",
            )
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = errors[-1].removeprefix("ERROR: ") if errors else f"pip ended with code {done.returncode}"
        raise _unavailable(f"pip could not fetch it: {reason}", OFFLINE)
    return archives[0]


def _unavailable(why: str, hint: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"the converter ({PACKAGE} {VERSION}, source archive) is not in {cache_folder()}, and {why}",
        effect="no model was changed",
        hint=hint,
    )


def require_packages() -> None:
    """Refuse early, before gigabytes are read, when a package that merging needs is missing.

    Raises:
        EnvironmentProblem: names what is missing, or which llama-cpp-python does not match the converter.
    """
    needed = {"torch": "torch", "transformers": "transformers", "peft": "peft", "llama_cpp": PACKAGE}
    missing = [name for module, name in needed.items() if find_spec(module) is None]
    if missing:
        raise EnvironmentProblem(
            f"merging and quantising need {', '.join(missing)}, which this Python does not have",
            effect="no model was changed",
            hint=f"install what home needs:  {INSTALL}",
        )
    try:
        found = version(PACKAGE)
    except PackageNotFoundError:
        found = "unknown"
    if found != VERSION:
        raise EnvironmentProblem(
            f"{PACKAGE} {found} is installed, but the converter belongs to {VERSION}",
            effect="no model was changed",
            hint=f"install the matching one:  {INSTALL}",
        )
