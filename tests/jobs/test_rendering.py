"""Messages → tokens: the prompt is the served one, only the answer counts, and its end is learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.rendering import (
    IGNORED,
    Rendered,
    RenderError,
    chatml,
    choose_template,
    encode_answer,
    encode_rows,
    render_answer,
    render_messages,
)
from tests.jobs.train_fixtures import demo_base

__all__ = ["demo_base"]  # a fixture

ROW = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello, I cannot log in to Mail."},
    {"role": "assistant", "content": '{"category":"access"}'},
]
TALK = [*ROW, {"role": "user", "content": "And Drive?"}, {"role": "assistant", "content": "Thank you."}]


@pytest.fixture
def tokenizer(demo_base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(demo_base)


def stops(tokenizer: Any) -> set[int]:
    return {tokenizer.eos_token_id}


def test_the_prompt_is_the_served_one_and_the_completion_follows_it(tokenizer: Any) -> None:
    rendered = render_answer(tokenizer, chatml(), ROW)
    assert rendered.prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHello, I cannot log in to Mail.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert rendered.completion == '{"category":"access"}<|im_end|>\n'


def test_only_the_answer_and_its_end_count(tokenizer: Any) -> None:
    encoded = encode_rows([ROW], tokenizer, chatml(), stops=stops(tokenizer), max_length=512)
    (example,) = encoded.examples
    assert len(example.input_ids) == len(example.labels) == encoded.longest == encoded.tokens
    learned = [label for label in example.labels if label != IGNORED]
    assert tokenizer.decode(learned) == '{"category":"access"}<|im_end|>'
    assert learned[-1] == tokenizer.eos_token_id
    assert example.trained == encoded.trained == len(learned)
    # What stands before is exactly what a server would send to the model.
    served = tokenizer.apply_chat_template(ROW[:-1], add_generation_prompt=True, return_dict=False)
    assert example.input_ids[: -len(learned)] == served
    assert example.labels[: len(served)] == [IGNORED] * len(served)


def test_every_answer_of_a_conversation_is_an_example(tokenizer: Any) -> None:
    encoded = encode_rows([TALK], tokenizer, chatml(), stops=stops(tokenizer), max_length=512)
    said = [tokenizer.decode([i for i in e.labels if i != IGNORED]) for e in encoded.examples]
    assert said == ['{"category":"access"}<|im_end|>', "Thank you.<|im_end|>"]
    assert encoded.examples[0].input_ids == encoded.examples[1].input_ids[: len(encoded.examples[0].input_ids)]


def test_an_answer_without_an_end_gets_one(tokenizer: Any) -> None:
    bare = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}" + (
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    encoded = encode_rows([ROW], tokenizer, bare, stops=stops(tokenizer), max_length=512)
    assert encoded.examples[0].input_ids[-1] == encoded.examples[0].labels[-1] == tokenizer.eos_token_id


def test_a_token_across_the_border_is_parted_as_in_serving(tokenizer: Any) -> None:
    whole = tokenizer.encode("Thank you", add_special_tokens=False)
    rendered = Rendered("Tha", "nk you")
    assert tokenizer.encode("Tha", add_special_tokens=False) != whole[:1]
    example = encode_answer(tokenizer, rendered, stops(tokenizer))
    prompt = tokenizer.encode("Tha", add_special_tokens=False)
    assert example.input_ids[: len(prompt)] == prompt
    assert example.labels[len(prompt)] != IGNORED
    assert tokenizer.decode(example.input_ids) == "Thank you<|im_end|>"


def test_long_rows_are_counted(tokenizer: Any) -> None:
    full = encode_rows([ROW], tokenizer, chatml(), stops=stops(tokenizer), max_length=512)
    length, prompt = full.longest, full.longest - full.trained
    cut = encode_rows([ROW, ROW], tokenizer, chatml(), stops=stops(tokenizer), max_length=length - 1)
    assert (cut.truncated, cut.masked, len(cut.examples), cut.longest) == (2, 0, 2, length)
    assert all(len(example.input_ids) == length - 1 for example in cut.examples)
    none_left = encode_rows([ROW], tokenizer, chatml(), stops=stops(tokenizer), max_length=prompt)
    assert (none_left.truncated, none_left.masked, none_left.examples) == (1, 1, ())
    exact = encode_rows([ROW], tokenizer, chatml(), stops=stops(tokenizer), max_length=length)
    assert (exact.truncated, exact.masked) == (0, 0)


def test_an_end_inside_an_answer_is_refused(tokenizer: Any) -> None:
    row = [*ROW[:-1], {"role": "assistant", "content": "one<|im_end|>two"}]
    with pytest.raises(RenderError, match="row 2: the answer contains a token that ends a turn"):
        encode_rows([ROW, row], tokenizer, chatml(), stops=stops(tokenizer), max_length=512)


def test_a_template_that_writes_another_prompt_is_refused(tokenizer: Any) -> None:
    thinking = chatml().replace("'<|im_start|>assistant\\n' }}", "'<|im_start|>assistant\\n<think>\\n' }}")
    assert thinking != chatml()
    with pytest.raises(RenderError, match=r"row 1: the chat template writes the prompt otherwise.*<think>"):
        encode_rows([ROW], tokenizer, thinking, stops=stops(tokenizer), max_length=512)


def test_a_template_that_drops_the_answer_is_refused(tokenizer: Any) -> None:
    deaf = "{% for m in messages if m.role != 'assistant' %}{{ m.content }}{% endfor %}"
    with pytest.raises(RenderError, match="changes or drops the answer"):
        render_answer(tokenizer, deaf, ROW)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}{{ m.content }}", r"line 1 of the chat template is wrong"),
        ("{{ raise_exception('no system role here') }}", r"refuses this conversation: no system role here"),
        ("{{ messages[9].content }}", r"refuses this conversation"),
        ("{{ ''.__class__.__mro__ }}", r"refuses this conversation"),
    ],
)
def test_a_bad_template_is_named(tokenizer: Any, template: str, message: str) -> None:
    with pytest.raises(RenderError, match=message):
        render_messages(tokenizer, template, ROW, generation_prompt=False)


def test_the_template_is_the_runs_then_the_bases_then_chatml(tokenizer: Any) -> None:
    assert choose_template("mine", tokenizer) == ("mine", "cloudft.yaml")
    assert choose_template(None, tokenizer) == (tokenizer.chat_template, "the base's tokenizer")
    tokenizer.chat_template = {"tool_use": "x", "default": "y"}
    assert choose_template(None, tokenizer) == ("y", "the base's tokenizer")
    tokenizer.chat_template = None
    template, origin = choose_template(None, tokenizer)
    assert (template, origin[:6]) == (chatml(), "ChatML")


def test_a_base_without_template_and_tokens_needs_one() -> None:
    class Plain:
        chat_template = None
        eos_token_id = 0

        def get_vocab(self) -> dict[str, int]:
            return {"<|im_start|>": 1}

        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            raise NotImplementedError

        def apply_chat_template(self, conversation: list[dict[str, str]], **_: Any) -> str:
            raise NotImplementedError

    with pytest.raises(RenderError, match=r"set train\.template"):
        choose_template(None, Plain())


def test_the_demos_base_and_the_trainer_know_the_same_chatml(tokenizer: Any) -> None:
    assert tokenizer.chat_template == chatml()
