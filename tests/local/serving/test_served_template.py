"""A template renders in llama.cpp's servers as it did in training, whatever variables they give it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from local.quantizing.build import build
from local.quantizing.toolchain import Toolchain
from local.serving.served_template import of_servers, pinned, render
from tests.local.models import change, forget_converter, make_model
from tests.local.quantize_fixtures import ROWS, TEMPLATE, no_progress, toolchain

__all__ = ["toolchain"]

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::UserWarning")]

TRAINED = {"eos_token": "<|im_end|>"}
SERVERS = of_servers(",", "<|endoftext|>")
USER = [{"role": "user", "content": "hello"}]


@pytest.fixture(autouse=True)
def _upstreams_packages() -> Iterator[None]:
    yield
    forget_converter()


@pytest.mark.parametrize(
    ("template", "settings"),
    [
        (TEMPLATE, ""),
        ("{{ bos_token }}" + TEMPLATE, """{%- set bos_token = "" %}{%- set eos_token = "<|im_end|>" %}"""),
        (TEMPLATE + "{{ eos_token }}", """{%- set bos_token = "" %}{%- set eos_token = "<|im_end|>" %}"""),
        ("{% if enable_thinking %}think{% endif %}" + TEMPLATE, "{%- set enable_thinking = false %}"),
        ("{% if enable_thinking is not defined or enable_thinking %}think{% endif %}" + TEMPLATE, ""),
    ],
)
def test_only_what_servers_would_change_is_set(template: str, settings: str) -> None:
    served = pinned(template, TRAINED, SERVERS)
    assert served == settings + template
    for variables in SERVERS:
        assert render(served, USER, variables) == render(template, USER, TRAINED)


def test_what_no_setting_helps_is_left_for_verification_to_find() -> None:
    template = "{% if enable_thinking is defined %}{{ enable_thinking }}{% endif %}" + TEMPLATE
    assert pinned(template, TRAINED, SERVERS) == template


def test_the_file_says_what_training_did(tmp_path: Path, toolchain: Toolchain) -> None:
    """A tokenizer that adds tokens and a template that asks for more: all checks pass, through both servers' eyes."""
    base = make_model(tmp_path / "base", "qwen2", num_hidden_layers=1)
    template = "{{ bos_token }}{% if enable_thinking %}think{% endif %}" + TEMPLATE
    change(base / "tokenizer_config.json", chat_template=template, add_bos_token=True, add_eos_token=True)
    (tmp_path / "scratch").mkdir()
    samples: Any = [row["messages"] for row in ROWS[:2]]
    found = build(
        base=str(base),
        adapter=None,
        template=None,
        toolchain=str(toolchain.root),
        scratch=str(tmp_path / "scratch"),
        outs={"F16": str(tmp_path / "file.gguf")},
        name="tiny",
        samples=samples,
        progress=no_progress,
    )
    assert found["verification"]["F16"]["conversations"] > 2
    from llama_cpp import Llama

    metadata = Llama(str(tmp_path / "file.gguf"), vocab_only=True, verbose=False).metadata
    assert metadata["tokenizer.ggml.add_bos_token"] == metadata["tokenizer.ggml.add_eos_token"] == "false"
    served = metadata["tokenizer.chat_template"]
    assert served.endswith(template)
    assert served != template
