"""What a version is made of is looked at first: what is missing, damaged or another's is named, and nothing is made."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from cloudft.errors import EnvironmentProblem, IntegrityError, NotFound, UsageError, VerifyError
from local.project import Project, RunFolder
from local.quantizing.quantize import quantize_model, quantize_run, quantize_types
from tests.local.models import make_lora
from tests.local.quantize_fixtures import (
    TRAINED,
    copy_project,
    made,
    make_base,
    no_progress,
    nothing_left,
    tiny_adapter,
    tiny_base,
    write_result,
)

__all__ = ["made", "tiny_adapter", "tiny_base"]


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_missing_adapter_says_how_to_get_it(made: tuple[Project, RunFolder], name: str) -> None:
    project, run = made
    (run.adapter / name).unlink()
    with pytest.raises(NotFound, match="the adapter is not here") as caught:
        quantize_run(project, run, progress=no_progress)
    assert "cloudft pull" in caught.value.hint
    assert not project.models.exists()


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_truncated_adapter_is_named(made: tuple[Project, RunFolder], name: str) -> None:
    project, run = made
    (run.adapter / name).write_bytes((run.adapter / name).read_bytes()[:-9])
    with pytest.raises(IntegrityError, match=f"{name} is damaged") as caught:
        quantize_run(project, run, progress=no_progress)
    assert "cloudft pull" in caught.value.hint
    assert not project.models.exists()


def test_an_adapter_without_its_template_is_refused(made: tuple[Project, RunFolder]) -> None:
    project, run = made
    (run.adapter / "chat_template.jinja").unlink()
    with pytest.raises(IntegrityError, match=r"chat_template\.jinja is gone"):
        quantize_run(project, run, progress=no_progress)
    write_result(run)
    with pytest.raises(IntegrityError, match="with which chat template"):
        quantize_run(project, run, progress=no_progress)


def test_a_template_that_is_not_the_runs_is_refused(made: tuple[Project, RunFolder]) -> None:
    project, run = made
    spec = json.loads(run.spec.read_text())
    run.spec.write_text(json.dumps(spec | {"template": TRAINED + " "}))
    with pytest.raises(VerifyError, match="not the chat template of the run's spec"):
        quantize_run(project, run, progress=no_progress)
    nothing_left(project)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "chat_template.jinja", "tokenizer.json"])
def test_what_is_not_what_the_run_trained_is_refused(made: tuple[Project, RunFolder], name: str) -> None:
    """A flipped bit, another template, another tokenizer: nothing else would notice."""
    project, run = made
    data = bytearray((run.adapter / name).read_bytes())
    data[-20] ^= 1
    (run.adapter / name).write_bytes(data)
    with pytest.raises(IntegrityError, match=f"{name} is not what the run trained") as caught:
        quantize_run(project, run, progress=no_progress)
    assert caught.value.hint == "bring it home again:  cloudft pull run-1"
    assert not project.models.exists()


def test_what_the_run_did_not_train_is_refused(made: tuple[Project, RunFolder]) -> None:
    project, run = made
    (run.adapter / "notes.txt").write_text("no part of a model")
    (run.adapter / "added_tokens.json").write_text('{"<other>": 7}')
    with pytest.raises(IntegrityError, match=r"added_tokens\.json did not come from the run"):
        quantize_run(project, run, progress=no_progress)
    run.result.write_text("{}")
    with pytest.raises(IntegrityError, match=r"result\.json is damaged"):
        quantize_run(project, run, progress=no_progress)
    run.result.unlink()
    with pytest.raises(NotFound, match="nobody can say whether the adapter is the one that was trained"):
        quantize_run(project, run, progress=no_progress)


def test_a_drifted_base_is_refused(made: tuple[Project, RunFolder]) -> None:
    project, run = made
    make_base(project.root / "other", seed=5)
    shutil.copyfile(project.root / "other" / "model.safetensors", project.root / "base" / "model.safetensors")
    with pytest.raises(IntegrityError, match=r"base/model\.safetensors has other contents"):
        quantize_run(project, run, progress=no_progress)
    nothing_left(project)


def test_a_base_that_is_gone(made: tuple[Project, RunFolder]) -> None:
    project, run = made
    shutil.rmtree(project.root / "base")
    with pytest.raises(NotFound, match="the base is not there"):
        quantize_run(project, run, progress=no_progress)
    nothing_left(project)


def test_an_adapter_tensor_without_a_place_is_refused(made: tuple[Project, RunFolder]) -> None:
    """peft itself only drops it."""
    import torch
    from safetensors.torch import load_file, save_file

    project, run = made
    path = run.adapter / "adapter_model.safetensors"
    weights = load_file(path)
    weights["base_model.model.model.layers.7.mlp.up_proj.lora_A.weight"] = torch.zeros(8, 256)
    save_file(weights, path)
    write_result(run)
    with pytest.raises(IntegrityError, match=r"layers\.7\.mlp\.up_proj.* has no place in the base"):
        quantize_run(project, run, progress=no_progress)
    nothing_left(project)


def test_a_damaged_spec_is_named(made: tuple[Project, RunFolder]) -> None:
    project, run = made
    run.spec.write_text(run.spec.read_text()[:-20])
    with pytest.raises(IntegrityError, match=r"spec\.json is damaged"):
        quantize_run(project, run, progress=no_progress)
    run.spec.unlink()
    with pytest.raises(NotFound, match=r"spec\.json is not there"):
        quantize_run(project, run, progress=no_progress)


def test_an_unknown_type_is_refused_with_the_known_ones(made: tuple[Project, RunFolder]) -> None:
    project, run = made
    with pytest.raises(UsageError, match="'Q3_X'") as caught:
        quantize_run(project, run, type="Q3_X", progress=no_progress)
    assert "Q4_K_M, Q5_K_M" in caught.value.hint


def test_a_type_that_needs_importances_is_refused_at_once(made: tuple[Project, RunFolder]) -> None:
    project, run = made
    with pytest.raises(UsageError, match="IQ2_XS can't be made without knowing") as caught:
        quantize_types(project, run, ["Q8_0", "iq2_xs"], progress=no_progress)
    assert caught.value.hint == "cloudft quantize run-1 --type IQ2_XS --imatrix"
    with pytest.raises(UsageError, match="--model has none"):
        quantize_model(project, project.root / "base", ["IQ2_XS"], progress=no_progress)
    assert not project.models.exists()


def test_a_small_disk_is_noticed_before_anything_is_written(
    made: tuple[Project, RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, run = made
    usage = shutil._ntuple_diskusage(10**9, 10**9, 4 * 10**5)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(EnvironmentProblem, match="merging and quantising needs"):
        quantize_run(project, run, progress=no_progress)
    nothing_left(project)


def test_the_space_is_that_of_the_files_and_of_what_is_copied(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil._ntuple_diskusage(10**9, 10**9, 0)  # type: ignore[attr-defined]
    needed = []
    cases: list[tuple[str, dict[str, Any]]] = [
        ("bfloat16", {}),
        ("float32", {}),
        ("bfloat16", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    ]
    for i, (dtype, options) in enumerate(cases):
        base = make_base(tmp_path / f"base-{i}", dtype=dtype)
        adapter = make_lora(tmp_path / f"adapter-{i}", base, target_modules=["q_proj"], **options)
        project, run = copy_project(tmp_path / f"project-{i}", base, adapter)
        with monkeypatch.context() as full:
            full.setattr(shutil, "disk_usage", lambda _: usage)
            with pytest.raises(EnvironmentProblem) as caught:
                quantize_run(project, run, progress=no_progress)
        found = re.search(r"needs (\d+\.\d) ([kM]B) in", caught.value.what)
        assert found is not None
        needed.append(float(found[1]) * {"kB": 1e3, "MB": 1e6}[found[2]])
    assert needed[1] == needed[0]  # in 32 bits the base is twice as large, and the file is not
    assert needed[2] - needed[0] == pytest.approx(2 * 512 * 256 * 4, rel=0.1)  # both layers, in float32
