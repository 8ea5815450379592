"""An adapter alone as a LoRA GGUF file, for servers that add it to a quantised base at run time.

Upstream's script writes it. It takes one ``lora_alpha`` for all layers and knows neither rslora nor rank and alpha
patterns, which would silently scale layers wrongly; so the factors are scaled before they are given to it. Afterwards
the size of every layer's product is compared with the adapter's. Runs in the child process of
``local.quantizing.worker``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cloudft.errors import ConfigError, VerifyError
from local.files import write_json
from local.progress import Progress
from local.quantizing.adapter import read_lora
from local.quantizing.lora import Lora
from local.quantizing.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS

SCRIPT = "convert_lora_to_gguf.py"


def build_adapter(
    *, base: str, adapter: str, toolchain: str, scratch: str, out: str, again: str, progress: Progress
) -> dict[str, Any]:
    """Write ``out`` from the adapter; of the base only configuration and tensor names are read.

    Args:
        again: the command that merges it instead, for a hint.

    Returns:
        ``layers``: how many layers it changes; ``worst``: largest relative difference of a layer's size.

    Raises:
        ConfigError: the adapter is more than LoRA factors, which a LoRA file can't carry.
        IntegrityError: it does not fit the base.
        VerifyError: the file's layers are not of the adapter's size, or upstream's script failed.
    """
    progress("convert", 0, None, "", "the adapter alone")
    lora = read_lora(Path(base), Path(adapter))
    more = lora if isinstance(lora, str) else lora.said()
    if more or isinstance(lora, str):
        raise ConfigError(
            f"this adapter can't be a file of its own, for it is more than factors: {more}",
            effect="nothing was written",
            hint=f"merge it instead:  {again}",
        )
    scaled = Path(scratch) / "scaled"
    sizes = _scale(lora, Path(adapter), scaled)
    command = [sys.executable, "-P", str(Path(toolchain) / SCRIPT), "--base", base, "--outtype", "f32"]
    part = Path(out + ".part")
    done = subprocess.run(
        [*command, "--outfile", str(part), str(scaled)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([toolchain, str(Path(toolchain) / "gguf-py")])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    sys.stderr.write(done.stderr)
    if done.returncode != 0 or not part.is_file():
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["it gave no reason"]
        raise VerifyError(f"upstream's {SCRIPT} could not write the adapter: {last[0]}", effect="nothing was written")
    progress("verify", 0, None, "", "the size of every layer")
    worst = _compare(part, sizes, Path(toolchain))
    with part.open("rb") as written:
        os.fsync(written.fileno())
    part.replace(out)
    return {"layers": len(sizes), "worst": worst}


def _scale(lora: Lora, adapter: Path, out: Path) -> list[float]:
    """The adapter with one scale for all layers, as a folder; returns the sizes of all layers' products."""
    from safetensors.torch import save_file

    out.mkdir(parents=True)
    config = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    alpha = config["lora_alpha"] if config["lora_alpha"] > 0 else 1
    tensors, sizes = {}, []
    for module, pair in lora.pairs.items():
        a, b, scale = lora.factors(module)
        # llama.cpp will multiply by alpha / rank of the layer; alpha is the one of all layers.
        tensors[pair.a], tensors[pair.b] = a, (b * (scale * pair.rank / alpha)).contiguous()
        sizes.append(_size(a, b) * abs(scale))
    save_file(tensors, out / ADAPTER_WEIGHTS)
    one: dict[str, Any] = {"lora_alpha": alpha, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {}}
    write_json(out / ADAPTER_CONFIG, config | one)
    return sizes


def _size(a: Any, b: Any) -> float:
    """Frobenius norm of ``b @ a``; it does not change when rows change places, as those of q and k do."""
    return float(((a @ a.T) * (b.T @ b).T).sum().clamp(min=0).sqrt())


def _compare(path: Path, sizes: list[float], toolchain: Path) -> float:
    sys.path[:0] = [str(toolchain / "gguf-py")]
    import gguf
    import torch

    reader = gguf.GGUFReader(str(path))
    alpha = float(reader.fields["adapter.lora.alpha"].contents())
    found = {t.name: torch.from_numpy(t.data.copy()) for t in reader.tensors}
    ours = []
    for name, a in found.items():
        if name.endswith(".lora_a"):
            ours.append(_size(a, found[name[:-1] + "b"]) * alpha / a.shape[0])
    if len(ours) != len(sizes):
        raise VerifyError(f"the file has {len(ours)} layers, the adapter {len(sizes)}", effect="nothing was written")
    pairs = zip(sorted(ours), sorted(sizes), strict=True)
    worst = max((abs(x - y) / max(y, 1e-12) for x, y in pairs if y or x), default=0.0)
    if worst > 1e-3:
        raise VerifyError(f"the scale of a layer in the file is off by {worst:.1%}", effect="nothing was written")
    return worst
