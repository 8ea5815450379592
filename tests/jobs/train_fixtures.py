"""Work folders for the trainer, the demo's base, and one real training that several tests look at."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from jobs import train
from jobs.environment import StopFlag
from jobs.outcome import Outcome, StoppedEarly
from jobs.spec import Base, Data, FileRef, Gate, RunSpec, Stage
from jobs.stages import Pace
from local.demo.demo_base import build_demo_base
from local.demo.demo_project import ROWS, SEED
from local.demo.demo_tickets import Ticket, tickets
from local.progress import silent

REPO = Path(__file__).resolve().parents[2]
HELD_OUT = 40

# The demo's own settings (local.demo.demo_project.CONFIG), resolved.
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


FULL: dict[str, Any] = {"method": "full", "lora_r": None, "lora_alpha": None, "lora_dropout": None}
Rows = list[list[dict[str, str]]]


def make_work(work: Path, base: Path | str, rows: Rows, *, template: str | None = None, **settings: Any) -> Path:
    """A work folder as the supervisor leaves it: ``base`` a model folder, or the name of a hub repository."""
    return make_stages(work, base, [settings], train=rows, template=template)


def make_stages(
    work: Path,
    base: Path | str,
    stages: list[dict[str, Any]],
    *,
    template: str | None = None,
    gate: Gate | None = None,
    **data: Rows,
) -> Path:
    """The same for a run of several stages.

    Args:
        stages: settings of each, with its own ``rows`` for cpt and dpo.
        data: rows by the names of ``jobs.spec.Data``: train, validation, replay, general.
    """
    inputs = work / "inputs"
    inputs.mkdir(parents=True)

    def put(name: str, values: list[dict[str, Any]]) -> FileRef:
        path = inputs / f"{name}.jsonl"
        path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
        return ref(path, path.name)

    if isinstance(base, Path):
        (inputs / "base").symlink_to(base)
        files = tuple(ref(path, f"base/{path.name}") for path in sorted(base.iterdir()))
        lock = Base(source="folder", id="./base", revision="ab" * 32, files=files)
    else:
        lock = Base(source="hub", id=base, revision=HUB_COMMIT)
    resolved = []
    for number, own in enumerate(stages, 1):
        settings = {**SETTINGS, **own}
        if "rows" in own:
            settings |= {"data": put(f"stage-{number}", own["rows"]), "rows": len(own["rows"])}
        resolved.append(Stage(**settings))
    named = {name: put(name, [{"messages": row} for row in rows]) for name, rows in data.items()}
    counts = {f"{name}_rows": len(rows) for name, rows in data.items()}
    spec = RunSpec(
        run_id="20261120-101010-abcd",
        project="tickets",
        base=lock,
        data=Data(holdout_sha256="0" * 64, holdout_rows=HELD_OUT, split_seed=SEED, **named, **counts),
        template=template,
        stages=tuple(resolved),
        gate=gate,
        max_hours=1,
        seed=42,
    )
    (work / "spec.json").write_bytes(spec.canonical())
    return work


class StopAfter(StopFlag):
    """Asks for a stop when it was looked at so many times: at any point of a run, and at the same one each time."""

    def __init__(self, looks: int) -> None:
        self.name, self.looks = "", looks

    def asked(self) -> bool:
        self.looks -= 1
        if self.looks < 0:
            self.name = "SIGTERM"
        return bool(self.name)


def train_here(work: Path, looks: int = 1_000_000, pace: Pace = Pace(1e9, 1e9)) -> Outcome:  # noqa: B008 - frozen
    """The trainer's own work in this process, which has imported the libraries once for many of them."""
    import torch

    torch.set_num_threads(1)
    outcome, stop = Outcome(), StopAfter(looks)
    train.fresh(work / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            train.train(work, stop, outcome, pace, None)
        except StoppedEarly as exc:
            outcome.status, outcome.reason = "stopped", str(exc)
    outcome.write(work / "out" / "trainer.json")
    return outcome


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
