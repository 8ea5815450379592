"""``cloudft init``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from cloudft.commands.common import cloudft_command, if_interrupted
from cloudft.output import Output


@cloudft_command("init")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of cloudft.yaml and write nothing.")
@click.option("--no-sample", is_flag=True, help="Leave out the sample data.")
def command(out: Output, directory: Path, schema: bool, no_sample: bool) -> None:
    """Make a project here: cloudft.yaml, sample data, compose.yaml with a fresh API key.

    Files that are there already are left as they are.
    """
    from local.config import json_schema
    from local.scaffold import init_project

    if schema:
        out.result(json_schema(), json.dumps(json_schema(), indent=2))
        return
    with if_interrupted("interrupted", "what was written is whole; type the same command again to write the rest"):
        project, written = init_project(directory, sample=not no_sample)
    text = f"a new project in {project.root}:\n" + "\n".join(f"  {name}" for name in sorted(written))
    out.result({"project": str(project.root), "written": sorted(written)}, text)
    out.note("\nSet base, data and task in cloudft.yaml, or try it as it is with the sample data.")
    out.next_commands("cloudft submit", "cloudft pull && cloudft quantize", "cloudft eval", "docker compose up serve")
