"""A project with an ended run whose adapter lies in the store, made without training anything."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import yaml

from infra.provider import machine_name
from jobs.bundle import pack
from jobs.pieces import piece_names
from jobs.ticket import ADAPTER, LOG, METRICS, OUTCOME, RESULT
from local.config import StoreConfig
from local.project import Project
from local.runs.lifecycle import free_plan
from local.runs.records import Attempt, RunRecord, attempt_prefix, run_prefix, write_record
from local.runs.session import Session, open_session

RUN_ID = "20261120-101010-ab12"


def make_project(root: Path) -> Project:
    root.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "project": "tickets",
        "base": "./base",
        "data": {"path": "data.jsonl"},
        "task": {"schema": "schema.json"},
    }
    (root / "cloudft.yaml").write_text(yaml.safe_dump(config))
    return Project(root.resolve())


def make_run(project: Project, store: StoreConfig | None = None) -> Session:
    """A run that this computer believes to be running on a machine that is gone."""
    run = project.run(RUN_ID)
    run.root.mkdir(parents=True)
    deadline = time.time() + 3600
    attempt = Attempt(
        number=1,
        name=machine_name(RUN_ID, 1, deadline),
        offer=free_plan("local")[0],
        deadline=deadline,
        exhausted_at=deadline,
        state="alive",
        created_at=time.time(),
        machine_id="1",
        rate_usd=0.0,
        seen=True,
    )
    record = RunRecord(
        run_id=RUN_ID,
        project="tickets",
        created_at=time.time(),
        provider="local",
        store=store or StoreConfig(url="./store"),
        spec_sha256="0" * 64,
        status="running",
        attempts=(attempt,),
    )
    write_record(run, record, "test")
    return open_session(project, run)


def put_adapter(
    session: Session, scratch: Path, size: int = 3 << 20, status: str = "completed", piece_bytes: int = 0
) -> dict[str, Any]:
    """What a supervisor leaves in the store when a run has ended well; returns the result.

    Args:
        piece_bytes: the adapter is cut into objects of so many; 0: it is one, and its result that of an older machine.
    """
    folder = scratch / "made-adapter"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(os.urandom(size))
    (folder / "adapter_config.json").write_text("{}")
    bundle = pack(folder, scratch / ADAPTER)
    prefix = attempt_prefix(RUN_ID, 1)
    raw = bundle.path.read_bytes()
    names = piece_names(ADAPTER, bundle.bytes, piece_bytes or bundle.bytes)
    for number, name in enumerate(names):
        each = piece_bytes or bundle.bytes
        session.store.put_bytes(f"{prefix}/{name}", raw[number * each : (number + 1) * each])
    session.store.put_bytes(f"{prefix}/{LOG}", b"one\ntwo\n")
    session.store.put_bytes(f"{prefix}/{METRICS}", b'{"step": 1}\n')
    artifact: dict[str, Any] = {"key": ADAPTER, "sha256": bundle.sha256, "bytes": bundle.bytes, "files": bundle.files}
    artifact |= {"pieces": names, "piece_bytes": piece_bytes} if piece_bytes else {}
    result = {
        "schema_version": 1,
        "run_id": RUN_ID,
        "attempt": 1,
        "status": status,
        "reason": "" if status == "completed" else "cancelled by the user",
        "artifacts": {"adapter": artifact},
        "ended_at": time.time(),
    }
    raw = json.dumps(result).encode()
    session.store.put_bytes(f"{prefix}/{OUTCOME}", raw)
    session.store.put_bytes(f"{run_prefix(RUN_ID)}/{RESULT}", raw)
    return result
