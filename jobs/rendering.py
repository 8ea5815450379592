"""Messages → the exact tokens that are trained on, with the template that will also be served.

A row becomes one example for each answer in it: the prompt is rendered as it will be when the model is
served (with the generation prompt), the completion is what the template appends for the answer, up to and
including the token that ends it. Only the completion counts in the loss.

Rendering itself is ``transformers``' (``apply_chat_template``), which the tokenizer brings; so this module
imports nothing heavy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Protocol

IGNORED = -100  # label of a token that does not count in the loss (PyTorch's convention)

Message = dict[str, str]


class RenderError(ValueError):
    """A template and a conversation do not fit together."""


class Tokenizer(Protocol):
    """What is needed of a tokenizer; those of ``transformers`` have it."""

    chat_template: Any
    eos_token_id: Any

    def get_vocab(self) -> dict[str, int]: ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str: ...

    def apply_chat_template(
        self,
        conversation: list[Message],
        *,
        chat_template: str,
        tokenize: bool,
        add_generation_prompt: bool,
    ) -> str: ...


@dataclass(frozen=True)
class Rendered:
    """One answer as text: what the model is given, and what it must say (with the end of its turn)."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Example:
    """Token ids, and labels of the same length: ``IGNORED`` for the prompt, the id itself for the answer."""

    input_ids: list[int]
    labels: list[int]

    @property
    def trained(self) -> int:
        """How many tokens count in the loss."""
        return sum(label != IGNORED for label in self.labels)


@dataclass(frozen=True)
class Encoded:
    """All examples of a data set, and what became of the long ones.

    ``truncated`` examples were longer than the limit: the end of the answer is cut off. ``masked`` ones have
    nothing left of the answer; they are not among ``examples``. ``longest`` is in tokens, before cutting.
    """

    examples: tuple[Example, ...]
    truncated: int
    masked: int
    longest: int

    @property
    def tokens(self) -> int:
        return sum(len(example.input_ids) for example in self.examples)

    @property
    def trained(self) -> int:
        return sum(example.trained for example in self.examples)


def chatml() -> str:
    """The ChatML template, for bases that know its tokens but bring no template."""
    return (resources.files("jobs") / "chatml.jinja").read_text(encoding="utf-8")


# Marks the answers for a trainer's mask; engines that serve do not know it.
TRAINING_TAG = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")


def has_training_tags(template: str) -> bool:
    """Whether a template has ``{% generation %}`` tags, which only a trainer understands."""
    return TRAINING_TAG.search(template) is not None


def served_template(template: str) -> str:
    """The template as it is served: the same text from the same messages, without tags that only training knows.

    In their place stand tags that do nothing, so that the blanks and line breaks around them are treated as before.
    """
    return TRAINING_TAG.sub(lambda tag: f"{{%{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}%}}", template)


def choose_template(own: str | None, tokenizer: Tokenizer) -> tuple[str, str]:
    """The template to train with, and where it came from.

    Raises:
        RenderError: the run names none, the tokenizer brings none, and it does not know ChatML's tokens.
    """
    if own is not None:
        return own, "cloudft.yaml"
    brought = tokenizer.chat_template
    if isinstance(brought, dict):  # some bases bring several, by name
        brought = brought.get("default")
    if brought:
        return str(brought), "the base's tokenizer"
    if {"<|im_start|>", "<|im_end|>"} <= tokenizer.get_vocab().keys():
        return chatml(), "ChatML: the base brings no template, but knows its tokens"
    raise RenderError("the base brings no chat template, and the run names none: set train.template")


def render_messages(
    tokenizer: Tokenizer, template: str, messages: Sequence[Message], *, generation_prompt: bool
) -> str:
    """One conversation as text.

    Raises:
        RenderError: the template is no Jinja template, or refuses the conversation.
    """
    from jinja2 import TemplateError, TemplateSyntaxError

    try:
        return tokenizer.apply_chat_template(
            list(messages),
            chat_template=template,
            tokenize=False,
            add_generation_prompt=generation_prompt,
        )
    except TemplateSyntaxError as exc:
        raise RenderError(f"line {exc.lineno} of the chat template is wrong: {exc.message}") from exc
    except (TemplateError, TypeError, KeyError, ValueError) as exc:
        raise RenderError(f"the chat template refuses this conversation: {exc}") from exc


def render_answer(tokenizer: Tokenizer, template: str, messages: Sequence[Message]) -> Rendered:
    """The last message (an answer) and everything before it, as text.

    Raises:
        RenderError: the template writes the prompt otherwise when an answer follows (the model would be
            trained on a prompt that it never sees in serving), or it drops the answer.
    """
    prompt = render_messages(tokenizer, template, messages[:-1], generation_prompt=True)
    full = render_messages(tokenizer, template, messages, generation_prompt=False)
    if not full.startswith(prompt):
        at = next((i for i, (a, b) in enumerate(zip(prompt, full, strict=False)) if a != b), len(full))
        around = slice(max(at - 20, 0), at + 20)
        raise RenderError(
            "the chat template writes the prompt otherwise when the answer follows: "
            f"{prompt[around]!r} became {full[around]!r}"
        )
    completion = full[len(prompt) :]
    if messages[-1]["content"].strip() not in completion:
        raise RenderError("the chat template changes or drops the answer")
    return Rendered(prompt, completion)


def encode_answer(tokenizer: Tokenizer, rendered: Rendered, stops: Iterable[int]) -> Example:
    """Tokens and labels of one answer; its last token is one that ends a turn.

    ``stops`` are the ids at which generation stops. What the template appends after them (a line break, say)
    is cut: nobody ever generates it. Where the template ends an answer with no stop at all, the tokenizer's
    end token is added, or the model would never learn to stop.
    """
    prompt = tokenizer.encode(rendered.prompt, add_special_tokens=False)
    whole = tokenizer.encode(rendered.prompt + rendered.completion, add_special_tokens=False)
    if whole[: len(prompt)] == prompt:
        completion = whole[len(prompt) :]
    else:
        # A token would span the border. In serving the prompt is tokenised alone, so the same is done here.
        completion = tokenizer.encode(rendered.completion, add_special_tokens=False)
    stop_ids = set(stops)
    ends = [i for i, token in enumerate(completion) if token in stop_ids]
    completion = completion[: ends[0] + 1] if ends else [*completion, int(tokenizer.eos_token_id)]
    return Example(prompt + completion, [IGNORED] * len(prompt) + completion)


def encode_rows(
    rows: Iterable[Sequence[Message]],
    tokenizer: Tokenizer,
    template: str,
    *,
    stops: Iterable[int],
    max_length: int,
) -> Encoded:
    """One example for each answer of each row, none longer than ``max_length`` tokens.

    Raises:
        RenderError: a row does not fit the template, or an answer contains a token that ends a turn; the
            message names the row, counted from 1.
    """
    stop_ids = set(stops)
    examples: list[Example] = []
    truncated = masked = longest = 0
    for number, messages in enumerate(rows, 1):
        for end in (i for i, message in enumerate(messages, 1) if message["role"] == "assistant"):
            try:
                example = encode_one(messages[:end], tokenizer, template, stop_ids)
            except RenderError as exc:
                raise RenderError(f"row {number}: {exc}") from exc
            longest = max(longest, len(example.input_ids))
            truncated += len(example.input_ids) > max_length
            example = Example(example.input_ids[:max_length], example.labels[:max_length])
            if example.trained:
                examples.append(example)
            else:
                masked += 1
    return Encoded(tuple(examples), truncated, masked, longest)


def encode_one(messages: Sequence[Message], tokenizer: Tokenizer, template: str, stops: set[int]) -> Example:
    """The last message, an answer, with everything before it.

    Raises:
        RenderError: as ``render_answer`` and ``refuse_inner_stop``.
    """
    refuse_inner_stop(messages[-1]["content"], tokenizer, stops)
    return encode_answer(tokenizer, render_answer(tokenizer, template, messages), stops)


def refuse_inner_stop(answer: str, tokenizer: Tokenizer, stops: Iterable[int]) -> None:
    """Raise ``RenderError`` for an answer that contains a token that ends a turn."""
    if set(stops).intersection(tokenizer.encode(answer, add_special_tokens=False)):
        raise RenderError("the answer contains a token that ends a turn, so what follows it could never be generated")
