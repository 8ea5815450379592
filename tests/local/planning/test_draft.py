"""From `cloudft.yaml` to a spec: stages with data of their own, and nothing trained on that is measured with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloudft.errors import ConfigError, DataError, NotFound
from infra.provider_local import LocalProvider
from local.config import load_config
from local.demo.demo_project import write_demo_project
from local.demo.demo_tickets import generic_chats
from local.planning.draft import Draft, draft
from local.planning.estimate import Work
from local.planning.quote import quote
from local.planning.split import write_rows
from local.progress import silent
from local.project import Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return write_demo_project(tmp_path / "demo", silent)


def drafted(project: Project, train: dict[str, Any] | None = None, **data: Any) -> Draft:
    config = yaml.safe_load(project.config_file.read_text())
    config["train"] = train if train is not None else config["train"]
    config["data"] |= data
    project.config_file.write_text(yaml.safe_dump(config))
    return draft(project, load_config(project.config_file), silent)


def put(project: Project, name: str, rows: list[Any]) -> str:
    (project.root / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def questions(rows: Any) -> set[str]:
    return {row.question() for row in rows}


def test_the_plain_form_is_one_sft_stage_with_rows_to_measure_it(project: Project) -> None:
    found = drafted(project)
    spec = found.spec
    assert [stage.kind for stage in spec.stages] == ["sft"]
    assert (spec.data.train_rows, spec.data.validation_rows, spec.data.holdout_rows) == (532, 28, 140)
    assert spec.gate is not None
    assert (spec.gate.kind, spec.gate.keys, spec.gate.max_tokens) == ("json", ("category", "product", "priority"), 64)
    assert set(found.files) == {"train.jsonl", "holdout.jsonl", "validation.jsonl"}
    sets = [questions(found.files[name]) for name in found.files]
    assert len(set.union(*sets)) == sum(map(len, sets)) == 700
    assert [file.path for file in spec.data_files()] == ["train.jsonl", "validation.jsonl"]
    assert spec.base.parameters == 1_411_328


def test_every_file_of_the_spec_is_what_will_be_written(project: Project, tmp_path: Path) -> None:
    put(project, "texts.jsonl", [{"text": "some words of text"}] * 3)
    put(project, "pairs.jsonl", [{"prompt": f"q {i}", "chosen": "a", "rejected": "b"} for i in range(4)])
    stages = [{"kind": "cpt", "data": "texts.jsonl"}, {"kind": "sft"}, {"kind": "dpo", "data": "pairs.jsonl"}]
    found = drafted(project, {"stages": stages})
    named = {file.path: file for file in found.spec.data_files()}
    assert set(named) == {"train.jsonl", "validation.jsonl", "stage-1-cpt.jsonl", "stage-3-dpo.jsonl"}
    for name, rows in found.files.items():
        written = write_rows(tmp_path / name, rows)
        assert name == "holdout.jsonl" or written == named[name]
    cpt, sft, dpo = found.spec.stages
    assert (cpt.rows, sft.rows, dpo.rows) == (3, 0, 4)
    assert (cpt.data, dpo.data) == (named["stage-1-cpt.jsonl"], named["stage-3-dpo.jsonl"])
    assert found.spec.sha256() != drafted(project, {"stages": stages[:2]}).spec.sha256()


def test_what_is_measured_with_is_left_out_of_every_stage(project: Project) -> None:
    plain = drafted(project)
    held, kept_back = (plain.files[name][0] for name in ("holdout.jsonl", "validation.jsonl"))
    asked = [next(m.content for m in row.messages if m.role == "user") for row in (held, kept_back)]  # type: ignore[attr-defined]
    put(project, "texts.jsonl", [{"text": f"Seen: {text} Yes."} for text in asked] + [{"text": "harmless"}])
    put(
        project,
        "pairs.jsonl",
        [{"prompt": text.upper(), "chosen": "a", "rejected": "b"} for text in (*asked, "harmless")],
    )
    put(project, "general.jsonl", [{"prompt": text, "completion": "x"} for text in (*asked, "harmless")])
    stages = [{"kind": "cpt", "data": "texts.jsonl"}, {"kind": "dpo", "data": "pairs.jsonl"}]
    found = drafted(project, {"stages": stages, "replay": {"path": "general.jsonl", "share": 0.1}})
    assert [stage.rows for stage in found.spec.stages] == [1, 1]
    assert "2 documents of texts.jsonl hold a question that is measured with" in found.notes
    assert "2 pairs of pairs.jsonl ask what is measured with, and were left out" in found.notes
    assert "2 general rows ask what is measured with, and are not replayed" in found.notes
    assert found.spec.data.replay_rows == 1
    # Without an sft stage the answers themselves do not travel.
    assert "train.jsonl" not in [file.path for file in found.spec.data_files()]


def test_replayed_rows_are_a_share_and_the_general_ones_are_not_among_them(project: Project) -> None:
    put(project, "general.jsonl", [{"messages": chat} for chat in generic_chats(400, 3)])
    replay = {"path": "general.jsonl", "share": 0.1}
    found = drafted(project, {"replay": replay})
    data = found.spec.data
    assert (data.replay_rows, data.general_rows) == (round(532 / 9), 64)
    assert not questions(found.files["replay.jsonl"]) & questions(found.files["general.jsonl"])
    assert drafted(project, {"replay": replay}).spec.data == data
    own = put(project, "own.jsonl", [{"prompt": f"what is {i}?", "completion": "a number"} for i in range(9)])
    found = drafted(project, {"replay": replay, "general": own})
    assert (found.spec.data.replay_rows, found.spec.data.general_rows) == (round(532 / 9), 9)
    assert drafted(project, {"general": own}).spec.data.replay is None
    few = drafted(project, {"replay": {"path": own, "share": 0.5}})
    assert few.spec.data.replay_rows == 9
    assert "9 general rows are all that there is to replay, of 532 wanted" in few.notes


def test_no_validation_rows_where_the_user_wants_none(project: Project) -> None:
    found = drafted(project, validation=0)
    assert (found.spec.data.train_rows, found.spec.data.validation) == (560, None)


@pytest.mark.parametrize(
    ("train", "error", "what"),
    [
        ({"stages": [{"kind": "cpt", "data": "gone.txt"}]}, NotFound, r"gone\.txt is not there"),
        ({"stages": [{"kind": "dpo", "data": "data/tickets.jsonl"}]}, DataError, "a preference needs"),
        ({"replay": {"path": "gone.jsonl"}}, NotFound, r"gone\.jsonl is not there"),
        ({"stages": [{"kind": "cpt"}]}, ConfigError, r"train\.stages\.0: .*a cpt stage needs data"),
        ({"stages": [{"kind": "sft", "data": "x"}]}, ConfigError, "an sft stage trains on data.path"),
        ({"stages": [{"kind": "sft", "lerning_rate": 1}]}, ConfigError, "did you mean 'learning_rate'"),
        ({"replay": {"path": "x", "shar": 1}}, ConfigError, "did you mean 'share'"),
        ({"learning_rate": 1e-4, "stages": [{"kind": "sft"}]}, ConfigError, "learning_rate differs between stages"),
        ({"method": "full", "lora_r": 4}, ConfigError, "lora_r belongs to an adapter"),
        ({"stages": []}, ConfigError, "at least 1 item"),
    ],
)
def test_what_is_wrong_is_named(project: Project, train: dict[str, Any], error: type[Exception], what: str) -> None:
    with pytest.raises(error, match=what):
        drafted(project, train)


def test_the_gpus_that_are_asked_for_share_the_rows_of_a_step(project: Project) -> None:
    config = load_config(project.config_file)
    set_ = config.model_copy(update={"provider": "runpod", "gpu": ["H100:2", "A100-80GB:3"]})
    with pytest.raises(ConfigError, match="6 GPUs cannot share 16 rows a step evenly"):
        draft(project, set_, silent)  # the demo sets both
    here = config.model_copy(update={"gpu": ["H100:2"], "machine": config.machine.model_copy(update={"gpus": 3})})
    with pytest.raises(ConfigError, match="3 GPUs cannot share 16 rows a step evenly"):
        draft(project, here, silent)  # nothing is rented
    left = set_.model_copy(update={"train": set_.train.model_copy(update={"gradient_accumulation": None})})
    (stage,) = draft(project, left, silent).spec.stages
    assert stage.batch_size * stage.gradient_accumulation % 6 == 0


def test_a_computer_of_ones_own_trains_on_as_many_gpus_as_it_is_told_to(project: Project) -> None:
    config = load_config(project.config_file)
    work = Work("base", None, None, (), ())
    counts = [
        quote(LocalProvider(project.root), config.model_copy(update={"machine": machine}), work, 0.0).plan[0].count
        for machine in (config.machine, config.machine.model_copy(update={"gpus": 2}))
    ]
    assert counts == [1, 2]
