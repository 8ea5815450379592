"""A file that is not the model that was trained is named for what is wrong with it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cloudft.errors import VerifyError
from jobs.rendering import served_template
from local.quantizing.toolchain import Toolchain
from local.quantizing.verify import Predict, TooFar, inspect, predictions_of
from local.quantizing.verify_tokens import odd_conversations
from local.serving.versions import Version
from tests.local.quantize_fixtures import (
    ROWS,
    TEMPLATE,
    TRAINED,
    Quantised,
    no_progress,
    quantised,
    tiny_adapter,
    tiny_base,
    toolchain,
)

__all__ = ["quantised", "tiny_adapter", "tiny_base", "toolchain"]

SAMPLES = [row["messages"] for row in ROWS[:2]]


@pytest.fixture
def version(quantised: Quantised) -> Version:
    return quantised.version


@pytest.fixture
def tokenizer(tmp_path: Path, tiny_adapter: Path) -> Path:
    """The tokenizer as trained; a copy that a test may change."""
    return Path(shutil.copytree(tiny_adapter, tmp_path / "tokenizer"))


def rewrite(toolchain: Toolchain, gguf: Path, out: Path, *options: str) -> Path:
    """The file with other metadata, by upstream's own script."""
    script = [sys.executable, "-m", "gguf.scripts.gguf_new_metadata", "--force", *options, str(gguf), str(out)]
    subprocess.run(script, cwd=toolchain.root / "gguf-py", check=True, capture_output=True)
    return out


def check(
    gguf: Path,
    tokenizer: Path,
    template: str = TRAINED,
    architecture: str | None = None,
    reference: Predict | None = None,
) -> dict[str, Any]:
    """The checks without the child process, which costs seconds."""
    return inspect(
        gguf=str(gguf),
        tokenizer=str(tokenizer),
        template=template,
        samples=SAMPLES,
        reference=reference,
        architecture=architecture,
        progress=no_progress,
    )


def test_a_good_file_passes(version: Version, tokenizer: Path) -> None:
    itself = partial(predictions_of, version.gguf)
    found = check(version.gguf, tokenizer, architecture="qwen2", reference=itself)
    assert found["architecture"] == "qwen2"
    assert found["end_of_turn"] == "<|im_end|>"
    assert found["tokens"] > 100
    assert (found["kl_divergence"], found["top1_agreement"]) == (0.0, 1.0)


def test_a_wrong_template(version: Version, tokenizer: Path) -> None:
    with pytest.raises(VerifyError, match="the chat template in the file is not the trained one"):
        check(version.gguf, tokenizer, TEMPLATE)


def test_a_file_without_a_template(version: Version, tokenizer: Path, toolchain: Toolchain, tmp_path: Path) -> None:
    bare = rewrite(toolchain, version.gguf, tmp_path / "bare.gguf", "--remove-metadata", "tokenizer.chat_template")
    with pytest.raises(VerifyError, match="carries no chat template"):
        check(bare, tokenizer)


def test_a_template_that_the_server_cannot_read(
    version: Version, tokenizer: Path, toolchain: Toolchain, tmp_path: Path
) -> None:
    template = "{% for message in messages %}"
    broken = rewrite(toolchain, version.gguf, tmp_path / "broken.gguf", "--chat-template", template)
    with pytest.raises(VerifyError, match="chat template can't be read"):
        check(broken, tokenizer, template)


def test_a_wrong_architecture(version: Version, tokenizer: Path) -> None:
    with pytest.raises(VerifyError, match="the architecture is 'qwen2', but the base is 'llama'"):
        check(version.gguf, tokenizer, architecture="llama")


def test_a_wrong_tokenizer(version: Version, tokenizer: Path) -> None:
    definition = json.loads((tokenizer / "tokenizer.json").read_text())
    definition["model"]["merges"] = definition["model"]["merges"][5:]
    (tokenizer / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(VerifyError, match=r"the tokenizer in the file is not the trained one: token \d+ of"):
        check(version.gguf, tokenizer)


def test_an_end_of_text_that_llama_cpp_does_not_know(version: Version, tokenizer: Path) -> None:
    config = json.loads((tokenizer / "tokenizer_config.json").read_text())
    config["eos_token"] = "<|im_start|>"
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(VerifyError, match=r"does not know the end-of-text token '<\|im_start\|>'"):
        check(version.gguf, tokenizer)


def test_a_turn_that_does_not_end(version: Version, tokenizer: Path, toolchain: Toolchain, tmp_path: Path) -> None:
    template = TRAINED.replace("<|im_end|>", "<|im_start|>")
    endless = rewrite(toolchain, version.gguf, tmp_path / "endless.gguf", "--chat-template", served_template(template))
    with pytest.raises(VerifyError, match=r"ends a turn with '<\|im_start\|>'.*would not stop"):
        check(endless, tokenizer, template)


@pytest.mark.parametrize("keep", [0, 100, -1000])
def test_a_truncated_file(version: Version, tokenizer: Path, tmp_path: Path, keep: int) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(version.gguf.read_bytes()[:keep])
    with pytest.raises(VerifyError, match="can't load"):
        check(cut, tokenizer)


def test_a_file_that_is_not_there(tmp_path: Path, tokenizer: Path) -> None:
    with pytest.raises(VerifyError, match="can't load"):
        check(tmp_path / "none.gguf", tokenizer)


def test_types_that_were_not_planned(version: Version) -> None:
    from local.quantizing.ggml import tensor_types
    from local.quantizing.verify import _planned_types

    planned = tensor_types(version.gguf)
    assert _planned_types(str(version.gguf), planned)["Q4_K"] > 5
    with pytest.raises(VerifyError, match=r"blk\.0\.attn_q\.weight is Q4_K, and Q6_K was planned"):
        _planned_types(str(version.gguf), planned | {"blk.0.attn_q.weight": "Q6_K"})
    del planned["blk.0.attn_q.weight"]
    with pytest.raises(VerifyError, match=r"blk\.0\.attn_q\.weight is Q4_K, and None was planned"):
        _planned_types(str(version.gguf), planned)


def test_odd_text_and_special_tokens_in_a_users_text_are_looked_at(version: Version, tokenizer: Path) -> None:
    from transformers import AutoTokenizer

    trained = AutoTokenizer.from_pretrained(tokenizer)
    written = json.dumps(odd_conversations(trained), ensure_ascii=False)
    assert "<|im_end|> <|endoftext|>" in written
    assert all(part in written for part in ("👩‍💻", "你好", "日本語", "def f(x)"))
    without = check(version.gguf, tokenizer)
    assert without["conversations"] == len(SAMPLES) + len(odd_conversations(trained))


def test_a_tokenizer_that_differs_only_in_emoji(version: Version, tokenizer: Path) -> None:
    """The run's own rows would never show it."""
    definition = json.loads((tokenizer / "tokenizer.json").read_text())
    vocabulary = definition["model"]["vocab"]
    first, second = sorted(vocabulary)[-1], sorted(vocabulary)[-2]  # bytes that only other scripts use
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (tokenizer / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(VerifyError, match="the tokenizer in the file is not the trained one"):
        check(version.gguf, tokenizer)


def test_an_answer_that_goes_on_after_its_end(version: Version) -> None:
    from local.quantizing.verify import _load, _stops

    model = _load(str(version.gguf))
    _stops(model, model.token_eos(), [50, 51, 52])
    with pytest.raises(VerifyError, match="does not end an answer"):
        _stops(model, 60, [50, 51, 52])


def test_predictions_that_are_too_far_off(version: Version, tokenizer: Path) -> None:
    import numpy as np

    def other(rows: list[list[int]]) -> Any:
        return np.random.default_rng(0).normal(0, 3, (sum(map(len, rows)), 512)).astype(np.float32)

    arguments = {"gguf": str(version.gguf), "tokenizer": str(tokenizer), "template": TRAINED, "samples": SAMPLES}
    rest = {"reference": other, "architecture": None, "progress": no_progress}
    assert inspect(**arguments, **rest)["kl_divergence"] > 1  # type: ignore[arg-type]  # measured only
    with pytest.raises(TooFar, match=r"at most 0\.05 are allowed") as caught:
        inspect(**arguments, **rest, kind="Q8_0", max_kl=0.05)  # type: ignore[arg-type]
    assert caught.value.lost > 1
    assert sum(map(len, caught.value.rows)) > 100


@pytest.mark.parametrize(("key", "where"), [("add_bos_token", "begin"), ("add_eos_token", "end")])
def test_a_token_that_a_server_would_add(
    key: str, where: str, version: Version, tokenizer: Path, toolchain: Toolchain, tmp_path: Path
) -> None:
    """llama-server asks the file; the Python package's server does not."""
    code = (
        "import sys, gguf; reader = gguf.GGUFReader(sys.argv[1])\n"
        "writer = gguf.GGUFWriter(sys.argv[2], 'qwen2')\n"
        "from gguf.scripts.gguf_new_metadata import MetadataDetails, copy_with_new_metadata\n"
        "new = {sys.argv[3]: MetadataDetails(gguf.GGUFValueType.BOOL, True)}\n"
        "copy_with_new_metadata(reader, writer, new, [])\n"
    )
    added = tmp_path / "added.gguf"
    command = [sys.executable, "-c", code, str(version.gguf), str(added), f"tokenizer.ggml.{key}"]
    subprocess.run(command, cwd=toolchain.root / "gguf-py", check=True, capture_output=True)
    with pytest.raises(VerifyError, match=f"llama-server would {where} every prompt with"):
        check(added, tokenizer)
