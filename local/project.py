"""A project: a folder with ``cloudft.yaml``, and the names of everything inside it.

cloudft.yaml   compose.yaml   Dockerfile.serve   data/
runs/<run id>/ run.json  events.jsonl  spec.json  train.jsonl  holdout.jsonl  adapter/  eval.json  …
models/<version>/ model.gguf  manifest.json  chat_template.jinja
models/bases/<revision>/ model.gguf  manifest.json        the quantised base, for "before"
models/current -> <version>                               what `docker compose up serve` serves
.cloudft/      caches and machines of provider `local`; safe to delete when nothing runs
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cloudft.errors import ConfigError, NotFound

CONFIG_NAME = "cloudft.yaml"


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run; none of them need exist yet."""

    root: Path

    @property
    def run_id(self) -> str:
        return self.root.name

    @property
    def record(self) -> Path:
        return self.root / "run.json"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def lock(self) -> Path:
        return self.root / ".lock"

    @property
    def spec(self) -> Path:
        return self.root / "spec.json"

    @property
    def train_data(self) -> Path:
        return self.root / "train.jsonl"

    @property
    def holdout(self) -> Path:
        return self.root / "holdout.jsonl"

    @property
    def task(self) -> Path:
        """The task (schema, keys) as it was at submit."""
        return self.root / "task.json"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def result(self) -> Path:
        return self.root / "result.json"

    @property
    def evaluation(self) -> Path:
        return self.root / "eval.json"

    @property
    def run_lock(self) -> Path:
        """All that is needed to repeat the run."""
        return self.root / "run.lock.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def report(self) -> Path:
        """The folder that ``cloudft report`` writes."""
        return self.root / "report"


@dataclass(frozen=True)
class Project:
    """A project folder. Paths are absolute."""

    root: Path

    @property
    def config_file(self) -> Path:
        return self.root / CONFIG_NAME

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def current_model(self) -> Path:
        """The symbolic link to the version that is served."""
        return self.models / "current"

    @property
    def state(self) -> Path:
        return self.root / ".cloudft"

    def run(self, run_id: str) -> RunFolder:
        return RunFolder(self.runs / run_id)

    def run_ids(self) -> list[str]:
        """Ids of all runs, oldest first: an id begins with its time."""
        if not self.runs.is_dir():
            return []
        return sorted(p.name for p in self.runs.iterdir() if (p / "run.json").is_file())

    def pick_run(self, run_id: str | None) -> RunFolder:
        """The run of that id (or unique beginning of one); without an id, the latest.

        Raises:
            NotFound: no such run, or several that begin so.
        """
        ids = self.run_ids()
        if not ids:
            raise NotFound(f"{self.root} has no runs yet", hint="start one:  cloudft submit")
        if run_id is None:
            return self.run(ids[-1])
        matches = [run_id] if run_id in ids else [i for i in ids if i.startswith(run_id)]
        if len(matches) == 1:
            return self.run(matches[0])
        known = ", ".join(ids[-5:])
        what = f"no run {run_id!r}" if not matches else f"{len(matches)} runs begin with {run_id!r}"
        raise NotFound(f"{what} in {self.runs}", hint=f"the latest runs are {known}")


def find_project(start: Path) -> Project:
    """The project that ``start`` lies in: the nearest folder upwards with a ``cloudft.yaml``.

    Raises:
        ConfigError: there is none.
    """
    start = start.resolve()
    for folder in (start, *start.parents):
        if (folder / CONFIG_NAME).is_file():
            return Project(folder)
    raise ConfigError(
        f"no {CONFIG_NAME} in {start} or above it",
        effect="nothing was started",
        hint="make a project here:  cloudft init",
    )
