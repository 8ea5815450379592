"""Every answer of one model: ``runs/<id>/outputs-<label>.jsonl``, one line an answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from cloudft.errors import IntegrityError
from jobs.spec import SHA256, Frozen
from local.evaluation.document.measurement import OutputsRef
from local.evaluation.document.reading import first_problem, read_bytes
from local.project import RunFolder


class OutputLine(Frozen):
    """One answer: one line of ``outputs-<label>.jsonl``, sorted by ``repeat``, then ``row``.

    ``row``: the line in the hold-out file, from 1; ``repeat``: from 0; ``seed``: that was sent; ``prompt``: the
    messages that were sent, and ``prompt_sha256`` that of ``[messages, tools]`` as canonical JSON: equal before and
    after; ``expected``: the hold-out's answer, parsed as the task has it (an object, a label, calls, text);
    ``answer``: the model's text, None if the request failed; ``tool_calls``: as the endpoint gave them, but for their
    ids;
    ``finish``: why it ended ("stop", "length", "tool_calls");
    ``score``: the row's own part of each metric that it has one of, 1 and 0 for a hit and a miss;
    ``problem``: why it is not right, empty if it is, or nothing is known; ``error``: why the request failed, else None;
    ``latency``: seconds from sending to the whole answer, None if it failed; tokens as the server counted them.
    """

    row: int
    repeat: int = 0
    seed: int = 0
    prompt: tuple[dict[str, Any], ...]
    prompt_sha256: str = Field(pattern=SHA256)
    expected: Any
    answer: str | None
    tool_calls: tuple[dict[str, Any], ...] = ()
    finish: str | None = None
    score: dict[str, float]
    problem: str = ""
    error: str | None = None
    latency: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


def outputs_path(run: RunFolder, label: str) -> Path:
    return run.root / f"outputs-{label}.jsonl"


def output_bytes(lines: Iterable[OutputLine]) -> bytes:
    """The contents of an outputs file."""
    return b"".join(_json_line(line.model_dump()) for line in lines)


def read_outputs(run: RunFolder, ref: OutputsRef) -> list[OutputLine]:
    """All answers of one model, as ``Measurement.outputs`` names them.

    Raises:
        NotFound: the file is not there.
        IntegrityError: it is not the file that was written, or a line is damaged.
    """
    path = run.root / ref.path
    raw = read_bytes(run, path)
    again = f"measure again:  cloudft eval {run.run_id}"
    if hashlib.sha256(raw).hexdigest() != ref.sha256:
        raise IntegrityError(f"{path} is not what the evaluation wrote", hint=again)
    try:
        # Not splitlines(): it also cuts at characters that may stand inside a JSON string.
        return [OutputLine.model_validate(json.loads(line)) for line in raw.split(b"\n") if line]
    except (ValueError, TypeError, ValidationError) as exc:
        raise IntegrityError(f"{path} is damaged: {first_problem(exc)}", hint=again) from exc


def prompt_sha256(prompt: Sequence[Any], tools: Sequence[Any] | None = None) -> str:
    """sha256 of what is asked, as canonical JSON."""
    text = json.dumps([list(prompt), list(tools or ())], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _json_line(value: Any) -> bytes:
    """One line of JSON. A model can produce half a surrogate pair, which no UTF-8 file can hold unescaped."""
    try:
        return (json.dumps(value, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(value) + "\n").encode()
