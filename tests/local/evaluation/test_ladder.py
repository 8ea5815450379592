"""The ladder over real files: a tiny model, its adapter, the merge and the quantised file, all served and asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from cloudft.errors import CloudftError, IntegrityError, NotFound, UsageError
from local.evaluation.document.eval_json import read_document
from local.evaluation.document.ladder import Ladder, RungName
from local.evaluation.document.outputs import OutputLine, read_outputs
from local.evaluation.eval_config import LadderConfig
from local.evaluation.evaluate import evaluate_run
from local.evaluation.fewshot import draw_examples
from local.evaluation.ladder import climb
from local.evaluation.measuring import Settings
from local.evaluation.served import find_served
from local.evaluation.task import TextTask
from local.evaluation.tasks.base import Row
from local.files import sha256_file
from local.progress import silent
from local.project import Project, RunFolder
from local.serving.serve_process import serve_in_process
from tests.local.quantize_fixtures import ROWS, Quantised, quantised, tiny_adapter, tiny_base

__all__ = ["quantised", "tiny_adapter", "tiny_base"]
KEY = "a-key"
CONTEXT = 160
"""Tokens: llama.cpp makes 256 of them, which is too few for five examples beside a question."""
RUNGS: tuple[RungName, ...] = ("base", "few-shot", "adapter", "merge", "quantised", "served")


def write_settings(project: Project, run: RunFolder) -> None:
    """What submit would have left: the config and the task."""
    config = {"project": "tiny", "base": "./base", "data": {"path": "x"}, "task": {"kind": "text", "max_tokens": 12}}
    project.config_file.write_text(yaml.safe_dump(config | {"serve": {"context": CONTEXT, "port": 1}}))
    run.task.write_text(TextTask(max_tokens=12).model_dump_json())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ladder")


@pytest.fixture
def evaluated(quantised: Quantised, root: Path) -> tuple[Project, RunFolder]:
    """A copy of the quantised project that was evaluated."""
    project = Project(root / "project")
    run = project.run(quantised.run.run_id)
    if not project.root.is_dir():
        shutil.copytree(quantised.project.root, project.root, symlinks=True)
        write_settings(project, run)
        evaluate_run(project, run, progress=silent)
    return project, run


@pytest.fixture
def climbed(evaluated: tuple[Project, RunFolder], monkeypatch: pytest.MonkeyPatch) -> tuple[Project, RunFolder, Ladder]:
    """Once for all, with a server of the project's, as `cloudft serve` starts it, on the last rung."""
    project, run = evaluated
    if read_document(run).ladder is None:
        monkeypatch.setenv("CLOUDFT_API_KEY", KEY)
        gguf, log = project.current_model / "model.gguf", project.state / "serve.log"
        with serve_in_process(gguf, api_key=KEY, context=CONTEXT, log=log) as endpoint:
            climb(project, run, Settings(), LadderConfig(examples=5), url=endpoint.url, progress=silent)
            assert find_served(project, endpoint.model, endpoint.url) is not None
            with pytest.raises(UsageError, match=f"serves {endpoint.model}, not another"):
                find_served(project, "another", endpoint.url)
    ladder = read_document(run).ladder
    assert ladder is not None
    return project, run, ladder


def lines(run: RunFolder, ladder: Ladder, name: RungName) -> list[OutputLine]:
    rung = next(rung for rung in ladder.rungs if rung.name == name)
    return read_outputs(run, rung.measurement.outputs)


def answers(run: RunFolder, ladder: Ladder, name: RungName) -> list[str | None]:
    return [line.answer for line in lines(run, ladder, name)]


def test_every_rung_is_measured_on_the_same_rows(climbed: tuple[Project, RunFolder, Ladder]) -> None:
    _, run, ladder = climbed
    assert tuple(rung.name for rung in ladder.rungs) == RUNGS
    assert not ladder.missing
    document = read_document(run)
    same = {name: [line.prompt_sha256 for line in lines(run, ladder, name)] for name in RUNGS}
    for name in RUNGS:
        assert (same[name] == same["base"]) == (name != "few-shot")
        assert [line.expected for line in lines(run, ladder, name)] == [
            line.expected for line in read_outputs(run, document.sides["after"].outputs)
        ]
    assert answers(run, ladder, "quantised") == answers(run, ladder, "served")
    quantised = read_outputs(run, document.sides["after"].outputs)
    assert answers(run, ladder, "quantised") == [line.answer for line in quantised]
    assert [step.cause for step in ladder.steps] == [
        "examples",
        "training",
        "training against examples",
        "merging",
        "quantisation",
        "serving",
    ]
    for step in ladder.steps:
        values = {rung.name: rung.measurement.metrics[ladder.metric].value for rung in ladder.rungs}
        assert step.comparison.change == pytest.approx(values[step.after] - values[step.before])
    assert ladder.worth_it in ("yes", "no", "undecided")


def test_the_adapter_beside_the_base_answers_as_the_merge_does(climbed: tuple[Project, RunFolder, Ladder]) -> None:
    """Random weights: nothing but the adapter, with its scale, makes the two alike and the base different."""
    _, run, ladder = climbed
    beside, merged, base = (answers(run, ladder, name) for name in ("adapter", "merge", "base"))
    assert beside == merged
    assert sum(one != other for one, other in zip(beside, base, strict=True)) >= len(base) - 1
    used = {rung.name: rung.measurement.model for rung in ladder.rungs}
    assert used["adapter"].sha256 == used["base"].sha256 != used["merge"].sha256
    assert used["adapter"].lora_sha256 is not None
    assert used["merge"].lora is None
    # The trained template differs from the base's own.
    assert used["adapter"].template_sha256 == used["merge"].template_sha256 != used["base"].template_sha256


def test_as_many_examples_as_fit_stand_before_the_question(climbed: tuple[Project, RunFolder, Ladder]) -> None:
    _, run, ladder = climbed
    shot = ladder.few_shot
    assert shot is not None
    assert (shot.wanted, shot.train_sha256) == (5, sha256_file(run.train_data))
    assert 0 < shot.k == len(shot.rows) < 5
    assert ladder.rungs[1].note == f"5 examples do not fit into serve.context, {shot.k} do"
    rows = [json.loads(line)["messages"] for line in run.train_data.read_text().splitlines()]
    shown = [message for number in shot.rows for message in rows[number - 1][1:]]
    for line, plain in zip(lines(run, ladder, "few-shot"), lines(run, ladder, "base"), strict=True):
        assert list(line.prompt) == [plain.prompt[0], *shown, *plain.prompt[1:]]
        assert (line.prompt_tokens or 0) > (plain.prompt_tokens or 0) + 20


def test_the_last_rung_is_the_endpoint_and_was_asked(climbed: tuple[Project, RunFolder, Ladder]) -> None:
    project, _, ladder = climbed
    served = ladder.rungs[-1].measurement
    assert served.model.url is not None
    assert served.model.file is None
    assert served.usage.cached == 0
    # Nothing answers there now, and nothing else is served: the port of cloudft.yaml is 1.
    assert find_served(project, served.model.name) is None
    with pytest.raises(CloudftError, match="cannot be reached"):
        find_served(project, served.model.name, served.model.url)


def test_large_files_are_gone_and_what_is_served_is_unchanged(climbed: tuple[Project, RunFolder, Ladder]) -> None:
    project, _, ladder = climbed
    assert not (project.models / "ladder").exists()
    assert not list(project.models.glob(".building-*"))
    assert [path.name for path in project.models.iterdir() if "f16" in path.name] == []
    assert (project.models / "current").resolve().name == ladder.rungs[4].measurement.model.name


def test_a_new_evaluation_keeps_the_ladder_as_long_as_the_answers_are_the_same(
    climbed: tuple[Project, RunFolder, Ladder],
) -> None:
    project, run, ladder = climbed
    # Asked anew, the same answers take another time.
    anew = evaluate_run(project, run, progress=silent, settings=Settings(use_cache=False)).document
    assert anew.sides["after"].usage.cached == 0
    assert anew.ladder == ladder
    assert read_document(run).ladder == ladder
    fewer = evaluate_run(project, run, progress=silent, settings=Settings(limit=2)).document
    assert fewer.ladder is None
    assert read_document(run).ladder is None


def test_a_run_that_was_not_evaluated_is_not_climbed(quantised: Quantised, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="was not evaluated"):
        climb(Project(tmp_path), Project(tmp_path).run("r1"), Settings(), LadderConfig(), progress=silent)


def test_examples_are_drawn_from_the_training_rows_alone(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    broken = ["", "{", "[]", '{"messages": []}', '{"messages": [{"role": "user", "content": "no answer"}]}']
    run.train_data.write_text("\n".join([*broken, *(json.dumps(row) for row in ROWS[:8]), ""]))
    digest = sha256_file(run.train_data)
    found = draw_examples(run, digest, 5, seed=7)
    assert found == draw_examples(run, digest, 5, seed=7)
    assert found.lines != draw_examples(run, digest, 5, seed=8).lines
    assert len(set(found.lines)) == 5
    assert all(line > len(broken) for line in found.lines)
    assert found.first(2).about().k == 2
    assert found.first(2).about().wanted == 5
    row = Row(1, ({"role": "user", "content": "?"},), "a", "a")
    assert found.first(1).before(row).prompt == (*ROWS[found.lines[0] - len(broken) - 1]["messages"][1:], *row.prompt)
    with pytest.raises(IntegrityError, match="changed after submit"):
        draw_examples(run, "0" * 64, 1, seed=7)
