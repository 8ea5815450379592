"""Every tensor of the adapter is in the merge, or the merge is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloudft.errors import CloudftError, ConfigError, IntegrityError, VerifyError
from local.quantizing.merge import lay_out, merge_adapter, tokenizer_folder
from tests.local.models import make_lora
from tests.local.quantize_fixtures import TEMPLATE, make_adapter, make_base, no_progress, tiny_adapter, tiny_base

__all__ = ["tiny_adapter", "tiny_base"]

# This peft asks this transformers for a name that it renamed.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture
def adapter(tmp_path: Path, tiny_adapter: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(tiny_adapter, tmp_path / "adapter"))


def change(adapter: Path, how: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    from safetensors.torch import load_file, save_file

    path = adapter / "adapter_model.safetensors"
    save_file(how(load_file(path)), path)


def test_the_merge_is_base_plus_scaled_product(tiny_base: Path, tiny_adapter: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    merge_adapter(tiny_base, tiny_adapter, tmp_path / "out", no_progress)
    base, merged = load_file(tiny_base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    lora = load_file(tiny_adapter / "adapter_model.safetensors")
    assert merged.keys() == base.keys()
    name = "model.layers.1.mlp.down_proj"
    a, b = (lora[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    wanted = base[f"{name}.weight"].float() + 2 * b @ a  # alpha 16, rank 8
    assert merged[f"{name}.weight"].dtype == torch.bfloat16  # as the base is stored
    torch.testing.assert_close(merged[f"{name}.weight"].float(), wanted, rtol=0.02, atol=0.01)
    assert torch.equal(merged["model.embed_tokens.weight"], base["model.embed_tokens.weight"])


def test_a_tensor_without_a_place_in_the_base(tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    import torch

    extra = "base_model.model.model.layers.7.mlp.up_proj.lora_A.weight"
    change(adapter, lambda weights: weights | {extra: torch.zeros(8, 256)})
    with pytest.raises(IntegrityError, match=r"layers\.7\.mlp\.up_proj.* has no place in the base"):
        merge_adapter(tiny_base, adapter, tmp_path / "out", no_progress)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_a_tensor_that_was_dropped(tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    dropped = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    change(adapter, lambda weights: {name: w for name, w in weights.items() if name != dropped})
    with pytest.raises(IntegrityError, match=r"layers\.0\.mlp\.up_proj.* is not in the adapter"):
        merge_adapter(tiny_base, adapter, tmp_path / "out", no_progress)


def test_an_adapter_of_another_size(tiny_base: Path, tmp_path: Path) -> None:
    other = make_adapter(tmp_path / "adapter", make_base(tmp_path / "wide", hidden=512))
    with pytest.raises(IntegrityError, match="does not fit the base"):
        merge_adapter(tiny_base, other, tmp_path / "out", no_progress)


def test_an_adapter_of_another_architecture(tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["qkv_proj"]}))
    with pytest.raises(IntegrityError, match="does not fit the base"):
        merge_adapter(tiny_base, adapter, tmp_path / "out", no_progress)


def test_weights_that_are_no_numbers(tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    change(adapter, lambda weights: {name: weight * float("nan") for name, weight in weights.items()})
    with pytest.raises(VerifyError, match="not finite numbers"):
        merge_adapter(tiny_base, adapter, tmp_path / "out", no_progress)
    assert CloudftError.exit_code != VerifyError.exit_code


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"alora_invocation_tokens": [5, 6]}, "aLoRA does not support"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layers"),
        ({"lora_bias": True}, "the base layer has no bias"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_peft_itself_cannot_merge_is_said(
    tiny_base: Path, tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    adapter = make_lora(tmp_path / "adapter", tiny_base, target_modules=["o_proj"], **options)
    with pytest.raises(ConfigError, match=f"peft can't merge this adapter: .*{says}") as caught:
        merge_adapter(tiny_base, adapter, tmp_path / "out", no_progress)
    assert len(caught.value.what) < 250
    assert "adapter_config.json" in caught.value.hint


def test_the_layout_has_one_template_and_the_files_as_they_are(
    tiny_base: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    """The converter prefers a template in tokenizer_config.json to the one in its own file."""
    out = tmp_path / "out"
    lay_out(tiny_base, tiny_adapter, "trained", out)
    assert (out / "chat_template.jinja").read_text() == "trained"
    before = json.loads((tiny_base / "tokenizer_config.json").read_text())
    after = json.loads((out / "tokenizer_config.json").read_text())
    assert before.pop("chat_template") == TEMPLATE
    assert after == before
    for name in ("config.json", "tokenizer.json"):
        assert (out / name).read_bytes() == (tiny_base / name).read_bytes()
    assert (out / "model.safetensors").resolve() == tiny_base / "model.safetensors"


def test_a_base_keeps_its_own_template(tiny_base: Path, tmp_path: Path) -> None:
    lay_out(tiny_base, tiny_base, None, tmp_path / "out")
    name = "tokenizer_config.json"
    assert (tmp_path / "out" / name).read_bytes() == (tiny_base / name).read_bytes()


def test_the_tokenizer_is_the_one_of_training(tiny_base: Path, adapter: Path) -> None:
    assert tokenizer_folder(tiny_base, None) == tiny_base
    assert tokenizer_folder(tiny_base, adapter) == adapter
    (adapter / "tokenizer.json").unlink()
    assert tokenizer_folder(tiny_base, adapter) == tiny_base
