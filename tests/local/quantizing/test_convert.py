"""Home-trained tokenizers are recognised by their definition, and llama.cpp's refusals are passed on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloudft.errors import ConfigError, EnvironmentProblem
from local.quantizing.convert import QWEN2_REGEX, pre_tokenizer_name
from local.quantizing.convert_worker import _translated
from tests.local.quantize_fixtures import tokenizer_json


def test_qwen2s_definition_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer_json())
    assert pre_tokenizer_name(tmp_path) == "qwen2"


def test_the_definition_is_the_one_that_transformers_gives_qwen2() -> None:
    """So that what this project calls Qwen2's regex is Qwen2's regex."""
    from transformers import Qwen2Tokenizer

    made = Qwen2Tokenizer(vocab={"a": 0, "<|endoftext|>": 1}, merges=[])
    (split, _) = json.loads(made.backend_tokenizer.to_str())["pre_tokenizer"]["pretokenizers"]
    assert split["pattern"] == {"Regex": QWEN2_REGEX}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: t["pre_tokenizer"]["pretokenizers"][0].update(pattern={"Regex": QWEN2_REGEX + "|x"}),
        lambda t: t["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"),
        lambda t: t["pre_tokenizer"]["pretokenizers"][0].update(invert=True),
        lambda t: t["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
        lambda t: t["pre_tokenizer"]["pretokenizers"][1].update(use_regex=True),
        lambda t: t["pre_tokenizer"]["pretokenizers"].pop(),
        lambda t: t.update(pre_tokenizer=None),
        lambda t: t.update(normalizer={"type": "Lowercase"}),
        lambda t: t["model"].update(ignore_merges=True),
        lambda t: t["model"].update(type="Unigram"),
    ],
)
def test_any_other_definition_is_refused(tmp_path: Path, spoil: Callable[[dict[str, Any]], None]) -> None:
    definition = json.loads(tokenizer_json())
    spoil(definition)
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(ConfigError, match=r"does not know this tokenizer.*pre_tokenizer") as caught:
        pre_tokenizer_name(tmp_path)
    assert caught.value.hint


def test_a_disk_that_fills_up_is_said() -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        Path("/dev/full").write_text("x")
    found = _translated(caught.value)
    assert isinstance(found, EnvironmentProblem)
    assert found.what == "the disk is full"
