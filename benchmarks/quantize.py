"""One pass against today's way (peft merge, save, convert, llama-quantize), in one run on this machine.

    python benchmarks/quantize.py [--sizes 0.5B,1.1B] [--rounds 1] [--folder DIR] [--out FILE]
    python benchmarks/quantize.py --sizes 8B            # memory alone: one pass over an 8B-shaped model

Makes random models and adapters, runs every way in a process of its own, and prints wall and CPU seconds, peak
anonymous memory, peak resident memory and bytes written, and the ratios. The load average stands beside them: numbers
from a machine that does something else are worth little.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.children import watched  # noqa: E402 - behind the path

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "0.5B": (
        "Qwen2",
        {
            "vocab_size": 151936,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
    ),
    "1.1B": (
        "Llama",
        {
            "vocab_size": 32000,
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 22,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "tie_word_embeddings": False,
        },
    ),
    "8B": (
        "Llama",
        {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "tie_word_embeddings": False,
        },
    ),
}
LORA_RANK = 16
# All linear layers; of the 8B-shaped model two, among them a largest one, which is what memory depends on.
TARGETS = (
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    ["q_proj", "down_proj"],
)
KIND = "Q4_K_M"


# ---------------------------------------------------------------- the models


def make(folder: Path, size: str) -> None:
    """Base and adapter of a size. The weights of "8B" are a hole in the file, which reads as zeros."""
    import torch
    import transformers
    from safetensors.torch import save_file

    from tests.local.quantize_fixtures import TEMPLATE, make_tokenizer

    kind, shape = SHAPES[size]
    config = getattr(transformers, f"{kind}Config")(**shape, bos_token_id=400, eos_token_id=402)
    config.architectures, config.dtype = [f"{kind}ForCausalLM"], torch.bfloat16
    base, adapter = folder / "base", folder / "adapter"
    for path in (base, adapter):
        path.mkdir(parents=True)
        make_tokenizer(path)
    (adapter / "chat_template.jinja").write_text(TEMPLATE)
    config.save_pretrained(base)
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
    torch.manual_seed(0)
    dims = {name: tuple(p.shape) for name, p in model.named_parameters()}
    if size == "8B":
        hollow(base / "model.safetensors", dims)
    else:
        tied = config.tie_word_embeddings
        dims = {name: d for name, d in dims.items() if not (tied and name == "lm_head.weight")}
        weights = {name: torch.empty(d, dtype=torch.bfloat16).normal_(0, 0.02) for name, d in dims.items()}
        save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    factors: dict[str, Any] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.split(".")[-1] in TARGETS[size == "8B"]:
            prefix = f"base_model.model.{name}"
            factors[f"{prefix}.lora_A.weight"] = torch.randn(LORA_RANK, module.in_features) * 0.02
            factors[f"{prefix}.lora_B.weight"] = torch.randn(module.out_features, LORA_RANK) * 0.02
    save_file(factors, adapter / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": LORA_RANK, "lora_alpha": 32, "target_modules": TARGETS[size == "8B"]}
    settings |= {"task_type": "CAUSAL_LM", "base_model_name_or_path": str(base)}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))


def hollow(path: Path, dims: dict[str, tuple[int, ...]]) -> None:
    """A safetensors file of bfloat16 zeros that takes no room on the disk."""
    header: dict[str, Any] = {}
    at = 0
    for name, shape in dims.items():
        end = at + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + at)


# ---------------------------------------------------------------- the ways, each in a process of its own


def step(name: str, folder: Path) -> None:
    """Run one step of a way; called in the child."""
    from local.progress import silent
    from local.quantizing.toolchain import ensure_toolchain

    base, adapter, merged = folder / "base", folder / "adapter", folder / "merged"
    if name.startswith("make "):
        make(folder, name.removeprefix("make "))
    elif name == "one pass":
        from local.quantizing import onepass
        from local.quantizing.adapter import read_lora
        from local.quantizing.headstart import HeadStart
        from local.quantizing.lora import Lora
        from local.quantizing.merge import lay_out

        toolchain = ensure_toolchain(silent)
        lora = read_lora(base, adapter)
        assert isinstance(lora, Lora)
        lay_out(base, adapter, None, folder / "model")
        early = HeadStart(folder / "model", lora, [KIND])
        outs = {KIND: folder / "onepass.gguf"}
        options: dict[str, Any] = {"name": "benchmark", "scratch": folder, "progress": silent, "early": early}
        onepass.write(folder / "model", lora, outs, toolchain=toolchain.root, **options)
    elif name == "merge":
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(merged)
        for path in base.glob("tokenizer*"):
            shutil.copyfile(path, merged / path.name)
    elif name == "convert":
        import torch

        from local.quantizing.convert import converter_class

        converter = converter_class(merged, ensure_toolchain(silent).root)
        import gguf

        with torch.inference_mode():
            converter(merged, gguf.LlamaFileType.MOSTLY_BF16, folder / "full.gguf", model_name="benchmark").write()
    else:
        from local.quantizing import ggml

        ggml.quantize(folder / "full.gguf", folder / "todays.gguf", KIND, silent)


def measured(name: str, folder: Path) -> dict[str, float]:
    """Run a step in a child, and watch it."""
    before = set(folder.rglob("*"))
    command = [sys.executable, __file__, "--step", name, "--folder", str(folder)]
    took = watched(command, folder / "log")
    written = [p for p in set(folder.rglob("*")) - before if p.is_file() and not p.is_symlink()]
    return {**took, "written": sum(path.stat().st_size for path in written)}


def together(steps: list[dict[str, float]]) -> dict[str, float]:
    """Several steps as one: times and bytes add up, memory is that of the largest."""
    return {
        key: max(s[key] for s in steps) if key in ("anonymous", "resident") else sum(s[key] for s in steps)
        for key in steps[0]
    }


def compare(size: str, folder: Path) -> dict[str, Any]:
    """All ways of one size; the order is such that none finds the base colder than another."""
    todays = [measured(name, folder) for name in ("merge", "convert", "quantise")]
    one = measured("one pass", folder)
    return {
        "size": size,
        "one pass": one,
        "today": together(todays),
        "merge": todays[0],
        "convert": todays[1],
        "quantise alone": todays[2],
    }


def show(result: dict[str, Any]) -> str:
    """One size as a table in Markdown, and the ratios."""
    lines = ["| way | wall s | CPU s | peak anonymous MB | peak RSS MB | GB written |", "|---|---|---|---|---|---|"]
    for way in ("merge", "convert", "quantise alone", "today", "one pass"):
        if way in result:
            r = result[way]
            lines.append(
                f"| {way} | {r['wall']:.1f} | {r['cpu']:.1f} | {r['anonymous'] / 1e6:.0f} | "
                f"{r['resident'] / 1e6:.0f} | {r['written'] / 1e9:.2f} |"
            )
    if "today" in result:
        one, today, alone = result["one pass"], result["today"], result["quantise alone"]
        ratios = {key: one[key] / today[key] for key in one}
        lines += [
            "",
            "one pass / today: " + ", ".join(f"{key} {ratio:.2f}" for key, ratio in ratios.items()),
            f"one pass / quantise alone: wall {one['wall'] / alone['wall']:.2f}, cpu {one['cpu'] / alone['cpu']:.2f}",
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="0.5B,1.1B")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--step")
    args = parser.parse_args()
    if args.step:
        step(args.step, args.folder)
        return
    cores = len(os.sched_getaffinity(0))
    results = []
    for size in args.sizes.split(","):
        with tempfile.TemporaryDirectory(dir=args.folder, prefix="cloudft-benchmark-") as name:
            folder = Path(name)
            measured(f"make {size}", folder)  # in a child, so that its memory is given back
            for turn in range(args.rounds):
                for path in ("merged", "full.gguf", "todays.gguf", "onepass.gguf", "model"):
                    _remove(folder / path)
                load = os.getloadavg()[0]
                small = size != "8B"
                result = compare(size, folder) if small else {"size": size, "one pass": measured("one pass", folder)}
                result |= {"load": load, "cores": cores}
                results.append(result)
                print(
                    f"\n{size}, round {turn + 1}, {cores} cores, load before {load:.1f}\n\n{show(result)}", flush=True
                )
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
