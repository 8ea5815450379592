"""Do training and serving see the same tokens? What a server would make of a conversation, beside what training made.

``model`` is llama.cpp's, loaded from the file that would be served; ``trained`` is the tokenizer of training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cloudft.errors import VerifyError
from jobs.rendering import served_template
from local.serving.served_template import of_servers, render

Messages = list[dict[str, str]]

PROMPTS = 4  # of the run's own rows, that a server is asked about

# Looked at beside the run's own rows, which may all be in one script. Composed characters only: some tokenizers compose
# (NFC) and llama.cpp does not, which is upstream's known gap and no fault of a file.
ODD_TEXTS = (
    "Où est-il ? 你好，世界 👩‍💻 — «naïve» 3.14",
    "日本語のテキスト、한국어 텍스트 und Übergrößenträger",
    "🚀 (normal) 😶‍🌫️ 🇨🇭🧑🏽‍🚀 ✅ 🦙🦙 3 33 333 3333 ------======= нещо на Български",
    "def f(x):\n\treturn {'a': [1, 2]}  # ok\n\n\n    if x != 0x1F: pass\n",
    "  two  spaces, a tab\tand   1234567890 3.14159e-10 $%^&*()",
    "I'm you're we'll they'd I'M YOU'RE",
)


def odd_conversations(trained: Any) -> list[Messages]:
    """Conversations of odd text, and one whose user writes the tokenizer's own special tokens."""
    special = " ".join(dict.fromkeys(list(trained.all_special_tokens)[:6]))
    texts = [*ODD_TEXTS, f"what does {special} mean? {special}"]
    return [
        [{"role": "user", "content": text}, {"role": "assistant", "content": ODD_TEXTS[i % len(ODD_TEXTS)]}]
        for i, text in enumerate(texts, 1)
    ]


def prompts(tokenizer: Path, template: str | None, samples: list[Messages]) -> list[dict[str, Any]]:
    """Conversations that await an answer, as ``messages``, and the token ids that training makes of them, ``ids``."""
    from transformers import AutoTokenizer

    trained: Any = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    template = template or own_template(trained)
    found = []
    for row in (*samples[:PROMPTS], *odd_conversations(trained)) if template else ():
        messages = row[:-1] if row[-1]["role"] == "assistant" else row
        text = trained.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True)
        found.append({"messages": messages, "ids": list(trained(text, add_special_tokens=False)["input_ids"])})
    return found


def own_template(tokenizer: Any) -> str | None:
    own = tokenizer.chat_template
    return own.get("default") if isinstance(own, dict) else own


def same_template(model: Any, template: str | None) -> None:
    served = model.metadata.get("tokenizer.chat_template")
    if template is not None and served != served_template(template):
        raise VerifyError(
            "the chat template in the file is not the trained one"
            if served
            else "the file carries no chat template, and the model was trained with one"
        )


def same_tokens(model: Any, trained: Any, template: str, messages: Messages) -> list[int]:
    """The token ids of a conversation, which must be the same in training and in serving, prompt and whole."""
    ids: list[int] = []
    ends_answered = bool(messages) and messages[-1]["role"] == "assistant"
    views = [(messages[:-1], True), (messages, False)] if ends_answered else [(messages, True)]
    for part, prompt in views:
        text = trained.apply_chat_template(part, chat_template=template, tokenize=False, add_generation_prompt=prompt)
        for variables in of_servers(*_ends_of_text(model)):
            _same_text(render(model.metadata["tokenizer.chat_template"], part, variables, prompt=prompt), text)
        ids = same_ids(model, trained, text)
        if prompt:
            _refuse_added(model, trained, text, ids)
    return ids


def _same_text(served: str, text: str) -> None:
    if served != text:
        pairs = zip(served, text, strict=False)
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(served), len(text)))
        raise VerifyError(
            f"the chat template renders differently when served, from character {at}: "
            f"{served[at : at + 40]!r} instead of {text[at : at + 40]!r}"
        )


def _ends_of_text(model: Any) -> tuple[str, str]:
    """The tokens that begin and end a text, as the file's servers give them to the template."""
    tokens = (model.token_bos(), model.token_eos())
    first, last = (str(model._model.token_get_text(token)) if token >= 0 else "" for token in tokens)
    return first, last


def _refuse_added(model: Any, trained: Any, text: str, ids: list[int]) -> None:
    """llama-server leaves it to the file whether a prompt gets a first and a last token of its own."""
    from llama_cpp import llama_cpp

    first, _ = _ends_of_text(model)
    if llama_cpp.llama_vocab_get_add_bos(model._model.vocab) and first:
        text = text.removeprefix(first)
    got = model.tokenize(text.encode(), add_bos=True, special=True)
    for added, where, rest in ((got[:1], "begin", got[1:]), (got[-1:], "end", got[:-1])):
        if rest == ids:
            token = model.detokenize(added, special=True).decode("utf-8", "replace")
            raise VerifyError(f"llama-server would {where} every prompt with {token!r}, which training did not")
    _refuse_other_ids(model, trained, ids, got)


def same_ids(model: Any, trained: Any, text: str) -> list[int]:
    """The token ids of a text, which both sides must agree on."""
    ids = list(trained(text, add_special_tokens=False)["input_ids"])
    _refuse_other_ids(model, trained, ids, model.tokenize(text.encode(), add_bos=False, special=True))
    return ids


def _refuse_other_ids(model: Any, trained: Any, wanted: list[int], got: list[int]) -> None:
    if got == wanted:
        return
    pairs = zip(wanted, got, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(wanted), len(got)))
    here = model.detokenize(got[at : at + 3], special=True).decode("utf-8", "replace")
    raise VerifyError(
        f"the tokenizer in the file is not the trained one: token {at} of a conversation is {got[at : at + 3]} "
        f"({here!r}) when served and {wanted[at : at + 3]} ({trained.decode(wanted[at : at + 3])!r}) in training"
    )


def end_of_turn(model: Any, trained: Any, conversations: list[list[int]]) -> str:
    """The token that ends the assistant's turn; llama.cpp must take it as an end, or an answer never stops."""
    from llama_cpp import llama_cpp

    def ends(token: int) -> bool:
        return bool(llama_cpp.llama_vocab_is_eog(model._model.vocab, token))

    if trained.eos_token_id is None or not ends(trained.eos_token_id):
        raise VerifyError(
            f"llama.cpp does not know the end-of-text token {trained.eos_token!r}: answers would not stop"
        )
    special = set(trained.all_special_ids) | set(trained.added_tokens_decoder)
    for ids in conversations:
        last = next((i for i in reversed(ids) if i in special or trained.decode([i]).strip()), None)
        if last is None or last not in special:
            continue  # the template ends a turn without a token of its own: the tokenizer's end-of-text does it
        if not ends(last):
            raise VerifyError(
                f"the template ends a turn with {trained.decode([last])!r}, which llama.cpp does not take as an end: "
                "answers would not stop"
            )
        return str(trained.decode([last]))
    return str(trained.eos_token)
