"""Locks what the training images install: writes ``images/<extra>-requirements.txt`` and ``<extra>-constraints.txt``.

There are two, of the extras ``train`` and ``unsloth``. The first file names what the trainer imports, each at one
version; the second pins everything that comes with it, torch's CUDA libraries too. A constraint installs nothing by
itself, so the same lock also serves a build with the CPU wheel of torch, which needs no CUDA library.

usage: python .ci/lock_train.py [--check] [EXTRA…]      (pip 23 or newer; downloads some gigabytes, installs nothing)
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("train", "unsloth")

# The Python of the image: Dockerfile.train's default base.
PYTHON = "3.11"

# The one package that `jobs` needs from the base install: the run spec is a pydantic model.
FROM_BASE = {"pydantic"}


def wanted(extra: str) -> list[str]:
    """The requirements of the extra, and those of the base install that ``jobs`` imports."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    base = [r for r in project["dependencies"] if name_of(r) in FROM_BASE]
    return sorted(project["optional-dependencies"][extra] + base)


def name_of(requirement: str) -> str:
    """The normalised name at the beginning of a requirement (PEP 503)."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    if match is None:
        raise SystemExit(f"lock: no name in the requirement {requirement!r}")
    return re.sub(r"[-_.]+", "-", match.group()).lower()


def resolve(requirements: list[str]) -> dict[str, str]:
    """Name → version of everything that pip would install for the image, in its Python."""
    with tempfile.TemporaryDirectory() as tmp:
        report = Path(tmp) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        command += ["--report", str(report), "--target", tmp, "--only-binary", ":all:"]
        subprocess.run([*command, "--python-version", PYTHON, *requirements], check=True)
        items: list[dict[str, Any]] = json.loads(report.read_text())["install"]
    return {name_of(i["metadata"]["name"]): i["metadata"]["version"] for i in items}


def render(extra: str, requirements: list[str], versions: dict[str, str]) -> tuple[str, str]:
    """The texts of the two files."""
    head = "# Made by .ci/lock_train.py from pyproject.toml; change the versions there, then: make lock\n"
    asked = [f"-c {extra}-constraints.txt"]
    for requirement in requirements:
        marker = requirement.partition(";")[2].strip()
        name = name_of(requirement)
        asked.append(f"{name}=={versions[name]}" + (f" ; {marker}" if marker else ""))
    pins = [f"{name}=={version}" for name, version in sorted(versions.items())]
    return head + "\n".join(asked) + "\n", head + "\n".join(pins) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when the lock is out of date")
    parser.add_argument("extras", nargs="*", metavar="EXTRA", help=f"default: {', '.join(EXTRAS)}")
    given = parser.parse_args()
    stale = [lock(extra, given.check) for extra in given.extras or EXTRAS]
    return 1 if given.check and any(stale) else 0


def lock(extra: str, check: bool) -> bool:
    """Write the two files of one extra unless ``check``; whether they were out of date."""
    requirements = wanted(extra)
    versions = resolve(requirements)
    if "+" in versions["torch"]:
        raise SystemExit(
            f"lock: pip chose torch {versions['torch']}, a wheel without CUDA, so the lock would lack the CUDA\n"
            "libraries. Run it without your own index or links:  PIP_CONFIG_FILE=/dev/null PIP_FIND_LINKS= make lock"
        )
    files = [ROOT / "images" / f"{extra}-{what}.txt" for what in ("requirements", "constraints")]
    texts = dict(zip(files, render(extra, requirements, versions), strict=True))
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text() != text]
    for path in stale if not check else []:
        part = path.with_suffix(".part")
        part.write_text(texts[path])
        part.replace(path)
    for path in stale:
        sys.stdout.write(f"{path.relative_to(ROOT)} {'is out of date' if check else 'written'}\n")
    return bool(stale)


if __name__ == "__main__":
    raise SystemExit(main())
