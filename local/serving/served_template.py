"""A chat template that gives, in any of llama.cpp's servers, the text that it gave in training.

A server renders it with variables of its own: the file's beginning- and end-of-text tokens (a wrong one where the
tokenizer has none), and ``enable_thinking``, which training never set. And it puts tokens before and after the text if
the file says so, which training did not. Both are mended in the file, where they would show, and only there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from local.base import read_json

Variables = Mapping[str, Any]

# What is rendered to see whether two sets of variables differ: templates look at roles, order and history.
PROBES: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "a"}],
    [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ],
)
# What llama.cpp takes for the beginning of text where a file names none, by the kind of its vocabulary.
DEFAULT_BOS = {"gpt2": 11, "llama": 1}


def render(template: str, messages: list[dict[str, str]], variables: Variables, *, prompt: bool = True) -> str:
    """One conversation as text, by transformers' engine with these variables and no others.

    Raises:
        jinja2.TemplateError, TypeError, KeyError, ValueError: the template refuses it.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    texts, _ = render_jinja_template(
        conversations=[messages], chat_template=template, add_generation_prompt=prompt, **variables
    )
    return str(texts[0])


def of_servers(bos: str, eos: str) -> tuple[Variables, ...]:
    """The variables of llama.cpp's two servers: of the Python package, and llama-server."""
    tokens = {"bos_token": bos, "eos_token": eos}
    return tokens, {**tokens, "enable_thinking": True}


def pinned(template: str, trained: Variables, servers: tuple[Variables, ...]) -> str:
    """The template as it is, if the servers' variables change nothing; else with training's set at its beginning.

    Where no setting helps it is returned as it is: verification then says what differs.
    """
    wanted = _all(template, trained)
    tokens = {name: trained.get(name) or "" for name in ("bos_token", "eos_token")}
    for settings in ({}, tokens, {"enable_thinking": False}, {**tokens, "enable_thinking": False}):
        text = "".join(f"{{%- set {name} = {json.dumps(value)} %}}" for name, value in settings.items()) + template
        if all(_all(text, variables) == wanted for variables in (trained, *servers)):
            return text
    return template


def trained_variables(folder: Path) -> Variables:
    """The special tokens that the tokenizer in a folder gives to its template."""
    path = folder / "tokenizer_config.json"
    config = read_json(path) if path.is_file() else {}
    tokens = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        token = config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            tokens[name] = token
    return tokens


def mend(keys: dict[str, Any], folder: Path) -> None:
    """Change the metadata of a file that is being made so that servers render and tokenise as training did.

    Args:
        keys: as ``gguf.GGUFWriter`` keeps them.
        folder: the model folder, with the tokenizer and the template as trained.
    """
    import gguf

    names = gguf.Keys.Tokenizer
    if names.CHAT_TEMPLATE not in keys or names.LIST not in keys:
        return
    words = keys[names.LIST].value
    default = DEFAULT_BOS.get(keys[names.MODEL].value, -1)
    bos, eos = (
        _word(words, keys[name].value if name in keys else fallback)
        for name, fallback in ((names.BOS_ID, default), (names.EOS_ID, -1))
    )
    trained = trained_variables(folder)
    template = keys[names.CHAT_TEMPLATE].value
    texts = [text for text in _all(template, trained) if text is not None]
    served = pinned(template, trained, of_servers(bos, eos))
    keys[names.CHAT_TEMPLATE] = gguf.GGUFValue(served, gguf.GGUFValueType.STRING)
    # A text that begins with the token itself is told by the servers from one that does not.
    begins = bool(texts) and bool(bos) and all(text.startswith(bos) for text in texts)
    for name, may_add in ((names.ADD_BOS, begins), (names.ADD_EOS, False)):
        if not may_add and (name in keys or name == names.ADD_BOS):
            keys[name] = gguf.GGUFValue(False, gguf.GGUFValueType.BOOL)


def _all(template: str, variables: Variables) -> list[str | None]:
    return [_or_none(template, messages, variables) for messages in PROBES]


def _or_none(template: str, messages: list[dict[str, str]], variables: Variables) -> str | None:
    import jinja2

    try:
        return render(template, messages, variables)
    except (jinja2.TemplateError, TypeError, KeyError, ValueError):
        return None


def _word(words: list[Any], index: int) -> str:
    if not 0 <= index < len(words):
        return ""
    word = words[index]
    return word.decode("utf-8", "replace") if isinstance(word, bytes) else str(word)
