"""A model file's tokens for fill-in-the-middle, as llama.cpp knows them: from the file's metadata, else by their names.

The prompt is built from them here, for ``/v1/completions`` of either server: llama-server's ``/infill`` adds what it
remembers of other files, and llama-cpp-python's ``suffix`` puts token 0 where the model's own should stand.
"""

from __future__ import annotations

from pathlib import Path

from local.evaluation.endpoint import Fim
from local.evaluation.vocab import vocabulary


def fim_of(gguf: Path) -> Fim | None:
    """The tokens; None if the model has none. Raises ``IntegrityError`` for a file that can't be read."""
    from llama_cpp import llama_cpp

    with vocabulary(gguf) as model:
        vocab = llama_cpp.llama_model_get_vocab(model.model)
        readers = (llama_cpp.llama_vocab_fim_pre, llama_cpp.llama_vocab_fim_suf, llama_cpp.llama_vocab_fim_mid)
        ids = [read(vocab) for read in readers]
        if min(ids) < 0:
            return None
        prefix, suffix, middle = (llama_cpp.llama_vocab_get_text(vocab, token).decode() for token in ids)
        return Fim(prefix, suffix, middle)
