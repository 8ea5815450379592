"""The whole of the child's work: peft where it must be, and which step it was that lost something."""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloudft.errors import IntegrityError, VerifyError
from local.quantizing import merge, overlay
from local.quantizing.build import TENSORWISE, build
from local.quantizing.lora import Lora
from local.quantizing.toolchain import Toolchain
from tests.local.models import forget_converter, make_lora, make_model
from tests.local.quantize_fixtures import ROWS, TEMPLATE, toolchain

__all__ = ["toolchain"]

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::UserWarning")]

SAMPLES = [row["messages"] for row in ROWS[:4]]


@pytest.fixture(autouse=True)
def _upstreams_packages() -> Iterator[None]:
    yield
    forget_converter()


@functools.cache
def base_of(tmp: Path, name: str, tied: bool = False) -> Path:
    return make_model(tmp / f"base-{name}-{tied}", name, tie_word_embeddings=tied)


@pytest.fixture
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_of(tmp_path_factory.getbasetemp(), "llama")


@pytest.fixture
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_of(tmp_path_factory.getbasetemp(), "llama", True)


def nothing_left_out(*said: Any) -> None:
    assert "could not be compared" not in str(said)


def built(base: Path, adapter: Path | None, out: Path, toolchain: Toolchain, **options: Any) -> dict[str, Any]:
    scratch = out / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    arguments = {"kinds": ["F16"], "progress": nothing_left_out, "samples": SAMPLES} | options
    found = build(
        base=str(base),
        adapter=str(adapter) if adapter else None,
        template=TEMPLATE,
        toolchain=str(toolchain.root),
        scratch=str(scratch),
        outs={kind: str(out / f"{kind}.gguf") for kind in arguments.pop("kinds")},
        name="tiny",
        **arguments,
    )
    assert list(scratch.iterdir()) == []
    return found


def agrees(base: Path, adapter: Path, gguf: Path) -> None:
    """The file predicts what peft predicts with the adapter beside the base."""
    from local.quantizing.merge import load_tuned

    predicts(gguf, load_tuned(base, adapter, "float32"))


def predicts(gguf: Path, model: Any) -> None:
    """The file predicts what the model in memory predicts, of tokens that adapters of the tests may have trained."""
    import numpy as np

    from local.quantizing.reference import beside
    from local.quantizing.verify import predictions_of

    vocabulary = model.config.vocab_size
    rows = [[*range(2, 42), *range(vocabulary - 2, vocabulary)]]
    wanted = beside(model, rows)
    found = predictions_of(gguf, rows)[:, : wanted.shape[1]]
    assert float(np.sqrt(((found - wanted) ** 2).mean())) < 0.05 * float(wanted.std())


VARIANTS: dict[str, tuple[bool, dict[str, Any], str]] = {
    "DoRA": (False, {"use_dora": True}, "DoRA"),
    "whole layers": (False, {"modules_to_save": ["lm_head"]}, "1 whole tensor"),
    "whole embedding, tied": (True, {"modules_to_save": ["embed_tokens"]}, "2 whole tensors"),
    "new tokens": (True, {"trainable_token_indices": [5, 6], "target_modules": ["q_proj"]}, "2 trained tokens"),
    "new tokens and the output layer, tied": (
        True,
        {"trainable_token_indices": [5, 6], "target_modules": ["lm_head"]},
        "1 whole tensor, 2 trained tokens",
    ),
    "both sides as one, tied": (
        True,
        {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
        "1 whole tensor, a tuned embedding",
    ),
    "embedding, tied": (True, {"target_modules": ["embed_tokens", "q_proj"]}, "a tuned embedding"),
}


@pytest.mark.parametrize("case", VARIANTS)
def test_the_common_forms_need_no_model_in_memory(
    case: str, tmp_path: Path, llama: Path, tied: Path, toolchain: Toolchain
) -> None:
    is_tied, options, says = VARIANTS[case]
    base = tied if is_tied else llama
    adapter = make_lora(tmp_path / "adapter", base, **options)
    found = built(base, adapter, tmp_path, toolchain)
    assert found["merge"].startswith(TENSORWISE)
    assert says in found["merge"]
    agrees(base, adapter, tmp_path / "F16.gguf")


@pytest.mark.parametrize("tokens", [None, [5, 512, 543]])
@pytest.mark.parametrize("tied_", [False, True])
def test_resized_embeddings(
    tied_: bool, tokens: list[int] | None, tmp_path: Path, llama: Path, tied: Path, toolchain: Toolchain
) -> None:
    """Of which all rows come along, or tokens of the base and new ones that were trained beside the rest."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = tied if tied_ else llama
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(544, mean_resizing=False)
    options: dict[str, Any] = {"target_modules": ["q_proj"], "trainable_token_indices": tokens}
    tuned = get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", **options))
    with torch.no_grad():
        if tokens is None:
            tuned.get_input_embeddings().weight[512:] = torch.randn(32, 256) * 0.06
        else:
            tuned.get_input_embeddings().token_adapter.trainable_tokens_delta["default"].normal_(0, 0.06)
    adapter = make_lora(tmp_path / "adapter", base, target_modules=["q_proj"])
    tuned.save_pretrained(adapter, save_embedding_layers=True)
    found = built(base, adapter, tmp_path, toolchain)
    assert found["merge"].startswith(f"{TENSORWISE} ({'1 whole tensor' if tied_ else '2 whole tensors'}")
    assert ("3 trained tokens" in found["merge"]) == (tokens is not None)
    from llama_cpp import Llama

    assert Llama(str(tmp_path / "F16.gguf"), vocab_only=True, verbose=False).n_vocab() == 544
    predicts(tmp_path / "F16.gguf", tuned.eval())


def test_peft_merges_the_rest_and_it_is_said(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, toolchain: Toolchain
) -> None:
    base = base_of(tmp_path_factory.getbasetemp(), "qwen2", True)
    adapter = make_lora(tmp_path / "adapter", base, lora_bias=True, target_modules=["q_proj"])
    said: list[str] = []

    def hear(what: str, done: float = 0, total: float | None = None, unit: str = "", note: str = "") -> None:
        said.append(f"{what}: {note}")

    found = built(base, adapter, tmp_path, toolchain, progress=hear)
    assert found["merge"] == "through peft: its factors have biases"
    assert "merge: through peft, with the whole model in memory: its factors have biases" in said
    agrees(base, adapter, tmp_path / "F16.gguf")


def test_a_merge_of_pefts_that_loses_is_named(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the file is compared with is the adapter beside the base, and not what peft merged."""
    base = base_of(tmp_path_factory.getbasetemp(), "qwen2", True)
    adapter = make_lora(tmp_path / "adapter", base, lora_bias=True, target_modules=["q_proj"])
    other = make_lora(tmp_path / "other", base, seed=2, lora_bias=True, target_modules=["q_proj"])
    real = merge.merge_adapter
    monkeypatch.setattr(merge, "merge_adapter", lambda base, _, out, progress: real(base, other, out, progress))
    why = built(base, adapter, tmp_path, toolchain)["refused"]["F16"]
    assert "step that lost it is the merge" in why["what"]
    assert "a finer type would not help" in why["hint"]


def test_tuned_experts(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, toolchain: Toolchain) -> None:
    base = base_of(tmp_path_factory.getbasetemp(), "mixtral")
    adapter = make_lora(
        tmp_path / "adapter",
        base,
        target_modules=["q_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    )
    found = built(base, adapter, tmp_path, toolchain)
    assert "parameters of experts" in found["merge"]
    agrees(base, adapter, tmp_path / "F16.gguf")


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("llama", {"use_dora": True, "target_modules": ["embed_tokens", "q_proj"]}, "a DoRA on an embedding"),
        ("mixtral", {"modules_to_save": ["mlp"], "target_modules": ["q_proj"]}, "stores its experts under other names"),
    ],
)
def test_other_forms_that_only_peft_can_merge(
    name: str,
    options: dict[str, Any],
    says: str,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    toolchain: Toolchain,
) -> None:
    base = base_of(tmp_path_factory.getbasetemp(), name)
    adapter = make_lora(tmp_path / "adapter", base, **options)
    assert says in built(base, adapter, tmp_path, toolchain)["merge"]
    agrees(base, adapter, tmp_path / "F16.gguf")


@pytest.mark.parametrize("options", [{"modules_to_save": ["word_embeddings"]}, {"target_modules": ["word_embeddings"]}])
def test_tied_embeddings_of_another_name(
    options: dict[str, Any], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, toolchain: Toolchain
) -> None:
    """The reference reads the same folder as the conversion, so only peft can tell."""
    base = base_of(tmp_path_factory.getbasetemp(), "falcon", True)
    adapter = make_lora(tmp_path / "adapter", base, **{"target_modules": ["query_key_value"], **options})
    assert built(base, adapter, tmp_path, toolchain)["merge"].startswith(TENSORWISE)
    agrees(base, adapter, tmp_path / "F16.gguf")


def test_a_whole_layer_without_a_place_is_refused(tmp_path: Path, llama: Path, toolchain: Toolchain) -> None:
    from safetensors.torch import load_file, save_file

    adapter = make_lora(tmp_path / "adapter", llama, modules_to_save=["lm_head"], target_modules=["q_proj"])
    path = adapter / "adapter_model.safetensors"
    weights = load_file(path)
    weights["base_model.model.lm_foot.weight"] = weights["base_model.model.lm_head.weight"] + 1
    save_file(weights, path)
    with pytest.raises(IntegrityError, match=r"lm_foot.* has no place in the base"):
        built(llama, adapter, tmp_path, toolchain)


def test_several_types_come_from_one_read(tmp_path: Path, llama: Path, toolchain: Toolchain) -> None:
    adapter = make_lora(tmp_path / "adapter", llama)
    found = built(llama, adapter, tmp_path, toolchain, kinds=["Q4_K_M", "Q8_0", "F16"])
    assert found["merge"] == TENSORWISE
    losses = [found["verification"][kind]["kl_divergence"] for kind in ("Q4_K_M", "Q8_0", "F16")]
    assert losses == sorted(losses, reverse=True)
    assert losses[2] < 1e-4 < losses[0]
    assert [found["verification"][kind]["kl_limit"] for kind in ("Q4_K_M", "Q8_0", "F16")] == [0.16, 0.02, 0.02]
    assert found["verification"]["Q4_K_M"]["tensor_types"].keys() == {"F32", "Q4_K", "Q6_K"}


def test_a_type_that_is_too_coarse_is_named_with_a_finer_one(tmp_path: Path, llama: Path, toolchain: Toolchain) -> None:
    adapter = make_lora(tmp_path / "adapter", llama)
    found = built(llama, adapter, tmp_path, toolchain, kinds=["Q4_K_M"], max_kl=0.001)
    assert (found["took"], found["verification"], list(found["refused"])) == ({}, {}, ["Q4_K_M"])
    why = found["refused"]["Q4_K_M"]
    assert "step that lost it is the quantisation" in why["what"]
    assert "at most 0.001 are allowed" in why["what"]
    assert "cloudft quantize --type Q4_K_M --max-kl 0.001 --step-up" in why["hint"]
    assert "cloudft quantize --type Q5_K_M --max-kl 0.001" in why["hint"]
    assert not list(tmp_path.glob("*.gguf"))


def test_the_first_finer_type_that_is_good_enough_is_taken(tmp_path: Path, llama: Path, toolchain: Toolchain) -> None:
    adapter = make_lora(tmp_path / "adapter", llama)
    said: list[str] = []

    def hear(what: str, done: float = 0, total: float | None = None, unit: str = "", note: str = "") -> None:
        said.append(f"{what}: {note}")

    kinds = ["Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"]
    options = {"max_kl": 0.01, "steps": {"Q4_K_M": kinds[1:], "Q5_K_M": kinds[2:]}}
    found = built(llama, adapter, tmp_path, toolchain, kinds=kinds, progress=hear, **options)
    assert found["took"] == {"Q4_K_M": "Q6_K", "Q5_K_M": "Q6_K"}
    assert list(found["verification"]) == ["Q6_K"]
    assert [path.name for path in tmp_path.glob("*.gguf")] == ["Q6_K.gguf"]
    steps = [line for line in said if line.startswith("step up")]
    assert steps[0].endswith("next: Q5_K_M")
    assert steps[-1].endswith("next: Q6_K")
    too_strict = {"max_kl": 1e-9, "steps": {"Q6_K": ["Q8_0"]}}
    found = built(llama, adapter, tmp_path, toolchain, kinds=["Q6_K", "Q8_0"], **too_strict)
    assert re.match(r"the Q8_0 file .*Coarser types lost more: Q6_K 0\.00", found["refused"]["Q6_K"]["what"])
    assert found["refused"]["Q6_K"]["hint"] == "name a finer type:  cloudft quantize --type F16 --max-kl 1e-09"


def test_a_conversion_that_loses_is_named(tmp_path: Path, llama: Path, toolchain: Toolchain) -> None:
    """q and k stay unpermuted: the file loads, and answers nonsense."""
    root = Path(shutil.copytree(toolchain.root, tmp_path / "toolchain"))
    code = root / "conversion" / "llama.py"
    code.write_text(code.read_text().replace("undo_permute = True", "undo_permute = False"))
    adapter = make_lora(tmp_path / "adapter", llama)
    found = built(llama, adapter, tmp_path, Toolchain(root, "spoilt"), kinds=["F16"])
    assert "step that lost it is the conversion" in found["refused"]["F16"]["what"]


def test_a_merge_that_loses_is_named(
    tmp_path: Path, llama: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unscaled(self: Lora, name: str, weight: Any) -> Any:
        a, b, _ = self.factors(name.removesuffix(".weight"))
        self.consumed.add(name)
        return weight.float() + b @ a

    monkeypatch.setattr(Lora, "merged", unscaled)
    adapter = make_lora(tmp_path / "adapter", llama)
    found = built(llama, adapter, tmp_path, toolchain, kinds=["F16"])
    assert "step that lost it is the merge" in found["refused"]["F16"]["what"]


def test_embeddings_that_are_laid_over_wrongly_are_noticed(
    tmp_path: Path, tied: Path, toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file and what it is compared with are made from the same folder, so the predictions would agree."""
    adapter = make_lora(tmp_path / "adapter", tied, modules_to_save=["embed_tokens"], target_modules=["q_proj"])
    one_table = {"whole": {}, "untied": False}
    real = overlay.lay_over
    monkeypatch.setattr("local.quantizing.build.lay_over", lambda model, lora: real(model, replace(lora, **one_table)))
    with pytest.raises(VerifyError, match="not what peft makes of base and adapter: the input embedding differs"):
        built(tied, adapter, tmp_path, toolchain)


def test_a_whole_model_needs_no_adapter(tmp_path: Path, llama: Path, toolchain: Toolchain) -> None:
    found = built(llama, None, tmp_path, toolchain)
    assert found["merge"] == ""
    assert found["verification"]["F16"]["kl_divergence"] < 1e-4
