"""Reports a training to trackers, beside it: what a tracker does or does not do never costs a step.

Each tracker's own callback (transformers') runs in a thread of its own. One that fails is let go with a word in the
log. What is not sent at a stage's end goes on beside the gate and the saving (``settle``); one that hangs is waited for
a few seconds, no longer. ``metrics.jsonl`` has everything.

Trackers that need no account, or have none, write below ``out/tracking``; the supervisor sends that home.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jobs.runlog import say
from jobs.spec import RunSpec
from jobs.trackers import TrackerName

FOLDER = "tracking"
# Seconds after a stage's end that a tracker has for what it has not sent yet. The machine is billed.
PATIENCE = 10.0
FAILURES = 3
# Longer than any stage reports while a tracker hangs; then the oldest reports are dropped, not the training.
WAITING = 1000
# Those of this process, in the order in which they were begun.
_workers: list[_Worker] = []


def begun() -> bool:
    """Whether this process reports to any tracker."""
    return bool(_workers)


def settle() -> None:
    """Wait for what the trackers of the stages so far have not sent yet, ``PATIENCE`` seconds from the stage's end."""
    for worker in _workers:
        worker.settle()


def tracking_callbacks(spec: RunSpec, out: Path, stage: str) -> list[Any]:
    """A callback for each tracker that the spec names; none for one that cannot be begun, and the log says why.

    Args:
        out: the folder of what the trainer leaves; files of trackers go below it.
        stage: the stage's name; each is a run of its own for the tracker.
    """
    # Of some trackers a process can have one run at a time.
    settle()
    if spec.tracking.report_to:
        set_environment(spec, out / FOLDER, stage)
    run_name = spec.run_id if len(spec.stages) == 1 else f"{spec.run_id}-{stage}"
    found = []
    for name in spec.tracking.report_to:
        try:
            found.append(_beside(name, spec, run_name))
        except Exception as exc:  # an import of somebody else's package, or its demand for an account
            say(f"warning: nothing is reported to {name}: {type(exc).__name__}: {exc}")
    return found


def set_environment(spec: RunSpec, folder: Path, stage: str) -> None:
    """What the trackers read: the user's settings first, then places on this machine and short patience."""
    os.environ.update(spec.tracking.environment)
    places = {"WANDB_DIR": "wandb", "TRACKIO_DIR": "trackio", "COMET_OFFLINE_DIRECTORY": "comet_ml"}
    for name, place in places.items():
        os.environ.setdefault(name, str(folder / place))
    for place in ("wandb", "mlflow"):
        if place in spec.tracking.report_to:
            (folder / place).mkdir(parents=True, exist_ok=True)
    # One folder for each stage: its steps begin at 1 again.
    if "TENSORBOARD_LOGGING_DIR" not in spec.tracking.environment:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard" / stage)
    defaults = {
        "WANDB_PROJECT": spec.project,
        "WANDB_LOG_MODEL": "false",
        "WANDB_SILENT": "true",
        "COMET_PROJECT_NAME": spec.project,
        "MLFLOW_EXPERIMENT_NAME": spec.project,
        "MLFLOW_TRACKING_URI": (folder / "mlflow").as_uri(),
        # mlflow keeps files only for who says so; without an account there is nothing else.
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _beside(name: TrackerName, spec: RunSpec, run_name: str) -> Any:
    """The tracker's own callback, in a thread of its own."""
    from transformers import TrainerCallback
    from transformers.integrations import get_reporting_integration_callbacks

    (kind,) = get_reporting_integration_callbacks([name])
    worker = _Worker(name, kind)

    def forward(event: str) -> Callable[..., None]:
        def method(self: Any, args: Any, state: Any, control: Any, **given: Any) -> None:
            # Copies: the training goes on while the tracker reads.
            named = copy.copy(args)
            named.run_name, named.project = run_name, spec.project
            worker.put(event, named, copy.copy(state), copy.copy(control), given)

        return method

    events = {event: forward(event) for event in dir(TrainerCallback) if event.startswith("on_")}
    # Nobody waits for these, and there are many of them; no tracker needs them.
    quiet = [event for event in events if "step" in event or "optimizer" in event or "epoch" in event]
    for event in quiet:
        del events[event]
    return type("Beside", (TrainerCallback,), events)()


class _Worker:
    """Calls a tracker's callback from one thread: several trackers keep their run in a variable of the thread."""

    def __init__(self, name: str, make: Callable[[], Any]) -> None:
        self.name = name
        self._make = make
        self._events: queue.Queue[tuple[str, Any]] = queue.Queue(WAITING)
        self._failures = 0
        self._gone = False
        self._ended = threading.Event()
        self._waits_until: float | None = None
        _workers.append(self)
        threading.Thread(target=self._work, daemon=True, name=f"report to {name}").start()

    def put(self, event: str, args: Any, state: Any, control: Any, given: dict[str, Any]) -> None:
        if "logs" in given:
            given = {**given, "logs": dict(given["logs"] or {})}
        with contextlib.suppress(queue.Full):
            self._events.put_nowait((event, (args, state, control, given)))
        if event == "on_train_end":
            self._waits_until = time.monotonic() + PATIENCE

    def settle(self) -> None:
        """Wait until it has taken what the stage reported; once, and not for long. A stage that broke has no end."""
        until, self._waits_until = self._waits_until, None
        if until is not None and not self._ended.wait(max(until - time.monotonic(), 0.0)) and not self._gone:
            say(f"warning: {self.name} has not taken everything in {PATIENCE:.0f} s; the training does not wait for it")

    def _work(self) -> None:
        try:
            inner = self._make()
        except Exception as exc:
            self._let_go(exc)
            return
        while not self._gone:
            event, (args, state, control, given) = self._events.get()
            with self._told():
                getattr(inner, event)(args, state, control, **given)
            if event == "on_train_end":
                with self._told():
                    _finish(self.name)
                self._ended.set()
                return

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """One failure may be a lost connection; several in a row are an end."""
        try:
            yield
            self._failures = 0
        except Exception as exc:
            self._failures += 1
            if self._failures >= FAILURES:
                self._let_go(exc)

    def _let_go(self, exc: Exception) -> None:
        self._gone = True
        self._ended.set()
        text = str(exc).strip().splitlines() or [""]
        say(f"warning: nothing more is reported to {self.name}: {type(exc).__name__}: {text[0]}")


def _finish(name: str) -> None:
    """The next stage is a run of its own, and what is still in memory must be sent."""
    if name == "wandb":
        importlib.import_module("wandb").finish()
