"""The demo's base: whole, known to Qwen2's tools, cached by its recipe, and never put over something else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cloudft.errors import EnvironmentProblem, UsageError
from local.demo import demo_base as module
from local.demo.demo_base import FILES, QWEN2_PATTERN, build_demo_base, recipe_key
from local.files import sha256_file
from local.progress import silent
from tests.jobs.train_fixtures import REPO, demo_base

__all__ = ["demo_base"]  # a fixture


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir()}


def test_the_folder_is_a_whole_model(demo_base: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert {path.name for path in demo_base.iterdir()} == set(FILES)
    model = AutoModelForCausalLM.from_pretrained(demo_base)
    tokenizer = AutoTokenizer.from_pretrained(demo_base)
    assert model.num_parameters() < 1_500_000
    assert str(model.dtype) == "torch.bfloat16"
    assert len(tokenizer) == 880 <= model.config.vocab_size
    assert model.config.hidden_size % 256 == model.config.intermediate_size % 256 == 0
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.pad_token == "<|endoftext|>"


def test_the_tokenizer_is_qwen2s_in_all_but_its_words(demo_base: Path) -> None:
    from transformers.models.qwen2 import tokenization_qwen2

    raw = json.loads((demo_base / "tokenizer.json").read_text(encoding="utf-8"))
    assert raw["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] == tokenization_qwen2.PRETOKENIZE_REGEX
    assert tokenization_qwen2.PRETOKENIZE_REGEX == QWEN2_PATTERN
    assert [token["content"] for token in raw["added_tokens"]] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert all(token["special"] for token in raw["added_tokens"])


def test_every_text_survives_the_tokenizer(demo_base: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_base)
    for text in ("Ticket 42: it's urgent!", "Grüße, 世界 🙂\n\n\ttab", '{"a":[1,2]}', "  two  blanks "):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_the_cache_serves_the_second_folder(demo_base: Path, tmp_path: Path) -> None:
    said: list[str] = []

    def progress(what: str, done: float = 0, total: float | None = None, unit: str = "", note: str = "") -> None:
        said.append(what)

    assert build_demo_base(tmp_path / "again", progress) == tmp_path / "again"
    assert said == []  # nothing was pretrained
    assert hashes(tmp_path / "again") == hashes(demo_base)


def test_the_same_base_is_left_alone(demo_base: Path, tmp_path: Path) -> None:
    folder = build_demo_base(tmp_path / "base", silent)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert build_demo_base(folder, silent) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_something_else_is_never_overwritten(demo_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UsageError, match="is not empty, and what it holds was not made by the demo") as caught:
        build_demo_base(folder, silent)
    assert caught.value.effect == "nothing was changed"
    assert [path.name for path in folder.iterdir()] == ["config.json"]


@pytest.mark.parametrize("damage", ["cut", "gone", "older recipe"])
def test_a_damaged_or_older_base_is_replaced(demo_base: Path, tmp_path: Path, damage: str) -> None:
    folder = build_demo_base(tmp_path / "base", silent)
    weights, config = folder / "model.safetensors", folder / "config.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "gone":
        weights.unlink()
    else:
        config.write_text(config.read_text().replace(recipe_key(), "0" * 16))
    build_demo_base(folder, silent)
    assert hashes(folder) == hashes(demo_base)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_whole_base_needs_no_cache(demo_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build_demo_base(tmp_path / "base", silent)
    monkeypatch.setenv("CLOUDFT_CACHE", str(tmp_path / "empty"))
    monkeypatch.setitem(sys.modules, "torch", None)  # pretraining would fail
    assert build_demo_base(folder, silent) == folder


def test_a_damaged_cache_is_noticed(demo_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDFT_CACHE", str(tmp_path / "cache"))
    entry = tmp_path / "cache" / "demo-base" / recipe_key()
    entry.mkdir(parents=True)
    for path in demo_base.iterdir():
        (entry / path.name).write_bytes(path.read_bytes())
    manifest = {name: sha256_file(entry / name) for name in FILES}
    (entry / "manifest.json").write_text(json.dumps(manifest))
    (entry / "model.safetensors").write_bytes(b"cut")
    made: list[Path] = []

    def make(folder: Path, *_: object) -> None:
        made.append(folder)
        for path in demo_base.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())

    monkeypatch.setattr(module, "_make", make)
    build_demo_base(tmp_path / "base", silent)
    assert len(made) == 1
    assert hashes(tmp_path / "base") == hashes(demo_base)
    assert not made[0].exists()  # it was built beside its place, and renamed


def test_an_interrupted_pretraining_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDFT_CACHE", str(tmp_path / "cache"))

    def interrupt(folder: Path, *_: object) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_make", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_demo_base(tmp_path / "base", silent)
    assert not (tmp_path / "base").exists()
    left = [path.name for path in (tmp_path / "cache" / "demo-base").iterdir() if not path.name.endswith(".lock")]
    assert left == []


def test_without_torch_the_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(EnvironmentProblem, match="needs the package torch") as caught:
        build_demo_base(tmp_path / "base", silent)
    assert "pip install 'cloudft[train,local]'" in caught.value.hint


def test_importing_it_imports_no_heavy_library() -> None:
    code = "import sys, local.demo.demo_project; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
