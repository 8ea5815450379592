"""A made-up run with everything that a report can show, small enough to recount by hand; no model is involved."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from infra.provider import machine_name
from jobs.spec import RunSpec
from local.config import StoreConfig
from local.evaluation.agreement import agreement
from local.evaluation.document.comparison import Comparison
from local.evaluation.document.eval_json import Document, read_document
from local.evaluation.document.forgetting import Forgetting, GeneralExample, GeneralPart
from local.evaluation.document.judging import JudgeUsed, Judging, SpotCheck
from local.evaluation.document.ladder import FewShot, Ladder, Rung
from local.evaluation.document.measurement import Estimate, ModelUsed, OutputsRef
from local.evaluation.document.outputs import OutputLine
from local.evaluation.endpoint import Reply
from local.evaluation.holdout import read_holdout
from local.evaluation.judge_prompt import ORDERS
from local.evaluation.measuring import Measured, Question, Settings
from local.evaluation.results import Ground, write_results
from local.evaluation.review import pairs_of, with_standing
from local.evaluation.sections import write_sections
from local.evaluation.standing import review_sentence
from local.evaluation.steps import Cost, advice, compare_rungs, worth_it
from local.evaluation.task import read_task
from local.evaluation.tasks.base import MetricDef, Row, Scored, Scorer
from local.evaluation.verdicts import VerdictLine, count_preferences, judge_caveats, judged, position_bias, win_rate
from local.files import sha256_file, write_json, write_text
from local.project import Project, RunFolder
from local.quantizing.verify import Verification
from local.runs.records import Attempt, PlannedOffer, Receipt, RunRecord, read_spec, write_record
from local.runs.runlock import Made, add_made, add_trained, make_lock, source_lock, write_lock
from local.serving.versions import MANIFEST, MODEL, Manifest, promote
from tests.local.report import recount

RUN_ID = "20261120-101010-ab12"
BEGAN = 1795170000.0  # 2026-11-20
CATEGORIES = ("billing", "bug", "feature")
PRIORITIES = ("high", "low")
SCHEMA = {
    "type": "object",
    "properties": {"category": {"enum": list(CATEGORIES)}, "priority": {"enum": list(PRIORITIES)}},
    "required": ["category", "priority"],
}
PROSE = "It looks like a bug in billing."
Answer = dict[str, str] | str | None


def expected(row: int) -> dict[str, str]:
    return {"category": CATEGORIES[row % 3], "priority": PRIORITIES[row % 2]}


def wrong(row: int) -> dict[str, str]:
    return {"category": CATEGORIES[(row + 1) % 3], "priority": PRIORITIES[row % 2]}


@dataclass
class Scenario:
    """What the two models answer: row → answer; None stands for a request that failed.

    Rows that are not named are answered in prose before, and as expected after.
    """

    rows: int = 40
    before: dict[int, Answer] = field(default_factory=dict)
    after: dict[int, Answer] = field(default_factory=dict)
    question: str = "Ticket {row}: the page stays white."
    rented: bool = True
    evaluated: bool = True
    more: bool = False
    card: dict[str, Any] = field(default_factory=dict)


def make_run(root: Path, scenario: Scenario | None = None) -> tuple[Project, RunFolder]:
    """A project with one run that was trained, quantised and, if the scenario says so, evaluated."""
    scenario = scenario or Scenario()
    project = _project(root, scenario)
    run = project.run(RUN_ID)
    run.root.mkdir(parents=True)
    spec = _data_and_spec(project, run, scenario)
    _record(run, spec, scenario)
    write_lock(run, _lock(project, run, spec, scenario))
    _training(run, spec)
    _version(project, run, spec)
    if scenario.evaluated:
        evaluate(project, run, scenario)
    if scenario.more:
        measure_more(run)
    return project, run


def _project(root: Path, scenario: Scenario) -> Project:
    config = {
        "project": "tickets",
        "base": "./base",
        "data": {"path": "data.jsonl", "card": scenario.card},
        "task": {"schema": "schema.json"},
    }
    write_text(root / "cloudft.yaml", yaml.safe_dump(config))
    write_text(root / "base" / "README.md", "---\nlicense: apache-2.0\n---\n# A base\n")
    return Project(root.resolve())


def _row(number: int, question: str) -> str:
    messages = [
        {"role": "system", "content": "Answer in JSON."},
        {"role": "user", "content": question.format(row=number)},
        {"role": "assistant", "content": json.dumps(expected(number))},
    ]
    return json.dumps({"messages": messages}, separators=(",", ":"), ensure_ascii=False) + "\n"


def _data_and_spec(project: Project, run: RunFolder, scenario: Scenario) -> RunSpec:
    write_text(run.train_data, "".join(_row(n, "Earlier ticket {row}.") for n in range(1, 161)))
    write_text(run.holdout, "".join(_row(n, scenario.question) for n in range(1, scenario.rows + 1)))
    write_text(project.root / "data.jsonl", run.train_data.read_text() + run.holdout.read_text())
    write_json(run.task, {"kind": "json", "json_schema": SCHEMA, "keys": list(SCHEMA["properties"]), "max_tokens": 64})
    stage = {
        "max_steps": 120, "batch_size": 4, "gradient_accumulation": 4, "learning_rate": 2e-4, "scheduler": "cosine",
        "warmup": 0.05, "weight_decay": 0.0, "max_length": 512, "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05,
        "dtype": "auto", "origins": {"learning_rate": "the usual one for LoRA", "lora_r": "cloudft.yaml"},
    }  # fmt: skip
    spec = RunSpec.model_validate(
        {
            "run_id": run.run_id,
            "project": "tickets",
            "base": {"source": "folder", "id": "./base", "revision": "b" * 64, "parameters": 494032768},
            "data": {
                "train": {
                    "path": "train.jsonl",
                    "sha256": sha256_file(run.train_data),
                    "bytes": run.train_data.stat().st_size,
                },
                "train_rows": 160,
                "holdout_sha256": sha256_file(run.holdout),
                "holdout_rows": scenario.rows,
                "split_seed": 7,
            },
            "stages": [stage],
            "image": "registry.example/train@sha256:" + "1" * 64 if scenario.rented else None,
            "budget_usd": 5 if scenario.rented else None,
            "max_hours": 2,
            "seed": 42,
        }
    )
    run.spec.write_bytes(spec.canonical())
    return spec


def _record(run: RunFolder, spec: RunSpec, scenario: Scenario) -> None:
    rate = 0.36 if scenario.rented else 0.0
    offer = PlannedOffer(provider="runpod" if scenario.rented else "local", id="a", name="RTX A5000", rate_usd=rate)
    phases = {"boot and pull": 95.0, "download": 31.0, "load": 22.0, "train": 840.0, "save": 3.0, "upload": 9.0}
    receipt = Receipt(
        machine_id="pod-1", seconds=1005.0, told_seconds=1000.0, rate_usd=rate, usd=1005 * rate / 3600,
        price_source="the machine's own rate", phases=phases,
    )  # fmt: skip
    attempt = Attempt(
        number=1, name=machine_name(run.run_id, 1, BEGAN + 7200), offer=offer, state="gone", created_at=BEGAN + 20,
        deadline=BEGAN + 7200, exhausted_at=BEGAN + 7260, asked_at=BEGAN + 21, machine_id="pod-1", rate_usd=rate,
        seen=True, ended_at=BEGAN + 1025, receipt=receipt,
    )  # fmt: skip
    record = RunRecord(
        run_id=run.run_id, project="tickets", created_at=BEGAN, provider=offer.provider,
        store=StoreConfig(url="./store"), spec_sha256=spec.sha256(), budget_usd=spec.budget_usd, status="completed",
        attempts=(attempt,),
    )  # fmt: skip
    write_record(run, record, "made up")


def _lock(project: Project, run: RunFolder, spec: RunSpec, scenario: Scenario) -> Any:
    source = source_lock(project.root / "data.jsonl", "data.jsonl", 203 + scenario.rows, 0.2, (43, 0, 2))
    return make_lock(run, spec, "runpod" if scenario.rented else "local", source, None)


def _training(run: RunFolder, spec: RunSpec) -> None:
    lines = []
    for step in range(1, 121):
        loss = 0.08 + 2.1 * math.exp(-step / 18) + 0.09 * math.sin(step * 1.7) * math.exp(-step / 60)
        line: dict[str, Any] = {
            "stage": "1-sft" if step < 80 else "2-dpo",
            "step": step, "max_steps": 120, "loss": round(loss, 4), "learning_rate": 1e-4, "tokens": 2100 * step,
            "elapsed_s": 7.0 * step, "eta_s": 7.0 * (120 - step), "epoch": step / 40,
        }  # fmt: skip
        if step % 40 == 0:
            line["eval_loss"] = round(loss + 0.05, 4)
        lines.append(json.dumps(line) + "\n")
    write_text(run.metrics, "".join(lines))
    adapter = {"key": "adapter.tar", "sha256": "a" * 64, "bytes": 17 << 20, "files": {"adapter_config.json": "c" * 64}}
    result: dict[str, Any] = {
        "schema_version": 1, "run_id": run.run_id, "attempt": 1, "status": "completed", "reason": "120 of 120 steps",
        "artifacts": {"adapter": adapter},
        "trainer": {
            "steps_done": 120, "steps_planned": 120, "trained_tokens": 252000, "adapter_sha256": "d" * 64,
            "phases": {"train": 840.0}, "versions": {"Python": "3.11.9", "torch": "2.13.0"},
        },
        "started_at": BEGAN + 100, "ended_at": BEGAN + 1020,
    }  # fmt: skip
    stage = {"name": "1-sft", "method": "lora", "steps_done": 120, "steps_planned": 120, "train_loss": 0.31}
    result["trainer"]["stages"] = [stage, stage | {"name": "2-dpo", "kept": False, "note": "exact_match fell"}]
    counts = {"rows": 160, "examples": 160, "tokens": 8000, "trained": 2000, "ended": 160, "cut": {"count": 3}}
    write_json(run.root / "audit.json", {"stages": [{"stage": "1-sft", **counts}]})
    write_json(run.result, result)
    add_trained(run, result)


def _version(project: Project, run: RunFolder, spec: RunSpec) -> None:
    root = project.models / f"{run.run_id}-q4_k_m-00000000"
    write_text(root / MODEL, "not a model, but a file of some size " * 9000)
    manifest = Manifest(
        version=root.name, run_id=run.run_id, base_id="./base", base_revision="b" * 64, adapter_sha256="e" * 64,
        spec_sha256=spec.sha256(), type="Q4_K_M", gguf_sha256=sha256_file(root / MODEL),
        gguf_bytes=(root / MODEL).stat().st_size, llama_cpp_python="0.3.36", created_at="2026-11-20T11:10:00+00:00",
        verification=Verification(
            architecture="qwen2", conversations=8, tokens=512, end_of_turn="<|im_end|>", kl_divergence=0.0123,
            top1_agreement=0.991,
        ),
    )  # fmt: skip
    write_text(root / MANIFEST, manifest.model_dump_json())
    promote(project, root.name)
    made = Made(
        version=root.name, type="Q4_K_M", imatrix=False, gguf_sha256=manifest.gguf_sha256, llama_cpp_python="0.3.36"
    )
    add_made(run, [made])


def lines(rows: Sequence[Row], scorer: Scorer, answers: list[Answer]) -> tuple[list[OutputLine], list[Scored]]:
    """The answers to the hold-out's rows, scored by the product's own scorer."""
    replies = [
        None if answer is None else Reply(answer if isinstance(answer, str) else json.dumps(answer), "stop", 20, 9)
        for answer in answers
    ]
    scores = [scorer.score(reply, row) for row, reply in zip(rows, replies, strict=True)]
    return [_line(*parts) for parts in zip(rows, replies, scores, strict=True)], scores


def _line(row: Row, reply: Reply | None, scored: Scored) -> OutputLine:
    return OutputLine(
        row=row.number,
        prompt=row.prompt,
        prompt_sha256=row.prompt_sha256,
        expected=row.expected,
        answer=reply.text if reply else None,
        finish=reply.finish if reply else None,
        score=dict(scored.score),
        problem=scored.problem,
        error=None if reply else "timeout: no answer in time",
        latency=0.25 + row.number / 1000 if reply else None,
        prompt_tokens=reply.prompt_tokens if reply else None,
        completion_tokens=reply.completion_tokens if reply else None,
    )


def evaluate(project: Project, run: RunFolder, scenario: Scenario) -> Document:
    """Lay the answers down, and the evaluation that they amount to, by the product's own code."""
    task, spec = read_task(run.task), read_spec(run)
    scorer = task.scorer()
    rows = read_holdout(run.holdout, spec.data.holdout_sha256, scorer)
    wanted = range(1, scenario.rows + 1)
    given = {
        "before": [scenario.before.get(n, PROSE) for n in wanted],
        "after": [scenario.after.get(n, expected(n)) for n in wanted],
    }
    sides = []
    for label, answers in given.items():
        made, scores = lines(rows, scorer, answers)
        sides.append(Measured(label, _model(run, label), made, [scores], [[{} for _ in rows]], 12.5, 0, 0, 1))
    question = Question(task, scorer, rows)
    ground = Ground(
        project,
        run,
        question,
        Settings(),
        held_out=len(rows),
        holdout_sha256=spec.data.holdout_sha256,
        context=1024,
    )
    return write_results(ground, *sides).document


def _model(run: RunFolder, label: str) -> ModelUsed:
    return ModelUsed(
        title="./base, Q4_K_M" if label == "before" else f"{run.run_id}-q4_k_m-00000000",
        name=label,
        engine="llama-server",
        file=f"models/{label}/model.gguf",
        sha256=hashlib.sha256(label.encode()).hexdigest(),
        template_source="own",
        template_sha256="2" * 64,
    )


def measure_more(run: RunFolder) -> Document:
    """What may be measured further, laid down as the product does: a ladder whose quantisation costs, a set of general
    questions of which some are forgotten, a judge that always prefers the first answer, and a person's votes."""
    document = read_document(run)
    return write_sections(
        run,
        ladder=_ladder(document),
        forgetting=(_forgetting(),),
        judging=_judging(run, document),
        spot_check=_spot_check(),
    )


def _ladder(document: Document) -> Ladder:
    metric, hits = {"exact_match": MetricDef(document.metrics["exact_match"])}, {}
    for name, count in {"base": 3, "few-shot": 40, "adapter": 58, "merge": 58, "quantised": 44}.items():
        hits[name] = [[Scored({"exact_match": float(n < count)}) for n in range(60)]]
    steps = compare_rungs(metric, "exact_match", hits, 60)
    rungs = []
    for name, [scores] in hits.items():
        count = round(sum(scored.score["exact_match"] for scored in scores))
        low, high = recount.Count((True,) * count + (False,) * (60 - count)).wilson
        estimate = Estimate(value=count / 60, low=low, high=high, method="wilson", hits=count, of=60)
        measurement = document.sides["after"].model_copy(update={"metrics": {"exact_match": estimate}})
        note = "8 examples before each question" if name == "few-shot" else ""
        rungs.append(Rung(name=name, title=f"the {name} model", measurement=measurement, note=note))
    about = metric["exact_match"].about
    values = {rung.name: rung.measurement.metrics["exact_match"].value for rung in rungs}
    worth, sentence = worth_it(steps, 8, about, values, Cost(610.0, 80.0))
    return Ladder(
        metric="exact_match",
        n=60,
        rungs=tuple(rungs),
        steps=steps,
        few_shot=FewShot(k=8, wanted=8, seed=0, rows=tuple(range(1, 9)), train_sha256="3" * 64),
        missing={"served": "nothing is served now"},
        bar=0.02,
        advice=advice(steps, about, 0.02, "Q4_K_M", document.run_id),
        worth_it=worth,
        sentence=sentence,
    )


def _forgetting() -> Forgetting:
    def share(hits: int, n: int) -> Estimate:
        low, high = recount.Count((True,) * hits + (False,) * (n - hits)).wilson
        return Estimate(value=hits / n, low=low, high=high, method="wilson", hits=hits, of=n)

    before, after = share(61, 90), share(44, 90)
    compared = Comparison(
        change=-17 / 90, low=-0.29, high=-0.09, test="mcnemar", p_value=0.0004, p_adjusted=0.0004, outcome="worse"
    )
    lost = GeneralExample(
        id="sums-3", part="sums", question="What is 17 + 25?", expected="42", before="42", after='{"category": "bug"}'
    )
    return Forgetting(
        suite="cloudft",
        title="90 general questions",
        licence="MIT",
        n=90,
        metric="the answer keeps the rule of its question",
        before=before,
        after=after,
        comparison=compared,
        parts={"sums": GeneralPart(n=30, before=share(20, 30), after=share(9, 30))},
        outcome="worse",
        sentence="worse on general questions: 61 → 44 of 90",
        regressions=(lost,),
    )


def _judging(run: RunFolder, document: Document) -> Judging:
    """Of a judge that always prefers the first answer."""
    pairs = pairs_of(run, document)
    said = [
        VerdictLine(row=pair.row, pair_sha256=pair.sha256, order=order, verdict="first", said="first")
        for pair in pairs
        if pair.differs
        for order in ORDERS
    ]
    found = judged(pairs, said)
    bias, counts = position_bias(found), count_preferences(found)
    how = [one.how for one in found]
    made = Judging(
        judge=JudgeUsed(
            url="http://127.0.0.1:9/v1", model="<judge>", system="s", question="q", prompt_sha256="4" * 64,
            reference=True, max_tokens=64, price_input=1.0, price_output=2.0,
        ),
        pairs=len(found), wins=counts["after"], losses=counts["before"], ties=counts["tie"],
        inconsistent=how.count("inconsistent"), identical=how.count("identical"), failed=how.count("failed"),
        unanswered=how.count("unanswered"), win_rate=win_rate(counts["after"], counts["before"], counts["tie"]),
        p_value=1.0, outcome="undecided", position=bias, standing="not used", sentence="", requests=len(said),
        failed_requests=0, prompt_tokens=9000, completion_tokens=300, cost_usd=0.0096,
        verdicts=OutputsRef(path="judge-verdicts.jsonl", sha256="5" * 64, lines=len(said)),
        warnings=judge_caveats(found, bias),
    )  # fmt: skip
    return with_standing(made, found, None)


def _spot_check() -> SpotCheck:
    labels = ("before", "tie", "after")
    person = ["after"] * 16 + ["before"] * 2 + ["tie"] * 2
    agreed = agreement(labels, person, ["after"] * 15 + ["tie"] * 3 + ["before"] * 2)
    return SpotCheck(
        drawn=24, seed=1, before=2, after=16, ties=2, skipped=1, agreement=agreed,
        sentence=review_sentence(2, 16, 2, agreed),
        votes=OutputsRef(path="votes.jsonl", sha256="6" * 64, lines=21),
    )  # fmt: skip
