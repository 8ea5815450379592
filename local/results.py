"""What an evaluation found, and how it is written down: for programs in ``eval.json``, for people in Markdown."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from local.endpoint import GREEDY, Endpoint, Reply
from local.files import atomic_open
from local.metrics import Rate, Score, rates
from local.project import Project, RunFolder
from local.task import Task

NOTHING_WRITTEN = "no result was written; an earlier evaluation of this run is unchanged"
REPORT = "results_before_after.md"
EXAMPLES = 5


@dataclass(frozen=True)
class Row:
    """One hold-out row: the messages to send and the answer to expect. ``number`` counts lines from 1."""

    number: int
    prompt: tuple[dict[str, Any], ...]
    expected: dict[str, Any]

    @property
    def prompt_sha256(self) -> str:
        """sha256 of the messages as canonical JSON: equal before and after, or the two cannot be compared."""
        return hashlib.sha256(json.dumps(self.prompt, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Answer:
    """What came back for one row, and its score. ``error`` is set, and ``reply`` is None, if the request failed."""

    row: Row
    reply: Reply | None
    error: str | None
    score: Score

    def as_dict(self) -> dict[str, Any]:
        """One line of ``outputs-*.jsonl``."""
        reply = self.reply
        return {
            "row": self.row.number,
            "prompt_sha256": self.row.prompt_sha256,
            "expected": self.row.expected,
            "answer": reply.text if reply else None,
            "parsed": self.score.parsed,
            "schema_valid": self.score.schema_valid,
            "exact_match": self.score.exact,
            "keys": self.score.keys,
            "problem": self.score.problem,
            "error": self.error,
            "finish": reply.finish if reply else None,
            "prompt_tokens": reply.prompt_tokens if reply else None,
            "completion_tokens": reply.completion_tokens if reply else None,
        }


@dataclass(frozen=True)
class Side:
    """One of the two models. ``template`` is used only if the file brings none."""

    label: Literal["before", "after"]
    gguf: Path
    description: str
    template: str | None = None
    endpoint: Endpoint | None = None


@dataclass(frozen=True)
class Measured:
    """One side, measured. ``template``: source ("own" or "given") and sha256 of its chat template, if known."""

    side: Side
    sha256: str
    engine: str
    template: tuple[str, str] | None
    answers: tuple[Answer, ...]
    seconds: float

    @property
    def rates(self) -> dict[str, Rate]:
        return rates([answer.score for answer in self.answers])

    @property
    def failed_requests(self) -> int:
        return sum(answer.error is not None for answer in self.answers)

    def lines(self) -> bytes:
        """The contents of ``outputs-<label>.jsonl``."""
        return b"".join(_json_line(answer.as_dict()) for answer in self.answers)


@dataclass(frozen=True)
class Evaluation:
    """What was measured. ``document`` is what ``eval.json`` holds; the paths are what was written."""

    run_id: str
    n: int
    before: dict[str, float]
    after: dict[str, float]
    document: dict[str, Any]
    record: Path
    report: Path
    outputs: tuple[Path, Path]


def write_results(
    project: Project, run: RunFolder, before: Measured, after: Measured, held_out: int, task: Task, context: int
) -> Evaluation:
    """Write answers, numbers and report: all of them or none.

    Args:
        held_out: rows of the whole hold-out, of which the first ``n`` were used.
        context: tokens of the served context.
    """
    document = make_document(project, run, before, after, held_out, task, context)
    outputs = (run.root / "outputs-before.jsonl", run.root / "outputs-after.jsonl")
    report = run.root / REPORT
    with contextlib.ExitStack() as stack:
        # All are written in full before the first takes its place. The stack unwinds backwards, so eval.json,
        # which tells that there is a result, comes last.
        files = [stack.enter_context(atomic_open(path)) for path in (run.evaluation, report, *outputs)]
        files[0].write(_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n"))
        files[1].write(_text(render(document, before.answers, after.answers)))
        files[2].write(before.lines())
        files[3].write(after.lines())
        for file in files:
            file.flush()
    return Evaluation(
        run_id=run.run_id,
        n=document["n"],
        before=document["before"],
        after=document["after"],
        document=document,
        record=run.evaluation,
        report=report,
        outputs=outputs,
    )


def make_document(
    project: Project, run: RunFolder, before: Measured, after: Measured, held_out: int, task: Task, context: int
) -> dict[str, Any]:
    """The contents of ``eval.json``: the numbers first, then all that is needed to judge and to repeat them."""
    sides = {"before": before, "after": after}
    return {
        "n": len(after.answers),
        **{label: {name: rate.value for name, rate in m.rates.items()} for label, m in sides.items()},
        "schema_version": 1,
        "run_id": run.run_id,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "held_out_rows": held_out,
        "intervals": {label: {k: list(r.interval) for k, r in m.rates.items()} for label, m in sides.items()},
        "failed_requests": {label: m.failed_requests for label, m in sides.items()},
        "rows": paired(before.answers, after.answers),
        "decoding": {**GREEDY, "max_tokens": task.max_tokens, "context": context},
        "models": {label: _model(project, m) for label, m in sides.items()},
        "outputs_sha256": {label: hashlib.sha256(m.lines()).hexdigest() for label, m in sides.items()},
        "seconds": {label: round(m.seconds, 1) for label, m in sides.items()},
        "llama_cpp_python": metadata.version("llama-cpp-python"),
    }


def paired(before: Sequence[Answer], after: Sequence[Answer]) -> dict[str, int]:
    """How many rows changed, by exact match: a gain on the whole can hide losses."""
    pairs = [(b.score.exact, a.score.exact) for b, a in zip(before, after, strict=True)]
    return {
        "gained": pairs.count((False, True)),
        "lost": pairs.count((True, False)),
        "right_both_times": pairs.count((True, True)),
        "wrong_both_times": pairs.count((False, False)),
    }


def _model(project: Project, measured: Measured) -> dict[str, Any]:
    gguf = measured.side.gguf
    source, digest = measured.template or (None, None)
    return {
        "model": measured.side.description,
        "file": str(gguf.relative_to(project.root) if gguf.is_relative_to(project.root) else gguf),
        "sha256": measured.sha256,
        "engine": measured.engine,
        "template_source": source,
        "template_sha256": digest,
    }


def render(document: dict[str, Any], before: Sequence[Answer], after: Sequence[Answer]) -> str:
    """``results_before_after.md``."""
    n, rows = document["n"], document["rows"]
    parts = [
        f"# Before and after: run {document['run_id']}\n",
        _table(document),
        f"n = {n} rows that training never saw{_of_all(document)}. In brackets: the 95 % Wilson interval.\n",
        f"By exact match, row by row: {rows['gained']} gained, {rows['lost']} lost, "
        f"{rows['right_both_times']} right both times, {rows['wrong_both_times']} wrong both times.\n",
        *_warnings(document),
        "## How it was measured\n",
        _models(document),
        _decoding(document),
        "A valid answer is one JSON object and nothing else, and it obeys the task's schema; a code fence or a word "
        "around it makes it invalid. Exact match compares the values of the keys with the hold-out's answer. A request "
        "that failed counts as wrong everywhere. Every answer is in `outputs-before.jsonl` and "
        "`outputs-after.jsonl`.\n",
        *_examples("Lost: right before, wrong after", _lost(before, after)),
        *_examples("Worst failures after tuning", _worst(after)),
    ]
    return "\n".join(parts)


def _table(document: dict[str, Any]) -> str:
    lines = ["| metric | before | after | change |", "|---|---:|---:|---:|"]
    for name in document["after"]:
        cells = []
        for label in ("before", "after"):
            low, high = document["intervals"][label][name]
            cells.append(f"{100 * document[label][name]:.1f} % [{100 * low:.1f}, {100 * high:.1f}]")
        change = 100 * (document["after"][name] - document["before"][name])
        lines.append(f"| {_cell(name)} | {cells[0]} | {cells[1]} | {change:+.1f} points |")
    return "\n".join(lines) + "\n"


def _of_all(document: dict[str, Any]) -> str:
    if document["n"] == document["held_out_rows"]:
        return " (the whole hold-out)"
    return f" (**only the first {document['n']} of {document['held_out_rows']}**)"


def _warnings(document: dict[str, Any]) -> Iterable[str]:
    """What a reader must know before believing the numbers."""
    for label, count in document["failed_requests"].items():
        if count:
            yield f"> **{count} of {document['n']} requests failed {label} tuning**, and count as wrong.\n"
    models = document["models"]
    if models["before"]["engine"] != models["after"]["engine"]:
        yield "> Before and after were served by different engines.\n"
    if models["before"]["template_source"] == "given":
        yield "> The base brings no chat template: it was asked with the one that the run was trained with.\n"


def _models(document: dict[str, Any]) -> str:
    lines = ["| | model | file | sha256 | served by | chat template |", "|---|---|---|---|---|---|"]
    for label, model in document["models"].items():
        template = model["template_sha256"]
        cells = [label, model["model"], f"`{model['file']}`", f"`{model['sha256']}`", model["engine"]]
        lines.append("| " + " | ".join(map(_cell, cells)) + f" | {template[:12] if template else 'its own'} |")
    return "\n".join(lines) + "\n"


def _decoding(document: dict[str, Any]) -> str:
    d = document["decoding"]
    return (
        f"Both got the same messages in the same order, decoded greedily (temperature {d['temperature']}, no "
        f"repetition penalty), at most {d['max_tokens']} tokens an answer, in a context of {d['context']} tokens, "
        f"by llama-cpp-python {document['llama_cpp_python']}. Each was asked through the chat template in its own "
        "file.\n"
    )


def _lost(before: Sequence[Answer], after: Sequence[Answer]) -> list[Answer]:
    return [a for b, a in zip(before, after, strict=True) if b.score.exact and not a.score.exact]


def _worst(answers: Sequence[Answer]) -> list[Answer]:
    """Failed answers, the farthest from right first: no answer, no object, broken schema, wrong keys."""

    def badness(answer: Answer) -> tuple[bool, bool, bool, int]:
        score = answer.score
        wrong = sum(not ok for ok in score.keys.values())
        return answer.reply is None, score.parsed is None, not score.schema_valid, wrong

    failed = [a for a in answers if not (a.score.exact and a.score.schema_valid)]
    return sorted(failed, key=badness, reverse=True)


def _examples(title: str, answers: Sequence[Answer]) -> Iterable[str]:
    if not answers:
        return
    yield f"## {title}\n"
    if len(answers) > EXAMPLES:
        yield f"{EXAMPLES} of {len(answers)}.\n"
    for answer in answers[:EXAMPLES]:
        wrong = ", ".join(key for key, ok in answer.score.keys.items() if not ok)
        why = answer.error or answer.score.problem or f"wrong: {wrong}"
        yield f"Row {answer.row.number}: {_cell(_clip(why))}\n"
        question = answer.row.prompt[-1].get("content", "")
        yield _fence(
            f"asked     {_clip(str(question))}\n"
            f"expected  {_clip(json.dumps(answer.row.expected, ensure_ascii=False))}\n"
            f"answered  {_clip(answer.reply.text) if answer.reply else '(nothing)'}"
        )


def _fence(text: str) -> str:
    """A code block that nothing in ``text`` can end."""
    ticks = "```"
    while ticks in text:
        ticks += "`"
    return f"{ticks}text\n{text}\n{ticks}\n"


def _clip(text: str, limit: int = 400) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _json_line(value: Any) -> bytes:
    """One line of JSON. A model can produce half a surrogate pair, which no UTF-8 file can hold unescaped."""
    try:
        return (json.dumps(value, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(value) + "\n").encode()


def _text(text: str) -> bytes:
    return text.encode(errors="replace")
