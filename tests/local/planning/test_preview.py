"""What `submit` finds out before it rents: the labels, the answers, the memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloudft.errors import ConfigError, DataError, EnvironmentProblem
from local.config import load_config
from local.planning.draft import Draft, draft
from local.planning.preview import Preview, preview
from local.planning.tracking import check_tracking, tracking_of
from local.progress import silent
from local.project import Project
from tests.local.hub_fixture import REPOSITORY, FakeHub, fake_hub
from tests.local.quantize_fixtures import tiny_base

__all__ = ["fake_hub", "tiny_base"]  # fixtures

GOOD = ['{"category": "a"}'] * 80
SCHEMA = {"type": "object", "properties": {"category": {"enum": ["a", "b"]}}, "required": ["category"]}


def make(root: Path, base: Path | str, answers: list[str], **train: Any) -> Project:
    root.mkdir()
    if isinstance(base, Path):
        shutil.copytree(base, root / "base")
    config = {
        "project": "tickets",
        "base": "./base" if isinstance(base, Path) else base,
        # Held out apart: its answers must keep to the task, those that are trained on need not.
        "data": {"path": "data.jsonl", "holdout": "held.jsonl", "validation": 0},
        "task": {"schema": "schema.json"},
        "train": train,
    }
    (root / "cloudft.yaml").write_text(yaml.safe_dump(config))
    (root / "schema.json").write_text(json.dumps(SCHEMA))
    for name, given in (("data", answers), ("held", GOOD[:12])):
        rows = [{"prompt": f"{name} ticket number {i}", "completion": answer} for i, answer in enumerate(given)]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Project(root.resolve())


def look(project: Project) -> tuple[Draft, Preview]:
    config = load_config(project.config_file)
    drafted = draft(project, config, silent)
    return drafted, preview(project, drafted, silent)


def test_the_labels_are_looked_at_with_the_bases_own_tokenizer(tmp_path: Path, tiny_base: Path) -> None:
    drafted, seen = look(make(tmp_path / "p", tiny_base, GOOD))
    assert seen.audit.audit is not None
    (stage,) = seen.audit.audit.stages
    assert (stage.rows, stage.ended) == (drafted.spec.data.train_rows,) * 2
    assert seen.notes == ()
    # What was counted is what the estimates rest on.
    (tokens,) = seen.work.tokens
    assert tokens.longest == (stage.longest,) * 2
    assert seen.work.shape is not None


def test_answers_that_break_the_schema_are_told_with_their_lines(tmp_path: Path, tiny_base: Path) -> None:
    answers = [*GOOD, '{"category": "z"}', "not json", '{"category": "a"} and more', "[]", "null"]
    _, seen = look(make(tmp_path / "p", tiny_base, answers))
    (note,) = seen.notes
    assert note.startswith("5 of 85 answers in data.jsonl do not keep to the task (line 81: ")


def test_rows_of_which_nothing_is_learned_are_refused_by_line(tmp_path: Path, tiny_base: Path) -> None:
    project = make(tmp_path / "p", tiny_base, GOOD, max_length=6)
    with pytest.raises(
        DataError, match=r"data\.jsonl, rows by their line: stage 1-sft: of \d+ rows \(1, 2,"
    ) as refused:
        look(project)
    assert "nothing was rented" in refused.value.effect


def test_a_base_without_a_fast_tokenizer_is_said_to_be_looked_at_there(tmp_path: Path, tiny_base: Path) -> None:
    project = make(tmp_path / "p", tiny_base, GOOD)
    (project.root / "base" / "tokenizer.json").rename(project.root / "base" / "tokenizer.model")
    _, seen = look(project)
    assert seen.audit.audit is None
    (line,) = seen.audit.lines()
    assert "on the machine, before the first step: the base has no tokenizer.json" in line
    # Then the rows' characters stand in for their tokens, as a range.
    (tokens,) = seen.work.tokens
    assert tokens.mean[0] < tokens.mean[1]


def test_of_a_base_of_the_hub_only_small_files_are_fetched(tmp_path: Path, fake_hub: FakeHub) -> None:
    _, seen = look(make(tmp_path / "p", REPOSITORY, GOOD))
    assert seen.audit.audit is not None
    assert not [name for name in fake_hub.served if name.endswith(".safetensors")]


@pytest.mark.parametrize(
    ("train", "provider", "kind", "said"),
    [
        ({"report_to": ["wandb"]}, "modal", ConfigError, "wandb needs its key on the machine"),
        ({"report_to": ["comet_ml"]}, "runpod", ConfigError, "comet_ml needs its key on the machine"),
        ({"report_to": ["comet_ml"]}, "local", EnvironmentProblem, "comet_ml cannot be imported"),
        ({"report_environment": {"AWS_REGION": "x"}}, "local", ConfigError, "AWS_REGION is no setting of a tracker"),
        ({"report_environment": {"WANDB_API_KEY": "x"}}, "local", ConfigError, "WANDB_API_KEY is a credential"),
        ({"report_environment": {"WANDB_NAME": "hf_" + "a" * 30}}, "local", ConfigError, "WANDB_NAME is a credential"),
    ],
)
def test_a_tracker_that_would_not_work_is_refused_before_renting(
    tmp_path: Path, train: dict[str, Any], provider: Any, kind: type[Exception], said: str
) -> None:
    project = make(tmp_path / "p", "owner/base", GOOD, **train)
    config = load_config(project.config_file).model_copy(update={"provider": provider})
    with pytest.raises(kind, match=said) as refused:
        check_tracking(project, config, tracking_of(config))
    assert "aaaa" not in str(refused.value.__dict__)


def test_a_tracker_whose_key_is_named_or_not_needed_is_taken(tmp_path: Path) -> None:
    project = make(
        tmp_path / "p", "owner/base", GOOD, report_to=["wandb", "wandb"], report_environment={"WANDB_MODE": "offline"}
    )
    config = load_config(project.config_file).model_copy(update={"provider": "modal"})
    assert tracking_of(config).report_to == ("wandb",)
    (note,) = check_tracking(project, config, tracking_of(config))
    assert "what is in this image is not known here" in note
    secret = make(tmp_path / "q", "owner/base", GOOD, report_to=["wandb", "mlflow", "tensorboard"])
    named = load_config(secret.config_file)
    machine = named.machine.model_copy(update={"secrets": {"WANDB_API_KEY": "mine"}})
    named = named.model_copy(update={"provider": "runpod", "machine": machine})
    assert len(check_tracking(secret, named, tracking_of(named))) == 3


def test_an_image_that_is_known_to_lack_the_package_is_refused(tmp_path: Path) -> None:
    project = make(tmp_path / "p", "owner/base", GOOD, report_to=["tensorboard"])
    image = "registry.test/train@sha256:" + "0" * 64
    lock: dict[str, Any] = {
        "image": image,
        "tag": "t",
        "content": "0" * 64,
        "contents": {
            "base": "python:3.11-slim",
            "base_pinned": "x",
            "platform": "linux/amd64",
            "python": "3.11",
            "packages": {"torch": "2.13.0"},
        },
    }
    path = project.root / "image.lock.json"
    path.write_text(json.dumps(lock))
    config = load_config(project.config_file).model_copy(update={"provider": "runpod", "image": image})
    with pytest.raises(ConfigError, match="tensorboard is not in the training image") as refused:
        check_tracking(project, config, tracking_of(config))
    assert "build.requirements" in refused.value.hint
    lock["contents"]["packages"]["tensorboardX"] = "2.6"
    path.write_text(json.dumps(lock))
    assert check_tracking(project, config, tracking_of(config)) == ()
