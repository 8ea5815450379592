"""``cloudft build``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cloudft.commands.common import cloudft_command, if_interrupted, open_project
from cloudft.output import Output

if TYPE_CHECKING:
    from local.build_image import ProjectImage


def _platform(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"linux/[a-z0-9]+", value):
        raise click.BadParameter("write it as linux/amd64 or linux/arm64", ctx=context, param=parameter)
    return value


@cloudft_command("build")
@click.option("--push/--no-push", default=True, show_default=True, help="Push it; provider docker needs no push.")
@click.option(
    "--platform",
    callback=_platform,
    metavar="OS/ARCH",
    help="Platform of the image; default: build.platform, linux/amd64.",
)
@click.option("--update-base", is_flag=True, help="Take the newest image of build.base_image's tag.")
def command(out: Output, directory: Path, push: bool, platform: str | None, update_base: bool) -> None:
    """Build the training image, push it, and pin it by digest in cloudft.yaml.

    Nothing is built or pushed when nothing changed. Logins come from Docker's own config (docker login). Costs
    nothing: no machine is rented.
    """
    from local.build_image import build_project_image

    project = open_project(directory)
    stopped = if_interrupted(
        "interrupted",
        "nothing was rented, and cloudft.yaml is as it was; no half image is in the registry: an image appears there "
        "only when all of it is there",
        "cloudft build    (finished steps and layers are kept, and not done again)",
    )
    with stopped, out.progress() as progress:
        built = build_project_image(project, push=push, platform=platform, update_base=update_base, progress=progress)
    for note in built.image.notes:
        out.note(note)
    out.result(_plain(built), _told(built))
    out.next_commands(*_next(built))


def _told(built: ProjectImage) -> str:
    from local.files import human_bytes

    lock = built.image.lock
    done = "built" if built.image.built else "nothing changed, not built again"
    pushed = "pushed" if built.image.pushed else "not pushed" if built.runs_here_only else "in the registry already"
    lines = [f"image {lock.image}", f"  tag         {lock.tag} ({done}; {pushed})"]
    if lock.contents:
        inside = lock.contents
        lines.append(f"  base        {inside.base}, as {inside.base_pinned}")
        lines.append(f"  inside      Python {inside.python}, {len(inside.packages)} packages, {inside.platform}")
    sizes = [
        f"{human_bytes(size)} {what}"
        for size, what in ((lock.bytes, "unpacked"), (lock.pull_bytes, "to pull"))
        if size is not None
    ]
    lines.append(f"  size        {', '.join(sizes) or 'unknown'}")
    lines.append(f"  written     {', '.join(built.written) or 'nothing: cloudft.yaml and lock say so already'}")
    return "\n".join(lines)


def _next(built: ProjectImage) -> tuple[str, ...]:
    if not built.runs_here_only:
        return ("cloudft submit",)
    if built.written:
        return ("cloudft submit --provider docker",)
    return ("cloudft build    (pushes it, so that a rented machine can pull it)",)


def _plain(built: ProjectImage) -> dict[str, object]:
    return {
        **built.image.lock.model_dump(mode="json"),
        "built": built.image.built,
        "pushed": built.image.pushed,
        "written": list(built.written),
        "notes": list(built.image.notes),
    }
