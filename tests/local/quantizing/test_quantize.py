"""From an adapter to a served version: the same model that was trained."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from cloudft.errors import IntegrityError, NotFound, UsageError
from jobs.spec import Base
from local.evaluation.evaluate import base_target
from local.files import sha256_file
from local.project import Project, RunFolder
from local.quantizing.maker import _samples
from local.quantizing.quantize import quantize_adapter, quantize_model, quantize_run, quantize_types, quantized_base
from local.serving.versions import MANIFEST, Manifest, current, list_versions
from tests.local.quantize_fixtures import (
    PROMPT,
    ROWS,
    SERVED,
    TRAINED,
    Quantised,
    logits,
    made,
    merged_logits,
    no_progress,
    quantised,
    relative_error,
    tiny_adapter,
    tiny_base,
    write_result,
)

__all__ = ["made", "quantised", "tiny_adapter", "tiny_base"]


def test_the_version_is_whole_and_is_the_current_one(quantised: Quantised) -> None:
    project, run, version = quantised.project, quantised.run, quantised.version
    assert sorted(path.name for path in version.root.iterdir()) == [
        "chat_template.jinja",
        "manifest.json",
        "model.gguf",
        "prompts.json",
    ]
    assert [path.name for path in project.models.iterdir() if path.name[0] == "."] == [".lock"]
    assert current(project) == version
    assert list(dict.fromkeys(quantised.said)) == ["check base", "merge", "convert", "quantize", "verify"]
    assert version.root.stat().st_mode & 0o755 == 0o755  # a container's own user must be able to read it
    assert version.gguf.stat().st_mode & 0o444 == 0o444
    manifest = json.loads((version.root / "manifest.json").read_text())
    spec = json.loads(run.spec.read_text())
    assert manifest["run_id"] == "run-1"
    assert (manifest["base_id"], manifest["base_revision"]) == ("base", spec["base"]["revision"])
    assert (manifest["type"], manifest["llama_cpp_python"]) == ("Q4_K_M", "0.3.36")
    assert manifest["gguf_sha256"] == sha256_file(version.gguf)
    assert manifest["gguf_bytes"] == version.gguf.stat().st_size
    found = manifest["verification"]
    assert (found["architecture"], found["end_of_turn"]) == ("qwen2", "<|im_end|>")
    assert found["conversations"] >= 12  # eight rows of the training data, four of the hold-out
    assert found["reference_tokens"] > 100
    assert 0 < found["kl_divergence"] < 0.2


def test_the_trained_template_is_in_the_file(quantised: Quantised) -> None:
    from llama_cpp import Llama

    version = quantised.version
    model = Llama(str(version.gguf), vocab_only=True, verbose=False)
    assert model.metadata["tokenizer.chat_template"] == SERVED
    assert (version.root / "chat_template.jinja").read_text() == SERVED
    # What was trained goes with the adapter; what is served is free of what only training understands.
    assert "{% generation %}" in (quantised.run.adapter / "chat_template.jinja").read_text()
    assert "generation %}" not in SERVED
    assert model.metadata["general.file_type"] == "15"  # Q4_K_M
    assert model.metadata["tokenizer.ggml.pre"] == "qwen2"


def test_four_bits_predict_nearly_what_the_merge_predicts(
    quantised: Quantised, tiny_base: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    version = quantised.version
    found, wanted = logits(version.gguf, PROMPT), merged_logits(tiny_base, tiny_adapter, PROMPT)
    found = found[:, : wanted.shape[1]]
    assert relative_error(found, wanted) < 0.5
    assert (found.argmax(-1) == wanted.argmax(-1)).mean() > 0.3  # by chance it would be one in 512
    # Without the adapter the model is another one, or this test would show nothing.
    base = merged_logits(tiny_base, make_nothing(tiny_adapter, tmp_path), PROMPT)
    assert relative_error(base, wanted) > 1
    assert divergence(wanted, found) < 0.2 * divergence(wanted, base)


def divergence(p: Any, q: Any) -> float:
    """Mean KL divergence of the predictions, in nats."""
    from local.quantizing.divergence import log_softmax

    logs = [(log_softmax(a), log_softmax(b)) for a, b in zip(p.astype("f8"), q.astype("f8"), strict=True)]
    return float(sum((math.e**a * (a - b)).sum() for a, b in logs) / len(logs))


def make_nothing(adapter: Path, root: Path) -> Path:
    """The adapter with all of its weights zero."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(adapter, root / "nothing", dirs_exist_ok=True))
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({name: torch.zeros_like(w) for name, w in weights.items()}, folder / "adapter_model.safetensors")
    return folder


def test_the_same_adapter_gives_the_version_that_exists(
    quantised: Quantised,
) -> None:
    project, run, version = quantised.project, quantised.run, quantised.version
    said: list[str] = []
    before = version.gguf.stat().st_mtime_ns
    again = quantize_run(project, run, progress=lambda what, *_, **__: said.append(what))
    assert again == version
    assert set(said) == {"check version"}
    assert version.gguf.stat().st_mtime_ns == before


def test_the_base_itself_is_quantised_once_for_the_before(made: tuple[Project, RunFolder], tiny_base: Path) -> None:
    project, run = made
    base = json.loads(run.spec.read_text())["base"]
    locked = Base.model_validate(base)
    gguf = quantized_base(project, locked, type="F16", progress=no_progress, template=TRAINED)
    assert gguf.parent.parent == project.models / "bases"
    assert gguf.parent.name.startswith(f"{locked.revision[:16]}-f16")
    said: list[str] = []
    assert (
        quantized_base(project, locked, type="F16", progress=lambda what, *_, **__: said.append(what), template=TRAINED)
        == gguf
    )
    assert set(said) == {"check version"}
    assert list_versions(project) == []  # it is not a version, and it is not served
    assert current(project) is None
    wanted = merged_logits(tiny_base, make_nothing(run.adapter, project.root), PROMPT)
    assert relative_error(logits(gguf, PROMPT)[:, : wanted.shape[1]], wanted) < 0.02
    assert json.loads((gguf.parent / "manifest.json").read_text())["run_id"] is None


def test_rows_are_the_runs_own(quantised: Quantised) -> None:
    assert _samples(quantised.run) == [row["messages"] for row in (*ROWS[8:], *ROWS[:8])]


def test_several_types_are_several_versions_and_the_first_is_current(made: tuple[Project, RunFolder]) -> None:
    project, run = made
    said: list[str] = []
    first, second = quantize_types(
        project, run, ["q8_0", "F16", "Q8_0"], imatrix=True, progress=lambda what, *_, **__: said.append(what)
    )
    assert [v.manifest.type for v in (first, second)] == ["Q8_0", "F16"]
    assert {v.name for v in list_versions(project)} == {first.name, second.name}
    assert current(project) == first
    assert "-q8_0-imatrix-" in first.name
    assert first.manifest.imatrix
    assert first.manifest.merge == "tensor by tensor"
    assert "imatrix" in said
    again = quantize_types(project, run, ["F16"], imatrix=True, progress=no_progress)  # it is there already
    assert (again, current(project)) == ([second], second)


def test_a_finer_type_takes_the_place_of_one_that_loses_too_much(quantised: Quantised, tmp_path: Path) -> None:
    shutil.copytree(quantised.project.root, tmp_path / "copy", symlinks=True)
    project = Project(tmp_path / "copy")
    assert quantised.version.manifest.verification.kl_divergence is not None
    strict = quantised.version.manifest.verification.kl_divergence / 2
    said: list[str] = []
    (version,) = quantize_types(
        project,
        project.run("run-1"),
        ["Q4_K_M"],
        max_kl=strict,
        step_up=True,
        progress=lambda what, *_, **__: said.append(what),
    )
    assert said.index("check version") < said.index("step up")  # the one that exists is not good enough any more
    assert version.manifest.type in ("Q5_K_M", "Q6_K", "Q8_0")
    found = version.manifest.verification
    assert found.kl_divergence is not None
    assert found.kl_divergence <= strict == found.kl_limit
    assert current(project) == version
    assert {v.manifest.type for v in list_versions(project)} == {"Q4_K_M", version.manifest.type}


def test_a_full_fine_tune_is_a_model_already(made: tuple[Project, RunFolder]) -> None:
    """In shards and with tied embeddings, where an adapter would be; the base is not needed for it."""
    from transformers import AutoModelForCausalLM

    project, run = made
    trained = AutoModelForCausalLM.from_pretrained(project.root / "base", dtype="auto")
    kept = {name: (run.adapter / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    shutil.rmtree(run.adapter)
    trained.save_pretrained(run.adapter, max_shard_size="500KB")
    for name, data in kept.items():
        (run.adapter / name).write_bytes(data)
    (run.adapter / "chat_template.jinja").write_text(TRAINED)
    assert len(list(run.adapter.glob("model-*.safetensors"))) > 2
    write_result(run)
    shutil.rmtree(project.root / "base")
    version = quantize_run(project, run, type="Q8_0", progress=no_progress)
    assert (version.manifest.run_id, version.manifest.base_id, version.manifest.merge) == ("run-1", "base", "")
    assert version.manifest.adapter_sha256 is not None
    assert version.manifest.verification.kl_divergence is not None
    assert version.manifest.verification.kl_divergence < 0.02
    with pytest.raises(UsageError, match="trained a whole model: it has no adapter"):
        quantize_adapter(project, run, progress=no_progress)
    shard = next(run.adapter.glob("model-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    with pytest.raises(IntegrityError, match=f"{shard.name} is not what the run trained"):
        quantize_run(project, run, type="F16", progress=no_progress)


def test_the_base_is_quantised_as_the_version_that_it_is_compared_with(made: tuple[Project, RunFolder]) -> None:
    project, run = made
    (version,) = quantize_types(project, run, ["IQ2_XS"], imatrix=True, max_kl=50.0, progress=no_progress)
    target = base_target(project, run, version, no_progress)
    assert target.gguf is not None
    base = Manifest.model_validate_json((target.gguf.parent / MANIFEST).read_bytes())
    assert (base.type, base.imatrix, base.verification.kl_limit) == ("IQ2_XS", True, 50.0)
    assert base.verification.tensor_types == version.manifest.verification.tensor_types
    assert base.gguf_sha256 != version.manifest.gguf_sha256


def test_a_whole_model_becomes_a_version(made: tuple[Project, RunFolder]) -> None:
    project, _ = made
    (version,) = quantize_model(project, project.root / "base", ["Q8_0"], progress=no_progress)
    assert version.name.startswith("base-q8_0-")
    assert (version.manifest.run_id, version.manifest.adapter_sha256, version.manifest.merge) == (None, None, "")
    assert version.manifest.verification.kl_divergence is not None
    assert current(project) == version
    with pytest.raises(NotFound, match="is no folder"):
        quantize_model(project, project.root / "nothing", ["Q8_0"], progress=no_progress)


def test_an_adapter_alone_is_a_file_and_no_version(made: tuple[Project, RunFolder]) -> None:
    project, run = made
    path = quantize_adapter(project, run, progress=no_progress)
    assert path.parent == project.models / "adapters"
    before = path.stat().st_mtime_ns
    assert quantize_adapter(project, run, progress=no_progress).stat().st_mtime_ns == before
    lineage = json.loads(path.with_suffix(".json").read_text())
    assert (lineage["gguf_sha256"], lineage["layers"]) == (sha256_file(path), 14)
    assert list_versions(project) == []
    assert current(project) is None
    assert [p.name for p in project.models.iterdir() if p.name.startswith(".building")] == []
