"""The base is pinned to its bytes, refused when it is unfit, and refused when it has changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cloudft.errors import ConfigError, IntegrityError, NotFound, ProviderError
from local.base import base_folder, lock_base, refuse_quantised, resolve_base, sixteen_bit_origin
from tests.local.hub_fixture import COMMIT, REPOSITORY, FakeHub, fake_hub
from tests.local.quantize_fixtures import no_progress, tiny_base

__all__ = ["fake_hub", "tiny_base"]


@pytest.fixture
def base(tmp_path: Path, tiny_base: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def test_a_folder_is_locked_by_every_file_that_matters(base: Path, tmp_path: Path) -> None:
    (base / "README.md").write_text("not part of the model")
    (base / "original.bin").write_text("nor is this")
    locked = lock_base("base", None, tmp_path)
    names = {ref.path for ref in locked.files}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (locked.source, locked.id) == ("folder", "base")
    assert all(ref.bytes == (base / ref.path).stat().st_size for ref in locked.files)
    (base / "README.md").write_text("changed")
    assert lock_base(str(base), None, tmp_path).revision == locked.revision
    (base / "config.json").write_text((base / "config.json").read_text() + "\n")
    assert lock_base("base", None, tmp_path).revision != locked.revision


def test_a_folder_below_home(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "project").mkdir()
    locked = lock_base("~/base", None, tmp_path / "project")
    assert locked.id == "~/base"
    assert resolve_base(locked, tmp_path / "project", no_progress) == base == base_folder("~/base", tmp_path)


def test_an_index_says_which_weights_belong_to_the_model(base: Path, tmp_path: Path) -> None:
    shutil.copyfile(base / "model.safetensors", base / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"any": "model-00001-of-00001.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    names = {ref.path for ref in lock_base("base", None, tmp_path).files}
    assert "model-00001-of-00001.safetensors" in names
    assert "model.safetensors" not in names
    (base / "model-00001-of-00001.safetensors").unlink()
    with pytest.raises(NotFound, match=r"model-00001-of-00001\.safetensors is missing"):
        lock_base("base", None, tmp_path)


@pytest.mark.parametrize(
    ("lacks", "says"),
    [
        ("config.json", "no config.json"),
        ("tokenizer.json", "no tokenizer"),
        ("model.safetensors", "no model.*safetensors"),
    ],
)
def test_a_folder_that_is_no_model_is_refused(base: Path, tmp_path: Path, lacks: str, says: str) -> None:
    (base / lacks).unlink()
    with pytest.raises(NotFound, match=says):
        lock_base("base", None, tmp_path)


def test_pickled_weights_are_refused_with_the_way_out(base: Path, tmp_path: Path) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(NotFound, match="only pickled") as caught:
        lock_base("base", None, tmp_path)
    assert "save_pretrained" in caught.value.hint


def test_a_quantised_base_is_refused(base: Path, tmp_path: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"quantised already \(bitsandbytes\)"):
        lock_base("base", None, tmp_path)


@pytest.mark.parametrize("keep", [4, 100, -1])
def test_truncated_weights_are_refused(base: Path, tmp_path: Path, keep: int) -> None:
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(IntegrityError, match=r"model\.safetensors is damaged"):
        lock_base("base", None, tmp_path)


def test_a_broken_config_is_refused(base: Path, tmp_path: Path) -> None:
    (base / "config.json").write_text('{"model_type": ')
    with pytest.raises(IntegrityError, match=r"config\.json is damaged"):
        lock_base("base", None, tmp_path)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_folder_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFound, match="is no folder"):
        lock_base(name, None, tmp_path)


def test_a_folder_has_one_revision(base: Path, tmp_path: Path) -> None:
    revision = lock_base("base", None, tmp_path).revision
    assert lock_base("base", revision[:12], tmp_path).revision == revision
    with pytest.raises(ConfigError, match="not main"):
        lock_base("base", "main", tmp_path)


def test_an_unchanged_folder_resolves(base: Path, tmp_path: Path) -> None:
    locked = lock_base("base", None, tmp_path)
    (base / "notes.txt").write_text("does not matter")
    assert resolve_base(locked, tmp_path, no_progress) == base


def test_drift_is_refused_and_the_file_is_named(base: Path, tmp_path: Path) -> None:
    locked = lock_base("base", None, tmp_path)
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    with pytest.raises(IntegrityError, match=r"model\.safetensors has other contents"):
        resolve_base(locked, tmp_path, no_progress)
    weights[-1] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    resolve_base(locked, tmp_path, no_progress)
    (base / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(IntegrityError, match=r"chat_template\.jinja was not there"):
        resolve_base(locked, tmp_path, no_progress)
    (base / "chat_template.jinja").unlink()
    (base / "generation_config.json").write_text("{}")
    with pytest.raises(IntegrityError, match=r"generation_config\.json has 2 bytes"):
        resolve_base(locked, tmp_path, no_progress)
    (base / "generation_config.json").unlink()
    with pytest.raises(IntegrityError, match=r"generation_config\.json is gone"):
        resolve_base(locked, tmp_path, no_progress)


def test_a_folder_that_is_gone(base: Path, tmp_path: Path) -> None:
    locked = lock_base("base", None, tmp_path)
    shutil.rmtree(base)
    with pytest.raises(NotFound, match="is no folder"):
        resolve_base(locked, tmp_path, no_progress)


def test_a_repository_is_locked_to_a_commit_and_downloaded(fake_hub: FakeHub, tmp_path: Path) -> None:
    locked = lock_base(REPOSITORY, "main", tmp_path)
    assert (locked.source, locked.id, locked.revision, locked.files) == ("hub", REPOSITORY, COMMIT, ())
    seen: list[float] = []

    def progress(what: str, done: float = 0, total: float | None = None, unit: str = "", note: str = "") -> None:
        assert what == "download base"
        seen.append(done)

    folder = resolve_base(locked, tmp_path, progress)
    assert (folder / "model.safetensors").read_bytes() == (fake_hub.folder / "model.safetensors").read_bytes()
    assert (folder / "README.md").exists()  # it tells the licence
    assert not (folder / "notes.txt").exists()  # only what matters is fetched
    assert seen[-1] > 0
    assert seen == sorted(seen)
    fake_hub.stop()  # from here on there is no hub
    assert resolve_base(locked, tmp_path, no_progress) == folder
    assert lock_base(REPOSITORY, COMMIT, tmp_path) == locked
    with pytest.raises(ProviderError, match="cannot be reached") as caught:
        lock_base(REPOSITORY, None, tmp_path)
    assert "folder" in caught.value.hint


def test_a_repository_that_is_not_there(fake_hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="neither a folder here nor a repository"):
        lock_base("nobody/nothing", None, tmp_path)
    with pytest.raises(NotFound, match="has no revision v9"):
        lock_base(REPOSITORY, "v9", tmp_path)
    with pytest.raises(NotFound, match="gated"):
        lock_base("owner/gated", None, tmp_path)
    with pytest.raises(NotFound, match="neither a folder"):
        lock_base("not a name", None, tmp_path)


def test_a_repository_that_is_no_model(fake_hub: FakeHub, tmp_path: Path) -> None:
    (fake_hub.folder / "model.safetensors").unlink()
    with pytest.raises(NotFound, match=r"no model.*safetensors"):
        lock_base(REPOSITORY, None, tmp_path)


def test_a_quantised_repository_is_refused_before_the_weights_are_downloaded(fake_hub: FakeHub, tmp_path: Path) -> None:
    config = json.loads((fake_hub.folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq"}
    (fake_hub.folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"quantised already \(gptq\)"):
        lock_base(REPOSITORY, None, tmp_path)
    assert not any("safetensors" in path for path in fake_hub.served)


def test_no_token_reaches_a_message(fake_hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    with pytest.raises(NotFound) as caught:
        lock_base("owner/gated", None, tmp_path)
    assert "verysecret" not in str(caught.value.as_dict())
    fake_hub.stop()
    with pytest.raises(ProviderError) as unreachable:
        lock_base(REPOSITORY, None, tmp_path)
    assert "verysecret" not in str(unreachable.value.as_dict())


@pytest.mark.parametrize(
    ("where", "config", "origin"),
    [
        ("unsloth/Llama-3.2-1B-Instruct-bnb-4bit", {}, "unsloth/Llama-3.2-1B-Instruct"),
        ("unsloth/Qwen3-4B-unsloth-bnb-4bit", {}, "unsloth/Qwen3-4B"),
        ("someone/tuned-4bit", {"_name_or_path": "meta/Tuned"}, "meta/Tuned"),
        ("./folder", {"_name_or_path": "owner/Model-8bit"}, "owner/Model"),
        ("owner/Model", {"_name_or_path": "owner/Model"}, None),
        ("/a/folder", {"_name_or_path": "/another/folder"}, None),
    ],
)
def test_a_quantised_base_is_answered_with_its_16_bit_origin(
    where: str, config: dict[str, str], origin: str | None
) -> None:
    assert sixteen_bit_origin(where, config) == origin
    with pytest.raises(ConfigError, match="quantised already") as caught:
        refuse_quantised(where, config | {"quantization_config": {"quant_method": "bitsandbytes"}})
    assert (origin or "the 16-bit model") in caught.value.hint
