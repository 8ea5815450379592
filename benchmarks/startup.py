"""Billed time that is not training: a tiny run in the training image, by the phases of its receipt.

    python benchmarks/startup.py --image cloudft-train:TAG [--rounds 3]     # a container on this computer's engine
    python benchmarks/startup.py --provider local [--rounds 3]              # a process

Makes the demo's project (a base of 1.4 million parameters) with few steps, submits it by ``cloudft submit`` through a
real S3 server on this computer, and reads the receipt. Seconds from the container's start to the first step, of them
download; from the last step until the machine was seen gone, of them upload. The load average stands beside them: on a
machine that does something else the imports take several times as long.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# Seconds: to the first step beyond the download, and from the last step beyond the upload.
TARGETS = {"start": 15.0, "end": 5.0}


def make_project(folder: Path, steps: int, **config: Any) -> Path:
    """The demo's project, with so many steps and these keys of its config; returns its folder."""
    import yaml

    from local.demo.demo_project import write_demo_project
    from local.progress import silent
    from local.scaffold import write_serving_files

    project = write_demo_project(folder, silent)
    write_serving_files(project.root)
    settings = yaml.safe_load(project.config_file.read_text())
    settings["train"]["max_steps"] = steps
    project.config_file.write_text(yaml.safe_dump({**settings, **config}))
    return project.root


@contextlib.contextmanager
def bucket(folder: Path) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """A store that a container reaches: what cloudft.yaml says of it, and the account's environment."""
    from tests.services.s3 import rclone_server

    with rclone_server(folder) as server:
        yield {"url": f"s3://{server.create_bucket('startup')}/runs", "endpoint_url": server.endpoint}, server.env()


def run(project: Path, env: dict[str, str]) -> dict[str, Any]:
    """One run by the user's own command; its receipt."""
    command = [sys.executable, "-m", "cloudft", "submit", "--json"]
    done = subprocess.run(
        command,
        cwd=project,
        env=os.environ | env | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise SystemExit(f"submit ended with {done.returncode}: {done.stdout}{done.stderr}")
    view = json.loads(done.stdout.splitlines()[-1])["data"]
    receipt: dict[str, Any] = view["attempts"][0]["receipt"]
    return receipt


def around(receipt: dict[str, Any]) -> dict[str, float]:
    """What the targets are about, in seconds: ``start`` and ``end`` are what is left beyond download and upload."""
    phases = receipt["phases"]
    return {
        "first step": receipt["to_first_step"],
        "download": phases["download"],
        "start": receipt["to_first_step"] - phases["download"],
        "after last step": receipt["after_last_step"],
        "upload": phases["upload"],
        "end": receipt["after_last_step"] - phases["upload"],
    }


def show(rounds: list[tuple[float, dict[str, Any]]]) -> str:
    """A table in Markdown: a row for each round with the load before it, and then what of it is within the targets."""
    lines = [
        "| load | to first step s | download | beyond | last step to end s | upload | beyond | all phases |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for load, receipt in rounds:
        n = around(receipt)
        phases = ", ".join(f"{name} {seconds:.1f}" for name, seconds in receipt["phases"].items())
        cells = [f"{load:.1f}", f"{n['first step']:.1f}", f"{n['download']:.1f}", f"{n['start']:.1f}"]
        cells += [f"{n['after last step']:.1f}", f"{n['upload']:.1f}", f"{n['end']:.1f}", phases]
        lines.append(f"| {' | '.join(cells)} |")
    for name, target in TARGETS.items():
        worst = max(around(receipt)[name] for _, receipt in rounds)
        said = "within" if worst <= target else "beyond"
        lines += ["", f"{name}: {worst:.1f} s at most, {said} the target of {target:.0f} s"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--provider", choices=["docker", "local"], default="docker")
    parser.add_argument("--image", help="the training image, as `cloudft build --no-push` names it; for docker")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, help="the receipts as JSON")
    args = parser.parse_args()
    if args.provider == "docker" and not args.image:
        parser.error("provider docker needs --image")
    rounds = []
    with tempfile.TemporaryDirectory(prefix="cloudft-benchmark-") as name, bucket(Path(name)) as (store, env):
        config = {"provider": args.provider, "store": store, **({"image": args.image} if args.image else {})}
        project = make_project(Path(name) / "demo", args.steps, **config)
        for turn in range(args.rounds):
            load = os.getloadavg()[0]
            receipt = run(project, env)
            rounds.append((load, receipt))
            print(f"round {turn + 1}, load before {load:.1f}: {json.dumps(around(receipt))}", flush=True)
    print(f"\n{args.provider}, {len(os.sched_getaffinity(0))} cores\n\n{show(rounds)}")
    if args.out:
        args.out.write_text(json.dumps([{"load": load, **receipt} for load, receipt in rounds], indent=1) + "\n")


if __name__ == "__main__":
    main()
