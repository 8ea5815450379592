"""lm-evaluation-harness itself, through our server, against its own way of asking transformers directly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloudft.errors import CloudftError
from local.evaluation.document.measurement import LABELS, Label
from local.evaluation.forgetting import conclude
from local.evaluation.harness import TASKS, ask_harness, harness_answers
from local.evaluation.measuring import Question, Settings, Target
from local.evaluation.results import Ground
from local.evaluation.task import TextTask
from local.progress import silent
from local.project import Project
from local.quantizing.quantize import quantized_base
from local.runs.records import read_spec
from tests.local.quantize_fixtures import Quantised, quantised, tiny_adapter, tiny_base

__all__ = ["quantised", "tiny_adapter", "tiny_base"]
QUESTIONS = [
    {"question": "the printer", "choices": [" doesn't print", " is a mouse", " number"], "answer": n % 3}
    for n in range(6)
]


def write_task(root: Path) -> None:
    """A multiple-choice task over a local file."""
    folder = root / TASKS
    folder.mkdir()
    for number, question in enumerate(QUESTIONS):
        question["question"] = f"the printer number {number}"
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
    }
    choice = shared | {
        "task": "choices",
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "target_delimiter": "",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "choices.yaml").write_text(yaml.safe_dump(choice))


@pytest.fixture
def ground(quantised: Quantised, tmp_path: Path) -> Ground:
    project = Project(tmp_path / "project")
    shutil.copytree(quantised.project.root, project.root, symlinks=True)
    write_task(project.root)
    question = Question(TextTask(max_tokens=1), TextTask(max_tokens=1).scorer(), [])
    run = project.run(quantised.run.run_id)
    return Ground(project, run, question, Settings(), held_out=1, holdout_sha256="0" * 64, context=256)


@pytest.fixture
def targets(ground: Ground, quantised: Quantised) -> dict[Label, Target]:
    full = quantized_base(ground.project, read_spec(ground.run).base, type="F16", progress=silent)
    return {"before": Target("b", "", full), "after": Target("a", "", quantised.version.gguf)}


def by_transformers(base: Path) -> list[list[float]]:
    """The log-probability of each choice after its question, by transformers in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(base)

    def one(question: str, choice: str) -> float:
        start = len(tokenizer(question).input_ids)
        tokens = torch.tensor([tokenizer(question + choice).input_ids])
        with torch.inference_mode():
            told = torch.log_softmax(model(tokens).logits[0], dim=-1)
        return float(sum(told[at - 1, tokens[0, at]] for at in range(start, tokens.shape[1])))

    return [[one(str(q["question"]), choice) for choice in q["choices"]] for q in QUESTIONS]  # type: ignore[attr-defined]


@pytest.mark.timeout(900)  # two processes that import torch, on however busy a machine
def test_log_probabilities_are_those_of_transformers(
    ground: Ground, targets: dict[Label, Target], tiny_base: Path
) -> None:
    asked = ask_harness("choices", ground, targets, silent)
    assert (asked.suite, asked.metric, len(asked.ids)) == ("lm-eval:choices", "acc", len(QUESTIONS))
    expected = by_transformers(tiny_base)
    before, after = (
        [[float(one[0]) for one in json.loads(line.answer or "")] for line in asked.lines[label]] for label in LABELS
    )
    assert before == [pytest.approx(choices, abs=0.02) for choices in expected]
    assert after != before
    for line, question, choices in zip(asked.lines["before"], QUESTIONS, expected, strict=True):
        assert line.score == {"acc": float(choices.index(max(choices)) == question["answer"])}
        assert line.prompt[0]["content"] == question["question"]
    found = conclude(asked, {label: f"x-{label}.jsonl" for label in LABELS})
    assert (found.n, found.metric, set(found.parts)) == (6, "acc", {"choices"})
    assert found.before.hits == sum(line.score["acc"] for line in asked.lines["before"])


def sample(number: int, metrics: dict[str, float], filter: str = "none", **more: Any) -> dict[str, Any]:
    """One line as the harness logs it."""
    return {
        "task": "t",
        "doc_id": number,
        "doc_hash": f"hash {number}",
        "filter": filter,
        "metrics": list(metrics),
        "target": "right",
        "arguments": {"gen_args_0": {"arg_0": f"question {number}", "arg_1": {"until": ["\n"]}}},
        "filtered_resps": [f"answer {number}"],
        **metrics,
        **more,
    }


def test_a_generated_answer_is_read_by_its_first_filter() -> None:
    both = [[sample(n, {"exact_match": float(n % 2), "words": 7.0}, name) for n in range(4)] for name in ("a", "b")]
    wrong = [{**one, "exact_match": 1.0} for one in both[1]]
    asked = harness_answers("t", {"before": [*both[0], *wrong], "after": [*both[0], *wrong]})
    assert asked.metric == "exact_match"
    assert [line.score for line in asked.lines["after"]] == [{"exact_match": float(n % 2)} for n in range(4)]
    first = asked.lines["before"][0]
    assert (first.prompt[0]["content"], first.answer, first.expected) == ("question 0", '["answer 0"]', "right")


def test_what_can_not_be_compared_is_refused() -> None:
    perplexity = [sample(n, {"word_perplexity": 12.5}) for n in range(2)]
    with pytest.raises(CloudftError, match="no metric of this task") as caught:
        harness_answers("t", {"before": perplexity, "after": perplexity})
    assert "word_perplexity" in caught.value.what
    before, after = ([sample(n, {"acc": 1.0}) for n in at] for at in (range(2), range(1, 3)))
    with pytest.raises(CloudftError, match="different questions"):
        harness_answers("t", {"before": before, "after": after})
