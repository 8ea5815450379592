"""The one command that runs a ticket on any machine with Python: Colab, Lambda, Vast, SageMaker, a friend's desktop."""

from __future__ import annotations

import inspect
import io
import zipfile
from hashlib import sha256
from pathlib import Path

import images
import jobs
from cloudft.errors import StoreError
from images.context import LOCK_NAMES, lock_files
from jobs import start
from jobs.backends import Backend
from local.runs.records import attempt_prefix, read_spec
from local.runs.session import Session
from local.runs.tickets import URL_GRACE, ticket_key

CODE, SCRIPT = "code.zip", "start.py"
# A zip's own dates would change its checksum with every submit.
EPOCH = (1980, 1, 1, 0, 0, 0)


def start_command(session: Session) -> str:
    """Put code and script beside the ticket, and return the command to paste.

    Whoever has the command can read this run's data and write its result until soon after the deadline.

    Raises:
        StoreError: the store refuses.
    """
    record = session.record()
    attempt = record.attempt
    until = attempt.deadline + URL_GRACE
    prefix = attempt_prefix(record.run_id, attempt.number)
    backend = read_spec(session.run).backend
    code = pack_code(backend)
    session.store.put_bytes(f"{prefix}/{CODE}", code)
    settings = {
        "code": session.store.url_to_get(f"{prefix}/{CODE}", until),
        "sha256": sha256(code).hexdigest(),
        "lock": LOCK_NAMES[backend],
        "deadline": attempt.deadline,
        "ticket": session.store.url_to_get(ticket_key(record.run_id, attempt.number), until),
    }
    script = f"{inspect.getsource(start)}\n\nstart({settings!r})\n"
    session.store.put_bytes(f"{prefix}/{SCRIPT}", script.encode())
    url = session.store.url_to_get(f"{prefix}/{SCRIPT}", until)
    if set(url) & set("'\"`$\\ "):
        raise StoreError(f"the store's URL cannot be put into a command: {url.partition('?')[0]}")
    return f"""python3 -c "import urllib.request as u; exec(u.urlopen('{url}').read())\""""


def pack_code(backend: Backend) -> bytes:
    """What a machine needs of ours: the package ``jobs`` and the backend's locked requirements, as a zip."""
    packed = io.BytesIO()
    package = Path(jobs.__path__[0])
    files = {
        f"jobs/{path.relative_to(package).as_posix()}": path
        for path in sorted(package.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    files |= {f"requirements/{name}": Path(images.__path__[0]) / name for name in lock_files(backend)}
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in files.items():
            archive.writestr(zipfile.ZipInfo(name, EPOCH), path.read_bytes())
    return packed.getvalue()
