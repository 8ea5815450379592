"""What can be merged tensor by tensor is recognised; what can't is said; what does not fit is refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from cloudft.errors import ConfigError, IntegrityError
from local.quantizing.adapter import read_lora
from local.quantizing.lora import Lora
from local.quantizing.merge import load_tuned
from local.quantizing.names import pattern_value
from local.quantizing.reference import beside
from tests.local.models import change, make_lora, make_model
from tests.local.quantize_fixtures import tiny_adapter, tiny_base

__all__ = ["tiny_adapter", "tiny_base"]

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::UserWarning")]


@pytest.fixture
def adapter(tmp_path: Path, tiny_adapter: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(tiny_adapter, tmp_path / "adapter"))


def plain(base: Path, adapter: Path) -> Lora:
    found = read_lora(base, adapter)
    assert isinstance(found, Lora), found
    return found


def test_a_plain_lora_can_be_merged_tensor_by_tensor(tiny_base: Path, tiny_adapter: Path) -> None:
    import torch
    from safetensors.torch import load_file

    found = plain(tiny_base, tiny_adapter)
    assert len(found.pairs) == 14
    pair = found.pairs["model.layers.1.mlp.down_proj"]
    assert (pair.rank, pair.scale, pair.shape) == (8, 2.0, (256, 512))
    base = load_file(tiny_base / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    lora = load_file(tiny_adapter / "adapter_model.safetensors")
    merged = found.merged("model.layers.1.mlp.down_proj.weight", base)
    assert merged.dtype == torch.float32
    assert torch.equal(merged, base.float() + (lora[pair.b] @ lora[pair.a]) * 2)
    with pytest.raises(IntegrityError, match=r"lora_A\.weight \(and 12 more\) was not taken up"):
        found.refuse_unconsumed()


@pytest.mark.parametrize(
    ("changes", "scale"),
    [({}, 2.0), ({"use_rslora": True}, 16 / math.sqrt(8)), ({"alpha_pattern": {"down_proj": 4}}, 0.5)],
)
def test_the_scale(tiny_base: Path, adapter: Path, changes: dict[str, Any], scale: float) -> None:
    change(adapter / "adapter_config.json", **changes)
    assert plain(tiny_base, adapter).pairs["model.layers.0.mlp.down_proj"].scale == pytest.approx(scale)


def test_patterns_are_read_as_peft_reads_them() -> None:
    from peft.utils.other import get_pattern_key

    names = [f"model.layers.{i}.{m}" for i in (1, 11) for m in ("mlp.up_proj", "self_attn.q_proj")]
    pattern = {"q_proj": 1, "1.mlp.up_proj": 2, "^up_proj": 3, r".*\.11\..*": 4, "proj": 5}
    for name in names:
        assert pattern_value(pattern, name, 0) == pattern.get(get_pattern_key(pattern.keys(), name), 0)
    assert [pattern_value(pattern, name, 0) for name in names] == [2, 1, 4, 1]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lora_bias": True}, "biases"),
        ({"target_parameters": ["experts.down_proj"]}, "experts"),
        ({"fan_in_fan_out": True}, "transposed"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
        ({"something_of_a_later_peft": True}, "something_of_a_later_peft"),
        ({"peft_type": "LOHA"}, "LOHA"),
    ],
)
def test_what_peft_must_do_is_said(tiny_base: Path, adapter: Path, changes: dict[str, Any], says: str) -> None:
    change(adapter / "adapter_config.json", **changes)
    found = read_lora(tiny_base, adapter)
    assert isinstance(found, str)
    assert says in found


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"use_dora": True}, r"layers\.0\.mlp\.down_proj\.lora_magnitude_vector is not in the adapter"),
        ({"modules_to_save": ["norm"]}, r"layers\.0\.input_layernorm\.weight \(and 4 more\) is not in the adapter"),
        ({"bias": "all"}, r"self_attn\.k_proj\.bias \(and 5 more\) is not in the adapter"),
        ({"bias": "lora_only"}, r"self_attn\.k_proj\.bias \(and 5 more\) is not in the adapter"),
        ({"trainable_token_indices": [1]}, r"trainable_token_indices are not in the adapter"),
    ],
)
def test_what_should_have_come_along_is_missed(
    tiny_base: Path, adapter: Path, changes: dict[str, Any], says: str
) -> None:
    change(adapter / "adapter_config.json", **changes)
    with pytest.raises(IntegrityError, match=says):
        read_lora(tiny_base, adapter)


@pytest.mark.parametrize(
    ("options", "drop", "says"),
    [
        ({"modules_to_save": ["norm"]}, "layers.0.input_layernorm", r"layers\.0\.input_layernorm\.weight is not in"),
        ({"modules_to_save": ["lm_head"]}, "lm_head", r"lm_head\.weight is not in the adapter"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head", r"lm_head\.lora_A\.weight is not in the adapter"),
        (
            {"trainable_token_indices": {"embed_tokens": [4], "q_proj": [5]}},
            "q_proj.token_adapter",
            "trainable_token_indices are not in the adapter",
        ),
        (
            {"trainable_token_indices": {"embed_tokens": [4], "lm_head": [5]}},
            "lm_head.token_adapter",
            "trainable_token_indices are not in the adapter",
        ),
    ],
)
def test_what_peft_saved_and_was_dropped_is_missed(
    tmp_path: Path, tiny_base: Path, options: dict[str, Any], drop: str, says: str
) -> None:
    """Of a base whose embeddings are tied, so no file of it names the output layer."""
    found = make_lora(tmp_path / "adapter", tiny_base, **{"target_modules": ["v_proj"], **options})
    if "q_proj.token_adapter" not in drop:
        assert not isinstance(read_lora(tiny_base, found), str)
    spoil(found, drop)
    with pytest.raises(IntegrityError, match=says):
        read_lora(tiny_base, found)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj", "up_proj"], "modules_to_save": ["layers.0.mlp"]},
        {"target_modules": ["q_proj"], "layers_to_transform": []},
    ],
)
def test_what_peft_leaves_out_itself_is_not_missed(tmp_path: Path, tiny_base: Path, options: dict[str, Any]) -> None:
    assert plain(tiny_base, make_lora(tmp_path / "adapter", tiny_base, **options)).pairs


def test_layers_that_only_the_files_have_are_not_missed(tmp_path: Path, tiny_base: Path, adapter: Path) -> None:
    """Layers that predict several tokens at once: transformers never loads them, so nobody could have tuned them."""
    import torch
    from safetensors.torch import load_file, save_file

    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    weights = load_file(base / "model.safetensors")
    more = ("mtp.layers.0.mlp.up_proj.weight", "model.layers.2.mlp.up_proj.weight")
    save_file(weights | {name: torch.zeros(512, 256) for name in more}, base / "model.safetensors")
    assert len(plain(base, adapter).pairs) == 14


def test_names_that_peft_does_not_give_are_refused(tiny_base: Path, adapter: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = adapter / "adapter_model.safetensors"
    save_file({name.removeprefix("base_model.model."): w for name, w in load_file(path).items()}, path)
    with pytest.raises(IntegrityError, match=r"was not saved by peft: .* \(and 27 more\) does not begin"):
        read_lora(tiny_base, adapter)


def test_factors_that_are_no_matrices_are_for_peft(tiny_base: Path, adapter: Path) -> None:
    spoil(adapter, "", model__layers__0__conv__lora_A__weight=(8, 256, 3))
    assert read_lora(tiny_base, adapter) == "it tunes convolutions"


def test_an_output_layer_that_is_renamed_while_it_is_loaded(tmp_path: Path, tiny_base: Path, adapter: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    weights = load_file(base / "model.safetensors")
    save_file(weights | {"embed_out.weight": torch.zeros(512, 256)}, base / "model.safetensors")
    spoil(adapter, "", lm_head__lora_A__weight=(8, 256), lm_head__lora_B__weight=(512, 8))
    assert "output layer under another name" in str(read_lora(base, adapter))


def test_an_adapter_that_does_not_say_what_it_is(tiny_base: Path, adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(IntegrityError, match="names no peft_type"):
        read_lora(tiny_base, adapter)


def spoil(adapter: Path, drop: str = "", **add: tuple[int, ...]) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    path = adapter / "adapter_model.safetensors"
    weights = {name: w for name, w in load_file(path).items() if not drop or drop not in name}
    for name, shape in add.items():
        weights[f"base_model.model.{name.replace('__', '.')}"] = torch.zeros(shape)
    save_file(weights, path)


@pytest.mark.parametrize(
    ("drop", "add", "says"),
    [
        (
            "",
            {"model__layers__7__mlp__up_proj__lora_A__weight": (8, 256)},
            r"layers\.7\.mlp.* has no place in the base",
        ),
        ("layers.0.mlp.up_proj.lora_B", {}, r"layers\.0\.mlp\.up_proj\.lora_B\.weight is not in the adapter"),
        ("layers.0.mlp.up_proj", {}, r"layers\.0\.mlp\.up_proj\.lora_A\.weight is not in the adapter"),
        (
            "layers.0.mlp.up_proj.lora_A",
            {"model__layers__0__mlp__up_proj__lora_A__weight": (8, 128)},
            r"layers\.0\.mlp\.up_proj is \(512, 256\) in the base",
        ),
        (
            "layers.0.mlp.up_proj",
            {
                "model__layers__0__mlp__up_proj__lora_A__weight": (4, 256),
                "model__layers__0__mlp__up_proj__lora_B__weight": (512, 4),
            },
            "has rank 4, adapter_config.json says 8",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    tiny_base: Path, adapter: Path, drop: str, add: dict[str, tuple[int, ...]], says: str
) -> None:
    spoil(adapter, drop, **add)
    with pytest.raises(IntegrityError, match=says):
        read_lora(tiny_base, adapter)


def test_an_adapter_of_some_layers_misses_nothing(tmp_path: Path, tiny_base: Path) -> None:
    found = make_lora(
        tmp_path / "some",
        tiny_base,
        target_modules=["q_proj", "k_proj", "up_proj"],
        layers_to_transform=[1],
        exclude_modules=["model.layers.1.self_attn.k_proj"],
    )
    assert set(plain(tiny_base, found).pairs) == {"model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj"}
    spoil(found, "layers.1.mlp.up_proj")
    with pytest.raises(IntegrityError, match=r"layers\.1\.mlp\.up_proj"):
        read_lora(tiny_base, found)


def test_other_names_in_the_base_are_a_case_for_peft(tmp_path: Path, tiny_base: Path, adapter: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = adapter / "adapter_model.safetensors"
    weights = load_file(path)
    save_file({name.replace("model.layers", "decoder.layers"): w for name, w in weights.items()}, path)
    found = read_lora(tiny_base, adapter)
    assert isinstance(found, str)
    assert "other names" in found


def test_tied_embeddings_become_two_where_only_one_side_was_tuned(tmp_path: Path) -> None:
    tied = make_model(tmp_path / "tied", "qwen2")
    head = make_lora(tmp_path / "head", tied, target_modules=["q_proj"])
    spoil(head, "", lm_head__lora_A__weight=(8, 256), lm_head__lora_B__weight=(512, 8))
    found = plain(tied, head)
    assert (found.untied, list(found.whole)) == (True, ["lm_head.weight"])
    assert found.whole["lm_head.weight"].file == tied / "model.safetensors"  # as it was before it was tuned
    first = make_lora(tmp_path / "first", tied, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    found = plain(tied, first)
    assert (found.untied, sorted(found.whole)) == (True, ["lm_head.weight", "model.embed_tokens.weight"])
    assert found.whole["model.embed_tokens.weight"].file == first / "adapter_model.safetensors"
    assert found.whole["lm_head.weight"].file == tied / "model.safetensors"
    assert not plain(tied, make_lora(tmp_path / "neither", tied, target_modules=["q_proj"])).untied


def test_both_sides_of_tied_embeddings_that_stayed_equal_stay_one(tmp_path: Path) -> None:
    tied = make_model(tmp_path / "tied", "qwen2")
    adapter = make_lora(tmp_path / "adapter", tied, target_modules=["q_proj"])
    spoil(adapter, "", model__embed_tokens__weight=(544, 256), lm_head__weight=(544, 256))
    found = plain(tied, adapter)
    assert (found.untied, list(found.whole), found.vocabulary) == (False, ["model.embed_tokens.weight"], 544)


def test_factors_that_are_the_same_on_both_sides_are_added_once(tmp_path: Path, tiny_base: Path) -> None:
    from safetensors.torch import load_file, save_file

    options = {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}
    adapter = make_lora(tmp_path / "adapter", tiny_base, **options)
    found = plain(tiny_base, adapter)
    assert (found.untied, list(found.pairs)) == (False, ["model.embed_tokens"])
    path = adapter / "adapter_model.safetensors"
    weights = load_file(path)
    weights["base_model.model.lm_head.lora_A.weight"][5, 3] += 0.1
    save_file(weights, path)
    found = plain(tiny_base, adapter)
    assert (found.untied, list(found.pairs)) == (True, ["lm_head", "model.embed_tokens"])


def test_a_new_size_of_one_of_two_embeddings_is_refused(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", "llama")
    adapter = make_lora(tmp_path / "adapter", base, target_modules=["q_proj"])
    spoil(adapter, "", model__embed_tokens__weight=(544, 256))
    with pytest.raises(IntegrityError, match=r"lm_head\.weight .*did not come along"):
        read_lora(base, adapter)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"target_modules": ["lm_head"], "use_dora": True}, "beside a DoRA on the tied output layer"),
        ({"modules_to_save": ["lm_head"]}, "beside a tied output layer that was trained whole"),
    ],
)
def test_trained_tokens_that_peft_has_no_result_for(
    tmp_path: Path, tiny_base: Path, options: dict[str, Any], says: str
) -> None:
    """peft sets these up and saves them, and fails as soon as anything is computed."""
    options = {"target_modules": ["q_proj"], "trainable_token_indices": [5, 6], **options}
    found = make_lora(tmp_path / "adapter", tiny_base, **options)
    with pytest.raises(ConfigError, match=f"trained tokens {says}, and peft itself computes nothing"):
        read_lora(tiny_base, found)
    with pytest.raises((AttributeError, ValueError)):
        beside(load_tuned(tiny_base, found, "float32"), [[1, 2]])


def test_only_headers_are_read(tiny_base: Path, adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    data[start:] = b"\xff" * (len(data) - start)
    path.write_bytes(bytes(data))
    assert len(plain(tiny_base, adapter).pairs) == 14
    assert json.loads((adapter / "adapter_config.json").read_text())["r"] == 8
