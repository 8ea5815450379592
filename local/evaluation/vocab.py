"""A model file's vocabulary and metadata, without its weights, as llama.cpp reads them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cloudft.errors import IntegrityError


@contextmanager
def vocabulary(gguf: Path) -> Iterator[Any]:
    """The file as llama-cpp-python's ``LlamaModel``. Without a context, for which a vocabulary has no use, and whose
    warnings about that would reach the terminal.

    Raises:
        IntegrityError: llama.cpp cannot load the file.
    """
    from llama_cpp import _internals, llama_cpp

    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    try:
        model = _internals.LlamaModel(path_model=str(gguf), params=params, verbose=False)
    except ValueError as exc:
        raise IntegrityError(f"llama.cpp can't load {gguf}: {exc}", hint="make it again:  cloudft quantize") from exc
    try:
        yield model
    finally:
        model.close()


def template_in(gguf: Path) -> str | None:
    """The chat template of a file: the trained one, with what its servers must not change pinned."""
    with vocabulary(gguf) as model:
        template: str | None = model.metadata().get("tokenizer.chat_template")
        return template
