"""A root file system as a tar file, made of Debian packages that are installed on this machine; no network.

Given the names of some packages, it takes them, the essential ones, and everything that these depend on: their
files, the alternatives and certificates, and a dpkg database that knows them, so that apt works inside.

usage: python3 host_rootfs.py OUT.tar PACKAGE …      (Debian or Ubuntu, as root)
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

INFO = Path("/var/lib/dpkg/info")
STATUS = Path("/var/lib/dpkg/status")

# What no package owns and an image needs all the same.
EXTRA_PATHS = (
    *("/bin", "/sbin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/profile", "/etc/ca-certificates.conf"),
    *("/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow", "/etc/nsswitch.conf"),
    *("/etc/apt/sources.list", "/etc/apt/sources.list.d/debian.sources"),
    "/var/lib/dpkg/info/format",  # without it dpkg looks for its files under other names
)
EXTRA_TREES = (
    *("/etc/alternatives", "/etc/ssl/certs", "/etc/pam.d"),
    *("/usr/share/keyrings", "/usr/local/share/ca-certificates"),
)
EMPTY_FOLDERS = (
    *("/tmp", "/var/tmp", "/proc", "/sys", "/dev", "/run", "/root", "/var/log/apt"),
    *("/var/lib/apt/lists/partial", "/var/cache/apt/archives/partial"),
    *("/etc/apt/apt.conf.d", "/etc/apt/preferences.d", "/etc/apt/trusted.gpg.d"),
)
SKIPPED = re.compile(r"/usr/share/(doc|man|locale|info)/|__pycache__")

Package = dict[str, str]


def installed() -> dict[str, Package]:
    """Name → fields of each installed package; the field ``""`` is its whole paragraph in dpkg's database."""
    packages = {}
    for paragraph in STATUS.read_text().split("\n\n"):
        fields = dict(re.findall(r"^(\S+): (.*)$", paragraph, re.MULTILINE))
        if fields.get("Status") == "install ok installed":
            packages[fields["Package"]] = {**fields, "": paragraph}
    return packages


def closure(packages: dict[str, Package], seeds: Iterable[str]) -> set[str]:
    """The essential packages, the seeds, and all that they depend on (of alternatives, the first installed)."""
    providers: dict[str, str] = {}
    for name, fields in packages.items():
        for provided in filter(None, re.split(r",\s*", fields.get("Provides", ""))):
            providers.setdefault(provided.split()[0], name)
    todo = [n for n, f in packages.items() if f.get("Essential") == "yes" or f.get("Priority") == "required"]
    todo.extend(seeds)
    wanted: set[str] = set()
    while todo:
        asked = todo.pop()
        name = asked if asked in packages else providers.get(asked, "")
        if not name or name in wanted:
            continue
        wanted.add(name)
        fields = packages[name]
        depends = ", ".join(filter(None, (fields.get("Pre-Depends"), fields.get("Depends"))))
        for dependency in filter(None, re.split(r",\s*", depends)):
            names = [re.sub(r"[ :(].*", "", alternative.strip()) for alternative in dependency.split("|")]
            todo.extend([n for n in names if n in packages or n in providers][:1])
    return wanted


def listed(names: Iterable[str], arch: str) -> Iterator[str]:
    """The paths of these packages, and of dpkg's own files about them."""
    for name in names:
        for stem in (name, f"{name}:{arch}"):
            for info in INFO.glob(f"{stem}.*"):
                yield str(info)
            if (INFO / f"{stem}.list").exists():
                yield from (INFO / f"{stem}.list").read_text().splitlines()


def existing(paths: Iterable[str]) -> list[str]:
    """The paths that exist, with real parents (``/bin`` is a link to ``usr/bin``), and all those parents."""
    found: set[str] = set()
    for path in paths:
        if path in ("", "/", "/.") or SKIPPED.search(path + "/"):
            continue
        real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))  # noqa: PTH118, PTH119, PTH120
        if os.path.lexists(real):
            found.add(real)
            found.update(str(p) for p in Path(real).parents if str(p) != "/")
    return sorted(found)


def write_tar(out: str, paths: Iterable[str], texts: dict[str, str]) -> None:
    """Write these paths of this machine, the folders that it happens to lack, and the given texts."""
    with tarfile.open(out, "w") as tar:
        for path in paths:
            if path.lstrip("/") not in texts:
                tar.add(path, arcname=path.lstrip("/"), recursive=False)
        for path in EMPTY_FOLDERS:
            if not Path(path).exists():
                info = tarfile.TarInfo(path.lstrip("/"))
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(info)
        for path, text in texts.items():
            info = tarfile.TarInfo(path)
            info.size, info.mode = len(text.encode()), 0o644
            tar.addfile(info, io.BytesIO(text.encode()))


def main() -> int:
    if len(sys.argv) < 3:
        raise SystemExit("usage: host_rootfs.py OUT.tar PACKAGE …")
    out, seeds = sys.argv[1], sys.argv[2:]
    packages = installed()
    missing = [seed for seed in seeds if seed not in packages]
    if missing:
        raise SystemExit(f"host_rootfs: not installed on this machine: {', '.join(missing)}")
    names = closure(packages, seeds)
    command = ["dpkg", "--print-architecture"]
    arch = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    trees = (os.path.join(root, name) for top in EXTRA_TREES for root, _, files in os.walk(top) for name in files)  # noqa: PTH118
    paths = existing([*listed(names, arch), *EXTRA_PATHS, *EMPTY_FOLDERS, *trees])
    status = "\n\n".join(packages[name][""].strip() for name in sorted(names)) + "\n"
    texts = {"var/lib/dpkg/status": status, "var/lib/dpkg/arch": f"{arch}\n", "var/lib/dpkg/available": ""}
    write_tar(out, paths, texts)
    sys.stdout.write(f"{len(names)} packages, {len(paths)} paths\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
