"""``cloudft init``: the files of a new project."""

from __future__ import annotations

import json
import secrets
import shutil
from pathlib import Path

from cloudft.errors import Busy
from images.context import recipe
from local.config import json_schema
from local.demo.demo_tickets import write_demo_data
from local.files import atomic_open, write_text
from local.project import CONFIG_NAME, Project

SAMPLE_ROWS = 500
SAMPLE_BASE = "Qwen/Qwen2.5-0.5B-Instruct"
SCHEMA_FILE = "cloudft.schema.json"

CONFIG = """\
# yaml-language-server: $schema=./{schema}
# Every key is described by:  cloudft init --schema
project: {project}
base: {base}            # a repository of the model hub, or a folder with a 16-bit model

data:
  path: data/tickets.jsonl    # messages (ChatML), instruction/input/output (Alpaca) or prompt/completion
  holdout: 0.2                # share of the rows that training never sees

task:
  kind: json                  # or classification, tools, text, code
  schema: data/schema.json    # what an answer must look like

# train:                      # what is left out is chosen from the data, with its reason
#   method: qlora             # lora, qlora, dora, rslora, full
#   stages: [{{kind: sft}}, {{kind: dpo, data: data/pairs.jsonl}}]

provider: local               # trains on this computer and costs nothing
store: ./store                # or a bucket:
# store:
#   url: s3://bucket/prefix
#   endpoint_url: https://…   # for R2, Ceph, MinIO; keys come from the environment or an AWS profile
"""

DOCKERIGNORE = "*\n!Dockerfile.serve\n"
GITIGNORE = ".env\n.cloudft/\nruns/\nmodels/\nstore/\n"


def init_project(folder: Path, sample: bool = True) -> tuple[Project, list[str]]:
    """Make a project in ``folder``; files that are there already are left as they are.

    Returns:
        The project, and the names of the files that were written.

    Raises:
        Busy: there is a project in this folder already.
    """
    if (folder / CONFIG_NAME).exists():
        raise Busy(
            f"{folder.resolve()} is a project already: it has a {CONFIG_NAME}",
            effect="no file was changed",
            hint="go on with it:  cloudft submit    or make another:  cloudft init -C other-folder",
        )
    folder.mkdir(parents=True, exist_ok=True)
    written = write_serving_files(folder)
    if sample and not (folder / "data").exists():
        data, schema = write_demo_data(folder / "data", SAMPLE_ROWS, seed=1)
        written += [f"data/{data.name}", f"data/{schema.name}"]
    # Last: a folder with a cloudft.yaml is a whole project.
    config = CONFIG.format(schema=SCHEMA_FILE, project=project_name(folder), base=SAMPLE_BASE)
    write_text(folder / CONFIG_NAME, config)
    return Project(folder.resolve()), [*written, CONFIG_NAME]


def write_serving_files(folder: Path) -> list[str]:
    """What ``docker compose up serve`` needs, and a schema for editors; returns the names of what was written."""
    written = []
    for name in ("compose.yaml", "Dockerfile.serve"):
        if not (folder / name).exists():
            with atomic_open(folder / name) as out, recipe(name).open("rb") as src:
                shutil.copyfileobj(src, out)
            written.append(name)
    texts = {
        SCHEMA_FILE: json.dumps(json_schema(), indent=2) + "\n",
        ".dockerignore": DOCKERIGNORE,
        ".gitignore": GITIGNORE,
    }
    for name, text in texts.items():
        if not (folder / name).exists():
            write_text(folder / name, text)
            written.append(name)
    if not (folder / ".env").exists():
        write_key(folder / ".env")
        written.append(".env")
    (folder / "models").mkdir(exist_ok=True)
    return written


def write_key(path: Path) -> None:
    """A random API key for the served model, readable by its user alone."""
    path.touch(mode=0o600)
    path.write_text(f"CLOUDFT_API_KEY={secrets.token_urlsafe(32)}\n", encoding="utf-8")


def project_name(folder: Path) -> str:
    """A valid project name from the folder's own."""
    name = "".join(c if c.isascii() and c.isalnum() else "-" for c in folder.resolve().name.lower())
    return name.strip("-")[:32].strip("-") or "project"
