"""Our training against plain trl (and Unsloth), in one run on this machine: tokens a second, and peak memory.

    python benchmarks/train.py                                  # a CPU: a tiny model, lora, some minutes
    python benchmarks/train.py --size 0.5B,8B --method lora,qlora --length 1024 --steps 30      # a GPU
    python benchmarks/train.py … --unsloth [PYTHON]             # beside Unsloth, from this Python or another
    python benchmarks/train.py --size 8B --estimate H200        # what our estimates say of it; trains nothing

Makes a model of random weights and conversations of random words, then trains in each way in turn, each in a process of
its own, round after round. Plain trl is ``SFTTrainer`` with model, data, LoRA, output_dir, and as many rows a step; all
else as the library has it. Ours is what ``cloudft submit`` chooses for the same data. The load average stands beside:
numbers of a machine that does something else are worth little.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import geometric_mean, mean
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.children import watched  # noqa: E402 - behind the path
from benchmarks.random_models import SHAPES, config_of, make_base, make_rows  # noqa: E402
from benchmarks.train_ways import Plan  # noqa: E402

CHILD = ROOT / "benchmarks" / "train_ways.py"
ROWS_PER_STEP = 16
# trl's own default, and so what its user computes at once.
TRL_AT_ONCE = 8
CHARACTERS_PER_TOKEN = 3.5  # of people's text, which the rows stand for
GPU_EVERY = 0.2
Result = dict[str, Any]


def stage_for(method: str, steps: int, length: int, tokens: list[int], parameters: int | None, **given: Any) -> Any:
    """The stage that cloudft makes of such data (``jobs.spec.Stage``). ``given``: settings that it is told."""
    from local.planning.hyperparameters import StageFacts, resolve_stages
    from local.train_config import TrainConfig

    characters = round(sum(tokens) * CHARACTERS_PER_TOKEN)
    facts = StageFacts(len(tokens), round(max(tokens) * CHARACTERS_PER_TOKEN), characters)
    (stage,) = resolve_stages(
        TrainConfig(method=method, max_steps=steps, max_length=length, lora_r=16, **given), [facts], parameters
    )
    return stage


def make_work(work: Path, base: Path, data: Path, rows: int, stage: Any, parameters: int) -> None:
    """A work folder as the supervisor leaves it to the trainer."""
    from jobs.spec import Base, Data, FileRef, RunSpec
    from jobs.transfer import sha256_file

    inputs = work / "inputs"
    inputs.mkdir(parents=True)
    (inputs / "base").symlink_to(base)
    shutil.copyfile(data, inputs / "train.jsonl")
    train = FileRef(path="train.jsonl", sha256=sha256_file(data), bytes=data.stat().st_size)
    spec = RunSpec(
        run_id="benchmark-1",
        project="benchmark",
        base=Base(source="folder", id="./base", revision="ab" * 32, parameters=parameters),
        data=Data(train=train, train_rows=rows, holdout_sha256="0" * 64, holdout_rows=0, split_seed=0),
        stages=(stage,),
        max_hours=24,
        seed=42,
    )
    (work / "spec.json").write_bytes(spec.canonical())


# ---------------------------------------------------------------- what the estimates say


def estimated(size: str, stage: Any, tokens: list[int], card: str, checkpointing: bool | None) -> Result | None:
    """Tokens a second and bytes on the card, least and most, as ``cloudft offers`` reckons; None for no known card.

    Args:
        checkpointing: what the trainer decided about activations; None: it has not yet.
    """
    from infra.gpus import find_gpu
    from local.planning.estimate import Tokens, Work, needed, on_card, stage_pace
    from local.planning.shape import shape_of

    gpu = find_gpu(card) or find_gpu(card.removeprefix("NVIDIA ").removeprefix("Tesla "))
    if gpu is None:
        return None
    stage = stage.model_copy(update={"activation_checkpointing": checkpointing})
    shape = shape_of(config_of(size).to_dict())
    assert shape is not None
    lengths = Tokens((mean(tokens), mean(tokens)), (max(tokens), max(tokens)), trained=1 / 3)
    need = needed(Work(size, shape, shape.parameters, (stage,), (lengths,)), gpu, 1)
    assert need is not None
    pace = stage_pace(shape, stage, lengths, gpu, 1)
    a_pass = on_card(stage, lengths).mean[1] * stage.batch_size
    return {
        "card": gpu.name,
        "tokens/s": (a_pass / pace.most, a_pass / pace.least),
        "bytes": (need.least, need.most),
        "card bytes": gpu.memory_gb * 1e9,
    }


def range_of(least: float, most: float) -> str:
    """Tokens a second are whole, gigabytes have a digit."""
    least, most, form = (least / 1e9, most / 1e9, ".1f") if most > 1e8 else (least, most, ",.0f")
    return f"{least:{form}} to {most:{form}}"


# ---------------------------------------------------------------- one size and method


def parameters_of(size: str) -> int:
    from local.planning.shape import shape_of

    shape = shape_of(config_of(size).to_dict())
    assert shape is not None
    return shape.parameters


def run_way(way: str, plan: Plan, work: Path, python: str) -> Result:
    """One training in a child; what it said and what it took."""
    from jobs.gpu import GpuWatch

    work.mkdir(parents=True, exist_ok=True)
    (work / "plan.json").write_text(json.dumps(asdict(plan)))
    watch = GpuWatch()
    idle = watch.sample().get("memory_bytes") or 0
    # One thread, as ours takes for a small model on a CPU; two beside other work make any of them many times slower.
    env = {"HF_DATASETS_CACHE": str(work / "cache"), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    command = [python, str(CHILD), way, str(work)]
    took = watched(command, work / "log", watch.sample if idle else None, GPU_EVERY, env)
    told = json.loads((work / "told.json").read_text())
    told["training cpu"] = told.pop("cpu")
    return {**told, **took, "card": watch.last.get("name"), "on card": watch.peak_memory_bytes - idle}


def compare(size: str, method: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """All ways of one size and method, in alternating rounds."""
    base, data = folder / size, folder / f"{size}.jsonl"
    tokens: list[int] = json.loads((folder / f"{size}.tokens").read_text())
    parameters = parameters_of(size)
    given = {"activation_checkpointing": args.checkpointing} if args.checkpointing is not None else {}
    if args.packing is not None:
        given["packing"] = args.packing
    stage = stage_for(method, args.steps, args.length, tokens, parameters, **given)
    plan = Plan(
        str(base), str(data), method, args.steps, args.warm, ROWS_PER_STEP, TRL_AT_ONCE, args.length, stage.lora_r
    )
    found: dict[str, list[Result]] = {}
    loads = []
    for turn in range(args.rounds):
        loads.append(os.getloadavg()[0])
        for way in in_turn(args.ways, turn):
            work = folder / "work"
            shutil.rmtree(work, ignore_errors=True)
            if way == "ours":
                make_work(work, base, data, len(tokens), stage, parameters)
            print(f"{size} {method}, round {turn + 1}: {way} …", file=sys.stderr, flush=True)
            python = args.unsloth if way == "unsloth" else sys.executable
            found.setdefault(way, []).append(run_way(way, plan, work, python))
    ours = found["ours"][0]
    card = args.estimate or ours["card"] or ""
    estimate = estimated(size, stage, tokens, card, ours["settings"]["activation checkpointing"])
    return {"size": size, "method": method, "ways": found, "loads": loads, "estimate": estimate}


def measures(gpu: bool) -> dict[str, tuple[Callable[[Result], float], str]]:
    """What is told of each training: how it is reckoned, and its format."""
    return {
        "tokens/s": (lambda r: r["tokens"] / r["seconds"], ",.0f"),
        "tokens / CPU s": (lambda r: r["tokens"] / r["training cpu"], ",.0f"),
        "in the loss /s": (lambda r: r["trained"] / r["seconds"], ",.0f"),
        "s to the first step": (lambda r: r["before"], ".0f"),
        "s in all": (lambda r: r["wall"], ".0f"),
        "CPU s in all": (lambda r: r["cpu"], ".0f"),
        "GB on the card" if gpu else "peak anonymous MB": (
            lambda r: r["on card"] / 1e9 if gpu else r["anonymous"] / 1e6,
            ",.1f" if gpu else ",.0f",
        ),
    }


def show(result: dict[str, Any]) -> str:
    """One size and method as a table in Markdown, the ratios, and what each way chose."""
    ways = result["ways"]
    told = measures(ways["ours"][0]["on card"] > 0)
    lines = [f"| {result['size']} {result['method']} | {' | '.join(told)} |", "|---" * (len(told) + 1) + "|"]
    for way, rounds in ways.items():
        cells = [", ".join(format(value(r), form) for r in rounds) for value, form in told.values()]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    for way in ways:
        if way != "ours":
            lines.append(f"| ours / {way} | {' | '.join(_ratio(ways, way, value) for value, _ in told.values())} |")
    return "\n".join([*lines, *settings(ways), *calibration(result)])


def _ratio(ways: dict[str, list[Result]], way: str, value: Callable[[Result], float]) -> str:
    """Of the geometric means over the rounds."""
    ours, theirs = (geometric_mean([value(r) for r in ways[name]]) for name in ("ours", way))
    return f"{ours / theirs:.2f}"


def settings(ways: dict[str, list[Result]]) -> list[str]:
    """What each way chose."""
    return ["", *(f"{way}: {', '.join(f'{k} {v}' for k, v in r[0]['settings'].items())}" for way, r in ways.items())]


def calibration(result: dict[str, Any]) -> list[str]:
    """What was measured beside what was estimated, as a table of its own; nothing where there is no card."""
    estimate, ours = result["estimate"], result["ways"]["ours"]
    if estimate is None:
        return []
    speeds, peaks = [r["tokens"] / r["seconds"] for r in ours], [r["on card"] for r in ours]
    gpu = peaks[0] > 0
    middle = geometric_mean(estimate["tokens/s"]), mean(estimate["bytes"])
    of_speed = f"{geometric_mean(speeds) / middle[0]:.2f}" if gpu else "not on this card"
    of_peak = f"{mean(peaks) / middle[1]:.2f}" if gpu else "not on this card"
    return [
        "",
        f"| {estimate['card']}, {result['size']} {result['method']} | estimate | measured | measured / middle |",
        "|---|---|---|---|",
        f"| tokens/s | {range_of(*estimate['tokens/s'])} | {', '.join(f'{s:,.0f}' for s in speeds)} | {of_speed} |",
        f"| GB on the card | {range_of(*estimate['bytes'])} | "
        f"{', '.join(f'{p / 1e9:.1f}' for p in peaks)} | {of_peak} |",
    ]


def show_estimates(args: argparse.Namespace, tokens: list[int]) -> list[str]:
    """Our estimates of all sizes and methods on a card; trains nothing, so any computer will do."""
    lines = [
        f"| {args.estimate}, rows of {args.length} tokens at most | tokens/s | GB on the card | |",
        "|---|---|---|---|",
    ]
    for size in args.sizes:
        for method in args.methods:
            stage = stage_for(method, args.steps, args.length, tokens, parameters_of(size))
            told = estimated(size, stage, tokens, args.estimate, args.checkpointing)
            if told is None:
                raise SystemExit(f"--estimate {args.estimate}: no GPU of that name is known")
            fits = "" if told["bytes"][0] <= told["card bytes"] else "too small"
            cells = range_of(*told["tokens/s"]), range_of(*told["bytes"]), fits
            lines.append(f"| {size} {method} | {' | '.join(cells)} |")
    return lines


# ---------------------------------------------------------------- the command line


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="tiny", help=f"of {', '.join(SHAPES)}; several with commas")
    parser.add_argument("--method", default="lora", help="of lora, qlora, dora, rslora; several with commas")
    parser.add_argument("--length", type=int, help="tokens of the longest row (512; tiny: 128)")
    parser.add_argument("--steps", type=int, help="of each training (30; tiny: 16)")
    parser.add_argument("--warm", type=int, default=4, help="steps that do not count")
    parser.add_argument("--rows", type=int, default=1200, help="of the data")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--checkpointing", choices=("on", "off"), help="ours; default: as the machine decides")
    parser.add_argument("--packing", choices=("on", "off"), help="ours; default: as the data decides")
    parser.add_argument("--unsloth", nargs="?", const=sys.executable, metavar="PYTHON", help="compare with it too")
    parser.add_argument("--estimate", metavar="GPU", help="print the estimates for a card; trains nothing")
    parser.add_argument("--folder", type=Path, help="where there is room for the models")
    parser.add_argument("--out", type=Path, help="a JSON file for all numbers")
    args = parser.parse_args(argv)
    args.sizes, args.methods = args.size.split(","), args.method.split(",")
    if unknown := set(args.sizes) - set(SHAPES):
        parser.error(f"--size {', '.join(sorted(unknown))}: known are {', '.join(SHAPES)}")
    if unknown := set(args.methods) - {"lora", "qlora", "dora", "rslora"}:
        parser.error(f"--method {', '.join(sorted(unknown))}: plain trl is compared with lora, qlora, dora, rslora")
    small = args.sizes == ["tiny"]
    args.length = args.length or (128 if small else 512)
    args.steps = args.steps or (16 if small else 30)
    if args.steps < args.warm + 2:
        parser.error(f"--steps {args.steps}: {args.warm} of them do not count, and the last one ends the clock")
    for name in ("checkpointing", "packing"):
        value = getattr(args, name)
        setattr(args, name, None if value is None else value == "on")
    args.ways = ["ours", "trl"] + (["unsloth"] if args.unsloth else [])
    return args


def in_turn(ways: list[str], round_: int) -> list[str]:
    """Another way goes first in each round."""
    first = round_ % len(ways)
    return [*ways[first:], *ways[:first]]


def warm_up(python: str, folder: Path) -> None:
    """Read the libraries once from the disk, or the first way pays for all of them."""
    watched([python, "-c", "import torch, datasets, peft, trl; from trl import SFTTrainer"], folder / "log")


def prepare(size: str, folder: Path, args: argparse.Namespace) -> None:
    """Model and data, made in a child, so that their memory is given back."""
    code = (
        "import sys; from pathlib import Path; from benchmarks.train import made;"
        f"made({size!r}, Path({str(folder)!r}), {args.rows}, {args.length})"
    )
    watched([sys.executable, "-c", code], folder / "log")


def made(size: str, folder: Path, rows: int, length: int) -> None:
    make_base(folder / size, size)
    tokens = make_rows(folder / f"{size}.jsonl", rows, length, folder / size)
    (folder / f"{size}.tokens").write_text(json.dumps(tokens))


def main(argv: list[str]) -> None:
    args = parse(argv)
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="cloudft-benchmark-") as name:
        folder = Path(name)
        if args.estimate:
            from tests.local.quantize_fixtures import make_tokenizer

            make_tokenizer(folder)
            print("\n".join(show_estimates(args, make_rows(folder / "rows", args.rows, args.length, folder))))
            return
        import torch

        gpu = torch.cuda.is_available()
        args.ways += [] if gpu else ["trl float32"]
        results = []
        for python in {sys.executable, args.unsloth or sys.executable}:
            warm_up(python, folder)
        for size in args.sizes:
            prepare(size, folder, args)
            for method in args.methods:
                result = compare(size, method, folder, args)
                results.append(result)
                where = result["ways"]["ours"][0]["card"] or f"{len(os.sched_getaffinity(0))} cores"
                load = ", ".join(f"{load:.1f}" for load in result["loads"])
                print(f"\n{where}, load before each round {load}\n\n{show(result)}", flush=True)
            shutil.rmtree(folder / size)
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
