"""A user's own metric: a Python function ``(answer, expected, row) → number, true or false, or several by name``.

``answer`` is the model's text, ``expected`` the hold-out's answer as it stands there, ``row`` a dict with ``number``
(the row's line), ``messages`` (what was asked), ``expected`` (parsed as the task has it) and ``tool_calls``. Higher is
better. A request that failed is not shown to the function: it scores 0, or false.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from cloudft.errors import ConfigError
from local.evaluation.document.measurement import Metric
from local.evaluation.endpoint import Reply
from local.evaluation.tasks.base import MetricDef, Row
from local.files import sha256_file

NOTHING = "nothing was measured; answers that were given already are kept"
# A file that is a script too may call sys.exit: that would end us without a word, and even with success.
ENDS = (Exception, SystemExit)


@dataclass(frozen=True)
class OwnMetric:
    """``spec``: as in cloudft.yaml; ``name``: the function's; ``file``: relative to the project."""

    spec: str
    name: str
    file: str
    sha256: str
    function: Callable[[str, str, dict[str, Any]], Any]

    def score(self, reply: Reply | None, row: Row) -> dict[str, float | bool]:
        """The metrics of one answer by name, empty for a request that failed.

        Raises:
            ConfigError: the function failed, or gave something else; names the row.
        """
        if reply is None:
            return {}
        shown = {
            "number": row.number,
            "messages": [dict(message) for message in row.prompt],
            "expected": row.expected,
            "tool_calls": [dict(call) for call in reply.tool_calls],
        }
        try:
            given = self.function(reply.text, row.text, shown)
        except ENDS as exc:
            raise self._wrong(row, f"{type(exc).__name__}: {exc}{_place(exc)}") from exc
        found = (
            {f"{self.name}.{key}": v for key, v in given.items()} if isinstance(given, Mapping) else {self.name: given}
        )
        # NumPy's numbers and truths are none of Python's.
        found = {name: value.item() if hasattr(value, "item") else value for name, value in found.items()}
        for name, value in found.items():
            if not isinstance(value, bool) and not _is_number(value):
                raise self._wrong(row, f"{name} is {value!r}, which is no finite number, nor true or false")
        return {name: value if isinstance(value, bool) else float(value) for name, value in found.items()}

    def _wrong(self, row: Row, why: str) -> ConfigError:
        return ConfigError(
            f"task.metric: {self.spec} failed on hold-out row {row.number}: {why}",
            effect=NOTHING,
            hint=f"mend {self.file}, then:  cloudft eval",
        )


def load_own_metrics(root: Path, specs: Sequence[str]) -> tuple[OwnMetric, ...]:
    """Import the functions that ``cloudft.yaml`` names.

    Raises:
        ConfigError: a file is missing or can't be imported, or has no such function.
    """
    return tuple(_load(root, spec) for spec in specs)


def own_file(root: Path, spec: str) -> tuple[Path, str]:
    """The file and the function that ``spec`` names. Raises ``ConfigError``."""
    file, _, name = spec.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise _refused(spec, "it must name a file and a function, such as my_metrics.py:score")
    if not (root / file).is_file():
        raise _refused(spec, f"{root / file} is not there")
    return root / file, name


def own_metric_defs(metrics: Sequence[OwnMetric], scores: Sequence[Mapping[str, float | bool]]) -> dict[str, MetricDef]:
    """What was found out about the metrics from the scores of all answers that came.

    Raises:
        ConfigError: a function gave other names, or another kind of value, for one answer than for another.
    """
    given = [score for score in scores if score]
    if not given:
        return {}
    names = given[0].keys()
    if other := next((score.keys() ^ names for score in given if score.keys() != names), None):
        raise ConfigError(f"task.metric: {', '.join(sorted(other))} is given for some answers only", effect=NOTHING)
    defs = {}
    for name in names:
        kinds = {isinstance(score[name], bool) for score in given}
        if len(kinds) > 1:
            raise ConfigError(f"task.metric: {name} is now a number, now true or false", effect=NOTHING)
        spec = next(m.spec for m in metrics if name == m.name or name.startswith(f"{m.name}."))
        unit = "share" if kinds == {True} else "number"
        defs[name] = MetricDef(Metric(unit=unit, definition=f"Your own: {spec}."))
    return defs


def _load(root: Path, spec: str) -> OwnMetric:
    path, name = own_file(root, spec)
    module = _import(path, spec)
    function = getattr(module, name, None)
    if not callable(function):
        raise _refused(spec, f"{path} has no function {name!r}")
    return OwnMetric(spec, name, spec.rpartition(":")[0], sha256_file(path), function)


def _import(path: Path, spec: str) -> ModuleType:
    """Run the file. Its neighbours can be imported, but none of them hides a module that is there already."""
    found = importlib.util.spec_from_file_location(f"cloudft_own_metric_{path.stem}", path)
    if found is None or found.loader is None:
        raise _refused(spec, f"{path} cannot be imported")
    module = importlib.util.module_from_spec(found)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        found.loader.exec_module(module)
    except ENDS as exc:
        raise _refused(spec, f"{path} cannot be imported: {type(exc).__name__}: {exc}{_place(exc)}") from exc
    return module


def _place(exc: BaseException) -> str:
    """Where in the user's code it happened."""
    frames = traceback.extract_tb(exc.__traceback__)
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if len(frames) > 1 else ""


def _is_number(value: Any) -> bool:
    try:
        return math.isfinite(float(value)) and not isinstance(value, str)
    except (TypeError, ValueError, OverflowError):
        return False


def _refused(spec: str, why: str) -> ConfigError:
    return ConfigError(f"task.metric: {spec}: {why}", effect=NOTHING, hint="see docs/evaluation.md, 'Your own metric'")
