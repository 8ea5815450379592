"""What goes home of a trainer that was killed, or failed, before it had saved a result. Standard library only.

Three things on this machine's disk may hold one, each whole or not there, the one that came furthest first:

    out/candidate    what the last stage made, while the gate still measured it (``jobs.delivery``)
    best/            the best weights of the stage so far (``jobs.best``), which may be newer than any checkpoint
    checkpoints/     the newest checkpoint, or the best weights in it (``jobs.checkpoints``)
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jobs import checkpoints
from jobs.checkpoints import BEST, BEST_FACTS, METRICS, REJECTED
from jobs.curve import read_lines
from jobs.delivery import CANDIDATE, RESULT


@dataclass(frozen=True)
class BestOnDisk:
    """A whole result in ``folder``: the weights of the run's ``step``, and ``files``, all that goes home with them."""

    folder: Path
    step: int
    files: tuple[str, ...]


def best_on_disk(work: Path, run_id: str) -> BestOnDisk | None:
    """The best weights so far of that run; None for half of them, another run's, or none.

    While the trainer puts new ones in their place, the old ones lie beside it.
    """
    for folder in (work / BEST, checkpoints.put_aside(work / BEST)):
        try:
            facts = json.loads((folder / BEST_FACTS).read_text(encoding="utf-8"))
            sizes = {str(name): int(size) for name, size in facts["files"].items()}
            found = BestOnDisk(folder, int(facts["step"]), tuple(sizes))
            whole = all((folder / name).stat().st_size == size for name, size in sizes.items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if whole and facts.get("run_id") == run_id:
            return found
    return None


class Rescue:
    """Puts what is left in ``work`` where the result belongs. ``step``: of its weights; None: nothing was taken."""

    def __init__(self, work: Path, run_id: str, say: Callable[[str], None]) -> None:
        self.work, self.run_id, self.say = work, run_id, say
        self.result = work / "out" / RESULT
        self.forget()
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Another trainer begins."""
        self.step: int | None = None
        self.told = ""

    @property
    def has_best(self) -> bool:
        """Whether there are best weights, as an earlier life of this machine may have left them."""
        return best_on_disk(self.work, self.run_id) is not None

    def take(self) -> str:
        """Take what there is, unless the trainer left its result; what was taken, in words, empty for nothing."""
        with self._lock:
            if not self.result.exists():
                try:
                    self._take()
                except OSError as exc:
                    self.say(f"what the trainer left cannot be taken: {exc}")
            return self.told

    def _take(self) -> None:
        if self._candidate():
            return
        newest, best = self._newest(), best_on_disk(self.work, self.run_id)
        if best and (newest is None or best.step > checkpoints.result_step(newest)) and self._put_best(best):
            self._tell(best.step, "the best by then")
        elif newest:
            checkpoints.result_of(newest, self.result)
            step = checkpoints.result_step(newest)
            self._tell(step, f"{'the best in' if step < newest.step else 'from'} the checkpoint of step {newest.step}")

    def _tell(self, step: int, what: str) -> None:
        self.step, self.told = step, f"the result is that of step {step}, {what}"
        self.say(self.told)

    def _newest(self) -> checkpoints.Checkpoint | None:
        return next(iter(checkpoints.sealed(self.work / checkpoints.FOLDER)), None)

    def _candidate(self) -> bool:
        """It lacks nothing but the gate's word, and a stage that is not measured again is kept."""
        candidate = self.result.with_name(CANDIDATE)
        if not checkpoints.weight_files(candidate):
            return False
        candidate.rename(self.result)
        step = _best_step(self.work)
        if step is None:
            lines = read_lines(self.result.with_name(METRICS))
            step = max((int(line["step"]) for line in lines if "loss" in line), default=0)
        self._tell(step, "the last stage's, not measured again")
        return True

    def _put_best(self, best: BestOnDisk) -> bool:
        """Whether it could be put there; an older checkpoint may be then."""
        part = self.result.with_name(f".{self.result.name}.part")
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            for name in best.files:
                _link(best.folder / name, part / name)
            if (kept_out := self.work / REJECTED).is_dir():
                shutil.copytree(kept_out, part / REJECTED, copy_function=_link)
            part.rename(self.result)
        except OSError as exc:
            self.say(f"the best weights, of step {best.step}, cannot be taken: {exc}")
            return False
        return True


def _best_step(work: Path) -> int | None:
    """The step of the last stage's best weights, also of ones that came with a checkpoint, and so without the rest."""
    try:
        return int(json.loads((work / BEST / BEST_FACTS).read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _link(source: str | Path, target: str | Path) -> None:
    """The same file, which takes no room: it is never changed. A copy where the disk has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
