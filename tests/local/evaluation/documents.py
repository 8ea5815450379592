"""A small evaluation with every field in use, as a program that reads one may find it."""

from __future__ import annotations

import hashlib
from typing import Any

from local.evaluation.document.eval_json import Document
from local.evaluation.document.measurement import OutputsRef
from local.evaluation.document.outputs import OutputLine, output_bytes, prompt_sha256
from local.files import write_json
from local.project import RunFolder

LABELS = ("bug", "billing")


def lines(answers: list[tuple[str, str | None]]) -> list[OutputLine]:
    """One line per (expected, answered) label; None stands for a request that failed."""
    made = []
    for number, (expected, answer) in enumerate(answers, start=1):
        prompt = ({"role": "user", "content": f"question {number}"},)
        hit = float(answer == expected)
        made.append(
            OutputLine(
                row=number,
                prompt=prompt,
                prompt_sha256=prompt_sha256(prompt),
                expected=expected,
                answer=answer,
                finish="stop" if answer else None,
                score={"accuracy": hit},
                problem="" if hit else "another label",
                error=None if answer else "timeout: no answer in time",
                latency=0.25 if answer else None,
                prompt_tokens=7 if answer else None,
                completion_tokens=2 if answer else None,
            )
        )
    return made


def document(before: list[OutputLine], after: list[OutputLine], run_id: str = "r1") -> Document:
    """A document for these answers. Intervals and tests are not computed: they only have the right shape."""
    sides = {"before": _side("before", before), "after": _side("after", after)}
    values = {label: {"accuracy": side["metrics"]["accuracy"]["value"]} for label, side in sides.items()}
    change = values["after"]["accuracy"] - values["before"]["accuracy"]
    pairs = [(b.score["accuracy"], a.score["accuracy"]) for b, a in zip(before, after, strict=True)]
    gained, lost = pairs.count((0, 1)), pairs.count((1, 0))
    return Document.model_validate(
        {
            "n": len(after),
            **values,
            "run_id": run_id,
            "created_at": "2026-01-01T00:00:00+00:00",
            "verdict": {
                "outcome": "undecided",
                "metric": "accuracy",
                "sentence": f"no difference that {len(after)} examples can show; about 50 would",
                "rows_needed": 50,
            },
            "warnings": [{"code": "small-holdout", "text": f"{len(after)} rows are few."}],
            "primary": "accuracy",
            "metrics": {"accuracy": {"unit": "share", "definition": "Rows whose label is the expected one."}},
            "comparisons": {
                "accuracy": {
                    "change": change,
                    "low": -0.5,
                    "high": 0.9,
                    "test": "mcnemar",
                    "p_value": 0.5,
                    "p_adjusted": 0.5,
                    "outcome": "undecided",
                    "gained": gained,
                    "lost": lost,
                    "rows_needed": 50,
                }
            },
            "changes": {
                "gained": gained,
                "lost": lost,
                "right_both_times": pairs.count((1, 1)),
                "wrong_both_times": pairs.count((0, 0)),
            },
            "held_out_rows": len(after),
            "holdout_sha256": "1" * 64,
            "task": {"kind": "classification", "settings": {"labels": list(LABELS)}},
            "decoding": {"temperature": 0, "seeds": [0], "max_tokens": 16, "context": 1024, "parameters": {"top_k": 1}},
            "sides": sides,
            "software": {"cloudft": "0.1.0", "llama-cpp-python": "0.3.36"},
        }
    )


def _side(label: str, made: list[OutputLine]) -> dict[str, Any]:
    hits = sum(line.score["accuracy"] == 1 for line in made)
    columns = (*LABELS, "(none of them)", "(failed)")
    answered = [(line.expected, line.answer or "(failed)") for line in made]
    counts = [[sum(pair == (row, column) for pair in answered) for column in columns] for row in LABELS]
    estimate = {"value": hits / len(made), "low": 0.1, "high": 0.9, "method": "wilson", "hits": hits}
    raw = output_bytes(made)
    return {
        "metrics": {"accuracy": estimate},
        "model": {
            "title": f"the model {label}",
            "name": f"{label}-q4_k_m",
            "engine": "llama_cpp.server",
            "file": f"models/{label}/model.gguf",
            "sha256": hashlib.sha256(label.encode()).hexdigest(),
            "template_source": "own",
            "template_sha256": "2" * 64,
            "lineage": {"version": f"{label}-q4_k_m", "base_id": "org/base", "base_revision": "abc", "type": "Q4_K_M"},
        },
        "usage": {
            "seconds": 1.5,
            "requests": len(made),
            "cached": 0,
            "failed": sum(line.error is not None for line in made),
            "retried": 0,
            "workers": 1,
            "prompt_tokens": sum(line.prompt_tokens or 0 for line in made),
            "completion_tokens": sum(line.completion_tokens or 0 for line in made),
            "latency_median": 0.25,
            "latency_p95": 0.25,
        },
        "outputs": OutputsRef(
            path=f"outputs-{label}.jsonl", sha256=hashlib.sha256(raw).hexdigest(), lines=len(made)
        ).model_dump(),
        "tables": {
            "labels": {
                name: {"expected": 1, "answered": 1, "correct": 1, "precision": 1, "recall": 1, "f1": 1}
                for name in LABELS
            }
        },
        "confusion": {"label": {"rows": list(LABELS), "columns": list(columns), "counts": counts}},
    }


def write(run: RunFolder, before: list[OutputLine], after: list[OutputLine]) -> Document:
    """Lay the evaluation down in a run's folder."""
    run.root.mkdir(parents=True, exist_ok=True)
    made = document(before, after, run.run_id)
    (run.root / "outputs-before.jsonl").write_bytes(output_bytes(before))
    (run.root / "outputs-after.jsonl").write_bytes(output_bytes(after))
    write_json(run.evaluation, made.as_dict())
    return made
