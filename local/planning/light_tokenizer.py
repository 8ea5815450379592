"""A base's tokenizer and chat template without torch or transformers: enough to see what a run would train on.

The tokens are those of the base's own ``tokenizer.json``, by the library that transformers uses too; the template is
rendered by Jinja with what transformers gives to templates. On the machine transformers itself does both, and looks
again; a test holds the two together.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jobs.rendering import Message

TOKENIZER, CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
GENERATION, MODEL_CONFIG, SPECIAL = "generation_config.json", "config.json", "special_tokens_map.json"
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class NoLightTokenizer(Exception):
    """The base cannot be read so; the message says why."""


class LightTokenizer:
    """What ``jobs.rendering`` needs of a tokenizer. ``read`` gives a file of the base by its name, None without it."""

    def __init__(self, read: Callable[[str], Path | None]) -> None:
        from tokenizers import Tokenizer

        path = read(TOKENIZER)
        if path is None:
            raise NoLightTokenizer("the base has no tokenizer.json")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as exc:  # the library has no kind of its own
            raise NoLightTokenizer(f"its tokenizer.json cannot be read: {exc}") from exc
        config = {**_json(read(SPECIAL)), **_json(read(CONFIG))}
        self._compiled: dict[str, Any] = {}
        self.special: dict[str, Any] = {name: _text(config[name]) for name in NAMED if config.get(name)}
        self.chat_template = _template(read(TEMPLATE), config)
        eos = self.special.get("eos_token")
        self.eos_token_id = None if eos is None else self._tokenizer.token_to_id(eos)
        ends = _json(read(GENERATION)).get("eos_token_id", _json(read(MODEL_CONFIG)).get("eos_token_id"))
        listed = ends if isinstance(ends, list) else [ends]
        self.stops = frozenset({self.eos_token_id, *listed} - {None})

    def get_vocab(self) -> dict[str, int]:
        vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        return vocabulary

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        assert not clean_up_tokenization_spaces  # the library itself cleans nothing up
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens))

    def apply_chat_template(
        self, conversation: list[Message], *, chat_template: str, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        assert not tokenize
        if chat_template not in self._compiled:
            self._compiled[chat_template] = _environment().from_string(chat_template)
        return str(
            self._compiled[chat_template].render(
                messages=[dict(message) for message in conversation],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.special,
            )
        )


def _environment() -> Any:
    """Jinja as chat templates expect it: blocks trimmed, loop controls, ``{% generation %}``, and nothing dangerous.

    A template may come from anybody, so it runs in Jinja's sandbox.
    """
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    from jobs.rendering import served_template

    class Environment(ImmutableSandboxedEnvironment):
        def preprocess(self, source: str, name: str | None = None, filename: str | None = None) -> str:
            return super().preprocess(served_template(source), name, filename)

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    def as_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = as_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda wanted: datetime.now().strftime(wanted)
    return environment


def _template(file: Path | None, config: dict[str, Any]) -> Any:
    """The base's own template; one called "default" where it brings several; None without any."""
    if file is not None:
        return file.read_text(encoding="utf-8")
    own = config.get("chat_template")
    if isinstance(own, list):
        return {entry["name"]: entry["template"] for entry in own if isinstance(entry, dict)}
    return own


def _json(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _text(token: Any) -> str:
    """A special token, which stands there as text or as an object with its text."""
    return str(token["content"] if isinstance(token, dict) else token)
