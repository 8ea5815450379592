"""The demo's project folder: the task's data, a tiny base, and the settings that go with them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cloudft.errors import Busy
from local.demo.demo_base import build_demo_base, is_demo_base
from local.demo.demo_tickets import write_demo_data
from local.files import write_text
from local.progress import Progress
from local.project import CONFIG_NAME, Project

ROWS: Final = 700
SEED: Final = 7

# The learning rate is 25 times the usual one: the model has a thousandth of the usual size.
CONFIG: Final = """\
# A project of cloudft. Every key is described by:  cloudft init --schema
project: tickets
base: ./base                  # a model of 1.4 million parameters, made for this demo
data:
  path: data/tickets.jsonl
  holdout: 0.2                # a fifth of the rows is kept for the before/after
  seed: 7
task:
  kind: json
  schema: data/schema.json
  max_tokens: 64
train:                        # what is left out is chosen from the data
  max_steps: 100
  batch_size: 16
  gradient_accumulation: 1
  learning_rate: 0.005        # high: the base is tiny; 0.0002 is usual
  lora_r: 16
  lora_alpha: 32
  lora_dropout: 0.0
  max_length: 256
  dtype: float32
max_hours: 0.5
serve:
  context: 1024
"""


def write_demo_project(folder: Path, progress: Progress) -> Project:
    """Write ``cloudft.yaml``, ``data/tickets.jsonl``, ``data/schema.json`` and ``base/`` into ``folder``; returns it.

    Done again in the same folder it changes nothing but files of its own; the base comes from the cache.

    Raises:
        Busy: ``folder`` holds a project or data that the demo did not make.
        UsageError: ``folder/base`` is another model.
        EnvironmentProblem: the packages for pretraining are missing, or the disk is full.
    """
    _refuse_others(folder)
    build_demo_base(folder / "base", progress)
    progress("write the demo's data", ROWS, ROWS, "rows")
    write_demo_data(folder / "data", ROWS, SEED)
    # Last: without it the folder is no project yet.
    write_text(folder / CONFIG_NAME, CONFIG)
    return Project(folder.resolve())


def _refuse_others(folder: Path) -> None:
    """Never write over somebody's own work: the first line of ``cloudft.yaml`` tells whose it is."""
    config = folder / CONFIG_NAME
    if config.is_file():
        mine = config.read_text(encoding="utf-8", errors="replace").startswith(CONFIG.splitlines()[0])
    else:
        # A demo that was interrupted before its cloudft.yaml has a base that is known by its recipe.
        mine = is_demo_base(folder / "base")
    theirs = [name for name in (CONFIG_NAME, "data") if (folder / name).exists()]
    if theirs and not mine:
        raise Busy(
            f"{folder.resolve()} holds {' and '.join(theirs)} that the demo did not make",
            effect="no file was changed",
            hint="give the demo a folder of its own:  cloudft demo -C demo",
        )
