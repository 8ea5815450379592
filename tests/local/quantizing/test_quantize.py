"""From an adapter to a served version: the same model that was trained, or a clear error and nothing half-written."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock

from cloudft.errors import Busy, CloudftError, EnvironmentProblem, IntegrityError, NotFound, UsageError, VerifyError
from jobs.spec import Base
from local.evaluation.evaluate import base_target
from local.files import sha256_file
from local.project import Project, RunFolder
from local.quantizing.maker import _samples
from local.quantizing.quantize import (
    quantize_adapter,
    quantize_model,
    quantize_run,
    quantize_types,
    quantized_base,
)
from local.serving.versions import MANIFEST, Manifest, current, list_versions
from tests.local.models import make_lora
from tests.local.quantize_fixtures import (
    ROWS,
    SERVED,
    TRAINED,
    Quantised,
    copy_project,
    make_base,
    no_progress,
    quantised,
    tiny_adapter,
    tiny_base,
    write_result,
)

__all__ = ["quantised", "tiny_adapter", "tiny_base"]


@pytest.fixture
def made(tmp_path: Path, tiny_base: Path, tiny_adapter: Path) -> tuple[Project, RunFolder]:
    return copy_project(tmp_path / "project", tiny_base, tiny_adapter)


def nothing_left(project: Project) -> None:
    """No version, no current model, no debris, and no child process."""
    left = [path.name for path in project.models.iterdir()] if project.models.exists() else []
    assert [name for name in left if name != ".lock"] == []
    assert [child for child in psutil.Process().children(recursive=True) if _is_worker(child)] == []


def _is_worker(process: psutil.Process) -> bool:
    try:
        return any(part.endswith("convert_worker.py") for part in process.cmdline())
    except psutil.NoSuchProcess:
        return False


def logits(gguf: Path, ids: list[int]) -> Any:
    from llama_cpp import Llama

    model = Llama(str(gguf), n_ctx=256, logits_all=True, verbose=False)
    model.eval(ids)
    return model.scores[: len(ids)].copy()


def merged_logits(base: Path, adapter: Path, ids: list[int]) -> Any:
    """What transformers and peft say that the merged model predicts."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    with torch.inference_mode():
        return merged(torch.tensor([ids])).logits[0].numpy()


def relative_error(found: Any, wanted: Any) -> float:
    import numpy as np

    return float(np.sqrt(((found - wanted) ** 2).mean()) / wanted.std())


PROMPT = list(range(40, 90))


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


def test_a_killed_build_leaves_debris_that_the_next_one_removes(
    made: tuple[Project, RunFolder], tiny_base: Path, tiny_adapter: Path
) -> None:
    """kill -9 in the middle: the child ends by itself, nothing is a version, and the next build starts clean.

    The next build is also the one that shows that 16 bits lose nothing of the merge.
    """
    project, run = made
    code = (
        "import sys; from pathlib import Path; from local.project import Project, RunFolder\n"
        "from local.quantizing.quantize import quantize_run\n"
        "def say(what, *a, **k): print(what, flush=True)\n"
        "quantize_run(Project(Path(sys.argv[1])), RunFolder(Path(sys.argv[2])), progress=say)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(project.root), str(run.root)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert parent.stdout is not None
    assert any(line.startswith("merge") for line in parent.stdout)
    (child,) = (c for c in psutil.Process(parent.pid).children(recursive=True) if _is_worker(c))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _, alive = psutil.wait_procs([child], timeout=60)
    assert alive == []
    assert list(project.models.glob(".building-*"))
    assert list_versions(project) == []
    version = quantize_run(project, run, type="f16", progress=no_progress)
    assert not list(project.models.glob(".building-*"))
    assert current(project) == version
    wanted = merged_logits(tiny_base, tiny_adapter, PROMPT)
    assert relative_error(logits(version.gguf, PROMPT)[:, : wanted.shape[1]], wanted) < 0.02


@pytest.mark.parametrize("stage", ["check base", "merge", "verify"])
def test_ctrl_c_leaves_nothing(made: tuple[Project, RunFolder], stage: str) -> None:
    project, run = made

    def interrupt(what: str, *_: Any, **__: Any) -> None:
        if what == stage:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)  # the interrupt arrives here

    with pytest.raises(KeyboardInterrupt):
        quantize_run(project, run, progress=interrupt)
    nothing_left(project)


@pytest.mark.parametrize(
    ("signal_", "error", "says"),
    [
        (signal.SIGKILL, EnvironmentProblem, "out of memory"),
        (signal.SIGSEGV, CloudftError, r"(merge|convert): .*SIGSEGV"),
    ],
)
def test_a_crash_in_native_code_is_an_error(
    made: tuple[Project, RunFolder], signal_: signal.Signals, error: type[CloudftError], says: str
) -> None:
    project, run = made

    def crash(what: str, *_: Any, **__: Any) -> None:
        if what == "merge":
            for child in psutil.Process().children():
                if _is_worker(child):
                    child.send_signal(signal_)

    with pytest.raises(error, match=says):
        quantize_run(project, run, progress=crash)
    nothing_left(project)


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


def test_what_a_child_says_while_it_ends_is_not_read_as_an_answer(tmp_path: Path) -> None:
    from local.quantizing.worker import _listen

    said = '{"progress": {"what": "merge", "done": 0, "total": null, "unit": "", "note": ""}}\n{"result": {"a'
    child = subprocess.Popen(["printf", "%s", said], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child, pytest.raises(CloudftError, match="merge: the process ended with code 0"):
        _listen(child, no_progress, tmp_path / "log")


@pytest.mark.parametrize(
    ("cause", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (MemoryError(), "ran out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "ran out of memory"),
        (KeyError("x"), "not foreseen: KeyError"),
    ],
)
def test_what_ends_a_child_is_said_in_words(cause: Exception, says: str) -> None:
    from local.quantizing.convert_worker import _translated

    assert says in _translated(cause).what


def test_two_builds_do_not_mix(made: tuple[Project, RunFolder]) -> None:
    project, run = made
    project.models.mkdir()
    with FileLock(project.models / ".lock"), pytest.raises(Busy, match="another model is being built"):
        quantize_run(project, run, progress=no_progress)


def test_a_damaged_version_is_made_again(quantised: Quantised, tmp_path: Path) -> None:
    shutil.copytree(quantised.project.root, tmp_path / "copy", symlinks=True)
    project = Project(tmp_path / "copy")
    damaged = project.models / quantised.version.name / "model.gguf"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    again = quantize_run(project, project.run("run-1"), progress=no_progress)
    assert again.name == quantised.version.name
    assert again.gguf.read_bytes() == quantised.version.gguf.read_bytes()  # the same inputs give the same bytes


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


def test_a_type_that_needs_importances_is_refused_at_once(made: tuple[Project, RunFolder]) -> None:
    project, run = made
    with pytest.raises(UsageError, match="IQ2_XS can't be made without knowing") as caught:
        quantize_types(project, run, ["Q8_0", "iq2_xs"], progress=no_progress)
    assert caught.value.hint == "cloudft quantize run-1 --type IQ2_XS --imatrix"
    with pytest.raises(UsageError, match="--model has none"):
        quantize_model(project, project.root / "base", ["IQ2_XS"], progress=no_progress)
    assert not project.models.exists()


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
