"""``cloudft toolchain``."""

from __future__ import annotations

from pathlib import Path

import click

from cloudft.commands.common import cloudft_command, if_interrupted
from cloudft.output import Output


@cloudft_command("toolchain")
@click.argument("action", type=click.Choice(["show", "install", "remove"]), default="show")
@click.option(
    "--sdist",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Install from this source archive of llama-cpp-python, which you brought, instead of fetching it.",
)
def command(action: str, out: Output, directory: Path, sdist: Path | None) -> None:
    """Show, install or remove the converter that `quantize` uses; `quantize` installs it by itself when it must."""
    from local.quantizing.toolchain import ensure_toolchain, remove_toolchain, toolchain_state

    if action == "remove":
        removed = remove_toolchain()
        out.result(
            {"removed": [str(path) for path in removed]}, f"removed: {', '.join(map(str, removed)) or 'nothing'}"
        )
        return
    if action == "install":
        stopped = if_interrupted("interrupted", "nothing is half-installed", "cloudft toolchain install")
        with stopped, out.progress() as progress:
            ensure_toolchain(progress, directory / sdist if sdist else None)
    state = toolchain_state()
    text = f"{state.package} {state.version}: {'installed' if state.whole else state.why} ({state.root})"
    if state.whole:
        text += f"\n{state.files} files, {state.bytes / 1e6:.1f} MB, from the archive with sha256 {state.sdist_sha256}"
    out.result(
        {
            "package": state.package,
            "version": state.version,
            "installed": state.whole,
            "root": str(state.root),
            "files": state.files,
            "bytes": state.bytes,
            "sdist_sha256": state.sdist_sha256,
        },
        text,
    )
    if not state.whole:
        out.next_commands("cloudft toolchain install")
