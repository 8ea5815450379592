"""The run spec: old ones are still read, and what makes no sense together is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from jobs.spec import RunSpec
from tests.rented import SPEC

FILE = {"path": "x.jsonl", "sha256": "b" * 64, "bytes": 3}
DPO = {"kind": "dpo", "beta": 0.1, "data": FILE}
NO_LORA = {"lora_r": None, "lora_alpha": None, "lora_dropout": None}


def spec(*stages: dict[str, Any]) -> RunSpec:
    """Of stages that differ from a plain one so."""
    data = json.loads(SPEC)
    (plain,) = data["stages"]
    return RunSpec.model_validate(data | {"stages": [plain | stage for stage in stages]})


def test_a_spec_of_the_first_version_is_one_sft_stage_that_nothing_measures() -> None:
    old = RunSpec.model_validate_json(SPEC)
    (stage,) = old.stages
    assert (stage.kind, stage.method, stage.data, stage.packing) == ("sft", "lora", None, False)
    assert (old.gate, old.data.validation, old.method, old.backend) == (None, None, "lora", "trl")
    assert [file.path for file in old.data_files()] == ["train.jsonl"]
    assert RunSpec.model_validate_json(old.canonical()) == old


@pytest.mark.parametrize(
    ("stages", "what"),
    [
        ([{"kind": "cpt"}], "cpt needs data of its own"),
        ([{"data": FILE}], "sft has no data of its own"),
        ([{"beta": 0.1}], "beta belongs to a dpo stage"),
        ([DPO | {"beta": None}], "beta belongs to a dpo stage"),
        ([{"method": "full"}], "belong to every method but full"),
        ([NO_LORA], "belong to every method but full"),
        ([{}, DPO | {"method": "qlora"}], "method must be the same for all"),
        ([{}, DPO | {"lora_r": 2}], "lora_r must be the same for all"),
        ([{}, DPO | {"dtype": "float32"}], "dtype must be the same for all"),
        ([], "at least 1 item"),
        ([{"kind": "grpo"}], "'cpt', 'sft' or 'dpo'"),
        ([{"surprise": 1}], "Extra inputs are not permitted"),
    ],
)
def test_what_does_not_fit_together_is_refused(stages: list[dict[str, Any]], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        spec(*stages)


@pytest.mark.parametrize(
    ("stage", "what"),
    [
        ({"method": "dora"}, "does not train dora"),
        ({"method": "full", **NO_LORA}, "not method full"),
        (DPO, "not dpo"),
        ({"packing": True}, "does not pack"),
    ],
)
def test_what_a_backend_cannot_train_is_in_no_spec(stage: dict[str, Any], what: str) -> None:
    data = json.loads(SPEC)
    (plain,) = data["stages"]
    for backend in ("trl", "unsloth"):
        asked = data | {"backend": backend, "stages": [plain | stage]}
        if backend == "trl":
            assert RunSpec.model_validate(asked).backend == "trl"
        else:
            with pytest.raises(ValidationError, match=what):
                RunSpec.model_validate(asked)


def test_stages_may_differ_in_all_that_is_their_own() -> None:
    found = spec({"kind": "cpt", "data": FILE, "learning_rate": 2, "packing": True}, {}, DPO | {"learning_rate": 3})
    assert [stage.kind for stage in found.stages] == ["cpt", "sft", "dpo"]
    assert spec({"method": "full", **NO_LORA}).method == "full"
