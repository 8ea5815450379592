"""Work folders for the trainer, the demo's base, and one real training that several tests look at."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs.spec import Base, Data, FileRef, RunSpec, Stage
from local.demo_base import build_demo_base
from local.demo_project import ROWS, SEED
from local.demo_tickets import Ticket, tickets
from local.progress import silent

REPO = Path(__file__).resolve().parents[2]
HELD_OUT = 40

# The demo's own settings (local.demo_project.CONFIG), resolved.
SETTINGS: dict[str, Any] = {
    "max_steps": 100,
    "batch_size": 16,
    "gradient_accumulation": 1,
    "learning_rate": 0.005,
    "scheduler": "cosine",
    "warmup": 0.05,
    "weight_decay": 0.0,
    "max_length": 256,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "dtype": "float32",
    "origins": {"learning_rate": "cloudft.yaml", "warmup": "the first twentieth"},
}
HUB_COMMIT = "0123456789abcdef0123456789abcdef01234567"


def ref(path: Path, name: str) -> FileRef:
    raw = path.read_bytes()
    return FileRef(path=name, sha256=hashlib.sha256(raw).hexdigest(), bytes=len(raw))


def make_work(
    work: Path,
    base: Path | str,
    rows: list[list[dict[str, str]]],
    *,
    template: str | None = None,
    **settings: Any,
) -> Path:
    """A work folder as the supervisor leaves it: ``base`` a model folder, or the name of a hub repository."""
    inputs = work / "inputs"
    inputs.mkdir(parents=True)
    data = inputs / "train.jsonl"
    data.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows), encoding="utf-8")
    if isinstance(base, Path):
        (inputs / "base").symlink_to(base)
        files = tuple(ref(path, f"base/{path.name}") for path in sorted(base.iterdir()))
        lock = Base(source="folder", id="./base", revision="ab" * 32, files=files)
    else:
        lock = Base(source="hub", id=base, revision=HUB_COMMIT)
    spec = RunSpec(
        run_id="20261120-101010-abcd",
        project="tickets",
        base=lock,
        data=Data(
            train=ref(data, "train.jsonl"),
            train_rows=len(rows),
            holdout_sha256="0" * 64,
            holdout_rows=HELD_OUT,
            split_seed=SEED,
        ),
        template=template,
        stages=(Stage(**{**SETTINGS, **settings}),),
        max_hours=1,
        seed=42,
    )
    (work / "spec.json").write_bytes(spec.canonical())
    return work


def trainer(work: Path, *options: str, **env: str) -> subprocess.Popen[str]:
    """The trainer as a child, as the supervisor starts it; one thread."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "jobs.train", "--work", str(work), *options],
        env={**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_trainer(work: Path, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
    with trainer(work, *options, **env) as child:
        out, err = child.communicate()
    return subprocess.CompletedProcess(child.args, child.returncode, out, err)


def outcome(work: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((work / "out" / "trainer.json").read_text(encoding="utf-8"))
    return value


def metrics(work: Path) -> list[dict[str, Any]]:
    lines = (work / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@dataclass(frozen=True)
class Trained:
    """A finished training of the demo."""

    work: Path
    log: str
    errors: str
    code: int
    held_out: list[Ticket]


@pytest.fixture(scope="session")
def demo_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's base; pretrained once per recipe and user, then taken from the cache."""
    return build_demo_base(tmp_path_factory.mktemp("demo") / "base", silent)


@pytest.fixture(scope="session")
def trained(demo_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    drawn = tickets(ROWS, SEED)
    rows = [ticket.messages() for ticket in drawn[: ROWS - 140]]
    work = make_work(tmp_path_factory.mktemp("trained") / "work", demo_base, rows)
    done = run_trainer(work)
    return Trained(work, done.stdout, done.stderr, done.returncode, drawn[-HELD_OUT:])
