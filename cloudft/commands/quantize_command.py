"""``cloudft quantize``."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloudft.commands.common import FiniteRange, cloudft_command, if_interrupted, of_run, open_project, run_argument
from cloudft.errors import UsageError
from cloudft.output import Output

if TYPE_CHECKING:
    from local.project import Project
    from local.quantizing.refused import Refused
    from local.serving.versions import Version


@cloudft_command("quantize")
@run_argument
@click.option(
    "--type",
    "kinds",
    multiple=True,
    metavar="TYPE",
    help="Quantisation type, Q4_K_M if not given; may be given several times, all come from one read. "
    "The first becomes the current model.",
)
@click.option("--step-up", is_flag=True, help="If a file loses too much, take the next finer type that does not.")
@click.option("--imatrix", is_flag=True, help="Learn from the training data which weights matter.")
@click.option("--adapter-only", is_flag=True, help="Write the adapter alone, as a LoRA GGUF file; nothing is merged.")
@click.option(
    "--model",
    "folder",
    type=click.Path(path_type=Path),
    help="Quantise the model in this folder, such as a full fine-tune, instead of what a run trained.",
)
@click.option(
    "--max-kl",
    type=FiniteRange(min=0),
    metavar="NATS",
    help="Largest divergence from the 16-bit merge to accept, per token.",
)
def command(
    run_id: str | None,
    out: Output,
    directory: Path,
    kinds: tuple[str, ...],
    step_up: bool,
    imatrix: bool,
    adapter_only: bool,
    folder: Path | None,
    max_kl: float | None,
) -> None:
    """Merge the adapter onto its 16-bit base, quantise, verify, and make it the current model."""
    from local.quantizing.quantize import quantize_model, quantize_types
    from local.quantizing.refused import SomeRefused

    if folder is not None and (run_id is not None or imatrix or adapter_only):
        raise UsageError("--model stands for a whole model: it takes no run, no --imatrix and no --adapter-only")
    if adapter_only and (kinds or step_up or imatrix or max_kl is not None):
        raise UsageError("--adapter-only quantises nothing: it takes no --type, --step-up, --imatrix or --max-kl")
    project = open_project(directory)
    if adapter_only:
        _write_adapter(project, run_id, out)
        return
    types = kinds or ("Q4_K_M",)
    try:
        with _stoppable(), out.progress() as progress:
            if folder is not None:
                model = directory / folder
                versions = quantize_model(project, model, types, max_kl=max_kl, step_up=step_up, progress=progress)
            else:
                run = project.pick_run(run_id)
                versions = quantize_types(
                    project, run, types, imatrix=imatrix, max_kl=max_kl, step_up=step_up, progress=progress
                )
    except SomeRefused as exc:
        _show(exc.versions, exc.refused, out)
        raise
    _show(versions, [], out)
    serve = "docker compose up serve    (or: cloudft serve)"
    # A model of a folder belongs to no run, and has no hold-out.
    out.next_commands(*([] if folder else [f"cloudft eval{of_run(run_id)}"]), serve)


def _stoppable() -> AbstractContextManager[None]:
    return if_interrupted(
        "interrupted", "nothing is half-written: the current model is the one it was", "type the same command again"
    )


def _write_adapter(project: Project, run_id: str | None, out: Output) -> None:
    from local.quantizing.quantize import quantize_adapter

    with _stoppable(), out.progress() as progress:
        path = quantize_adapter(project, project.pick_run(run_id), progress=progress)
    size = path.stat().st_size
    out.result({"adapter": str(path), "bytes": size}, f"adapter alone: {path} ({size / 1e6:.1f} MB)")
    out.next_commands(f"llama-server --model BASE.gguf --lora {path}")


def _show(versions: list[Version], refused: list[Refused], out: Output) -> None:
    """What was made, and for a program what was refused as well: to a person the error says that."""
    made = [
        {
            "version": version.name,
            "gguf": str(version.gguf),
            "bytes": version.gguf.stat().st_size,
            "manifest": version.manifest.model_dump(mode="json"),
        }
        for version in versions
    ]
    lines = [_line(version) for version in versions]
    lines.append(f"current model: {versions[0].name}")
    out.result({**made[0], "versions": made, "refused": [asdict(one) for one in refused]}, "\n".join(lines))


def _line(version: Version) -> str:
    found = version.manifest.verification
    size = version.gguf.stat().st_size
    text = f"version {version.name}: {version.gguf} ({size / 1e6:.1f} MB, verified"
    if found.kl_divergence is not None and found.top1_agreement is not None:
        text += f"; {found.kl_divergence:.4f} nats per token from the 16-bit merge, {found.top1_agreement:.0%} agree"
    return text + (f"; merged {version.manifest.merge})" if version.manifest.merge else ")")
