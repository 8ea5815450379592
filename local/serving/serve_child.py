"""The child process behind ``serve_in_process``: llama_cpp.server, with what it leaves open closed.

Run by path, never imported: ``python -P serve_child.py <fd of a listening socket>``, so it may import only the
standard library and what stands in site-packages. Its settings, the API key among them, come as one line of
JSON on standard input: arguments and environment of a process can be read by others. Standard input
then stays open; when it ends, the parent is gone, however it died, and so goes the child.

What differs from ``python -m llama_cpp.server``:
- the template of the GGUF file is always used: that server swaps a few well-known ones for its own rendering;
- a token of more than 32 bytes is printed: that server prints it as nothing;
- a repetition penalty is off unless a request asks for it: that server defaults to 1.1, llama-server to none;
- no cross-origin headers (that server allows every origin), only requests for this machine's own names;
- settings come from the parent alone: that server also reads variables such as ``SEED`` or ``MODEL``.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import sys
import threading
from typing import Any

NO_TEMPLATE = "cloudft: this file has no chat template"
NOT_LOADED = "cloudft: llama.cpp cannot load this file"
TEMPLATE_USED = "cloudft: chat template:"


def main() -> None:
    settings = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sock = socket.socket(fileno=int(sys.argv[1]))

    import uvicorn

    app = make_app(settings)
    server = uvicorn.Server(uvicorn.Config(app, log_level="info", timeout_graceful_shutdown=2))
    server.run(sockets=[sock])


def make_app(settings: dict[str, Any]) -> Any:
    """llama_cpp.server's application with the model loaded.

    ``settings``: model (path), name, api_key, context (tokens), threads, template (may be None; used only if the file
    brings none, or with replace_template), lora (path of an adapter, or None), logits (of every position).
    """
    from llama_cpp.server import settings as lib

    for name in list(os.environ):
        if name.lower() in {*lib.Settings.model_fields, "config_file"}:
            del os.environ[name]
    _no_hidden_penalty()
    _whole_tokens()

    from llama_cpp.server import app as lib_app
    from starlette.middleware.cors import CORSMiddleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    model = lib.ModelSettings(
        model=settings["model"],
        model_alias=settings["name"],
        # llama.cpp rounds up to this, and the library's own buffers would be too small for the rest.
        n_ctx=-(-settings["context"] // 256) * 256,
        n_threads=settings["threads"],
        n_threads_batch=settings["threads"],
        lora_path=settings["lora"],
        # Those of every position take context x vocabulary x 4 bytes: gigabytes.
        logits_all=settings["logits"],
        chat_format="chat_template.default",
    )
    try:
        app = lib_app.create_app(
            server_settings=lib.ServerSettings(api_key=settings["api_key"]), model_settings=[model]
        )
    except ValueError as exc:
        # Without a traceback: what llama.cpp itself printed just above tells more.
        sys.exit(f"{NOT_LOADED} ({exc})")
    app.user_middleware = [m for m in app.user_middleware if m.cls is not CORSMiddleware]
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    llama = lib_app._llama_proxy(None)
    _use_template(llama, settings["template"], settings["replace_template"])
    if settings["logits"]:
        _tell_prompt_logprobs(llama)
    return app


def _no_hidden_penalty() -> None:
    """Change the default before the routes are built from these models."""
    from llama_cpp.server import types

    for model in (types.CreateChatCompletionRequest, types.CreateCompletionRequest):
        model.model_fields["repeat_penalty"].default = 1.0
        model.model_rebuild(force=True)


def _whole_tokens() -> None:
    """Give every token a buffer of its own size; the library has 32 bytes, and takes "too small" for "empty"."""
    import ctypes

    from llama_cpp import _internals, llama_cpp

    def detokenize(self: Any, tokens: list[int], special: bool = False) -> bytes:
        output = b""
        for token in tokens:
            size = 64
            while True:
                buffer = ctypes.create_string_buffer(size)
                n = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, size, 0, special)
                if n >= 0:
                    break
                size = -n
            output += buffer.raw[:n]
        # As in the library: the first word after a beginning-of-sentence token has a space that is not its own.
        begins = bool(tokens) and tokens[0] == self.token_bos() and output[:1] == b" "
        return output[1:] if begins else output

    _internals.LlamaModel.detokenize = detokenize


def _tell_prompt_logprobs(llama: Any) -> None:
    """Answer requests with ``echo`` and ``logprobs`` right: the library gives each token of a prompt that has no
    beginning-of-sentence token the probability of the one after it."""
    library = llama.create_completion

    def create_completion(prompt: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("echo") and kwargs.get("logprobs") is not None and isinstance(prompt, str):
            return _echo(llama, prompt, kwargs.get("model"))
        return library(prompt, *args, **kwargs)

    llama.create_completion = create_completion


def _echo(llama: Any, prompt: str, model: str | None) -> dict[str, Any]:
    """The prompt's tokens and the likeliest next one, each with its log-probability and that of the likeliest."""
    tokens = llama.tokenize(prompt.encode(), add_bos=bool(llama._model.add_bos_token()), special=True)
    if len(tokens) >= llama.n_ctx():
        # In these words the library's server knows it for what it is.
        raise ValueError(f"Requested tokens ({len(tokens)}) exceed context window of {llama.n_ctx()}")
    llama.reset()
    llama.eval(tokens)
    after = llama.logits_to_logprobs(llama.scores[: len(tokens)])
    tokens.append(int(after[-1].argmax()))

    def text(token: int) -> str:
        return str(llama.detokenize([token], special=True).decode("utf-8", errors="replace"))

    told: list[tuple[str, float | None, dict[str, float] | None]] = [(text(tokens[0]), None, None)]
    for token, row in zip(tokens[1:], after, strict=True):
        best, name = int(row.argmax()), text(token)
        top = {name: float(row[token])}
        if best != token:
            top[text(best) if text(best) != name else f"<{best}>"] = float(row[best])
        told.append((name, float(row[token]), top))
    if tokens[0] == llama.token_bos() and llama._model.add_bos_token():
        told = told[1:]
    logprobs = {
        "tokens": [name for name, _, _ in told],
        "token_logprobs": [value for _, value, _ in told],
        "top_logprobs": [top for _, _, top in told],
        "text_offset": [sum(len(name) for name, _, _ in told[:n]) for n in range(len(told))],
    }
    choice = {"text": prompt + told[-1][0], "index": 0, "logprobs": logprobs, "finish_reason": "length"}
    count = len(tokens) - 1
    usage = {"prompt_tokens": count, "completion_tokens": 1, "total_tokens": count + 1}
    return {
        "id": "cmpl-echo",
        "object": "text_completion",
        "created": 0,
        "model": model or "",
        "choices": [choice],
        "usage": usage,
    }


def _use_template(llama: Any, given: str | None, replace: bool) -> None:
    """See to it that there is a chat template, and say which one it is: a chat without one would be a guess."""
    own = None if replace and given else llama.metadata.get("tokenizer.chat_template")
    template = own or given
    if template is None:
        sys.exit(NO_TEMPLATE)
    digest = hashlib.sha256(template.encode()).hexdigest()
    sys.stdout.write(f"{TEMPLATE_USED} {'own' if own else 'given'} {digest}\n")
    sys.stdout.flush()
    if own:
        return
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    def text(token: int) -> str:
        return str(llama._model.token_get_text(token)) if token != -1 else ""

    llama.chat_handler = Jinja2ChatFormatter(
        template=template,
        eos_token=text(llama.token_eos()),
        bos_token=text(llama.token_bos()),
        stop_token_ids=[llama.token_eos()],
    ).to_chat_handler()


def _end_with_parent() -> None:
    """Wait for the end of standard input, then end this process as the parent would have."""
    # Not through sys.stdin: a thread that sits in its lock makes the interpreter abort at its end.
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
