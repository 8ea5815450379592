"""Is the file that would be served the model that was trained? Checked before a version exists.

It loads, with the types that were planned; it is of the right architecture; it carries the trained chat template;
template and tokenizer give the same token ids here as in training, over the run's own rows and over odd text; it stops
where it should; and how far its predictions are from the 16-bit merge is measured, and not too far.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from cloudft.errors import VerifyError
from local.progress import Progress
from local.quantizing import divergence
from local.quantizing.verify_tokens import (
    ODD_TEXTS,
    Messages,
    end_of_turn,
    odd_conversations,
    own_template,
    same_ids,
    same_template,
    same_tokens,
)
from local.quantizing.worker import UNCHANGED

Predict = Callable[[list[list[int]]], Any]  # rows of token ids → logits (tokens, vocabulary)

REFERENCE_TOKENS = 192  # compared with the 16-bit merge; enough to see a broken file, seconds on a large model


class TooFar(VerifyError):
    """A file diverges more than its type may. ``rows`` are the tokens it was compared on, ``lost`` nats per token."""

    def __init__(self, what: str, rows: list[list[int]], lost: float) -> None:
        super().__init__(what, effect=UNCHANGED)
        self.rows, self.lost = rows, lost


class Verification(BaseModel):
    """What was found. Divergence in nats per token; agreement is the share of equal most likely tokens."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    architecture: str
    conversations: int
    tokens: int
    end_of_turn: str
    reference_tokens: int = 0
    kl_divergence: float | None = None
    kl_limit: float | None = None
    top1_agreement: float | None = None
    tensor_types: dict[str, int] = {}


def inspect(
    *,
    gguf: str,
    tokenizer: str,
    template: str | None,
    samples: list[Messages],
    reference: Predict | None,
    architecture: str | None,
    progress: Progress,
    served: str | None = None,
    types: dict[str, str] | None = None,
    kind: str | None = None,
    max_kl: float | None = None,
) -> dict[str, Any]:
    """Check a GGUF file against the tokenizer and template of training. Runs in the child of
    ``local.quantizing.worker``.

    Args:
        tokenizer: folder with the tokenizer as trained (an adapter's or a model's).
        template: the trained chat template; None: the one in the tokenizer's folder.
        samples: conversations; each is rendered and tokenised by both sides.
        reference: predicts as the 16-bit model does, to measure the loss; None: it is not measured.
        architecture: llama.cpp's name for what the file should be; None: any.
        served: the template that the file was given, which renders in servers as ``template`` did in training; None:
            ``template`` itself.
        types: tensor name → type, as planned.
        kind: type of the file, which decides what it may lose; None: the loss is measured only.
        max_kl: what it may lose instead, in nats per token.

    Returns:
        The fields of a ``Verification``.

    Raises:
        TooFar: it lost more.
        VerifyError: the file is not fit to be served; the message names the cause.
    """
    progress("verify", 0, 4, "checks", "load")
    from transformers import AutoTokenizer

    trained: Any = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    counts = _planned_types(gguf, types)
    model = _load(gguf)
    found = model.metadata.get("general.architecture", "")
    if architecture and found != architecture:
        raise VerifyError(f"{gguf}: the architecture is {found!r}, but the base is {architecture!r}")
    progress("verify", 1, 4, "checks", "template and tokens")
    conversations, odd = _same_language(model, trained, template, served, samples)
    progress("verify", 2, 4, "checks", "end of turn")
    result: dict[str, Any] = {
        "architecture": found,
        "conversations": len(conversations),
        "tokens": sum(map(len, conversations)) + sum(map(len, odd)),
        "end_of_turn": end_of_turn(model, trained, conversations),
        "tensor_types": counts,
    }
    _stops(model, trained.eos_token_id, (conversations or odd)[0])
    progress("verify", 3, 4, "checks", "predictions")
    compared = _first_tokens(conversations or odd)
    result |= _compare(model, reference, compared)
    if kind is not None and "kl_divergence" in result:
        result["kl_limit"] = divergence.limit_of(kind, max_kl)
        _refuse_too_far(kind, result, compared)
    progress("verify", 4, 4, "checks")
    return Verification.model_validate(result).model_dump()


def _same_language(
    model: Any, trained: Any, template: str | None, served: str | None, samples: list[Messages]
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of the conversations and of the odd texts, which are the same in the file as in training."""
    template = template or own_template(trained)
    same_template(model, served or template)
    rows = samples + odd_conversations(trained)
    conversations = [same_tokens(model, trained, template, row) for row in rows] if template else []
    return conversations, [same_ids(model, trained, text) for text in ODD_TEXTS]


def _refuse_too_far(kind: str, found: dict[str, Any], rows: list[list[int]]) -> None:
    if found["kl_divergence"] > found["kl_limit"]:
        raise TooFar(
            f"the {kind} file predicts too differently from the 16-bit merge: {found['kl_divergence']:.3f} nats per "
            f"token over {found['reference_tokens']} tokens, at most {found['kl_limit']:g} are allowed; "
            f"{found['top1_agreement']:.0%} of the most likely tokens agree",
            rows,
            found["kl_divergence"],
        )


def _planned_types(gguf: str, types: dict[str, str] | None) -> dict[str, int]:
    """How many tensors there are of each type, which must be those that were planned."""
    from local.quantizing import ggml

    if types is None:
        return {}
    found = ggml.tensor_types(Path(gguf))
    for name in sorted(set(found) | set(types)):
        if found.get(name) != types.get(name, "").upper():
            raise VerifyError(f"{gguf}: {name} is {found.get(name)}, and {types.get(name)} was planned")
    names = sorted(found.values())
    return {name: names.count(name) for name in dict.fromkeys(names)}


def _load(gguf: str) -> Any:
    """The model in llama.cpp, on the CPU, keeping the logits of every position."""
    import jinja2
    from llama_cpp import Llama

    try:
        with _weights_stay_mapped():
            return Llama(
                gguf,
                n_ctx=REFERENCE_TOKENS,
                n_batch=REFERENCE_TOKENS,
                n_threads=len(os.sched_getaffinity(0)),
                n_gpu_layers=0,
                logits_all=True,
                verbose=True,
            )
    except jinja2.TemplateError as exc:
        raise VerifyError(f"{gguf}: its chat template can't be read by the server: {exc}") from exc
    except ValueError as exc:
        raise VerifyError(f"llama.cpp can't load {gguf}: {exc}") from exc


@contextlib.contextmanager
def _weights_stay_mapped() -> Iterator[None]:
    """llama.cpp would make a second, repacked copy of all weights in memory; ``Llama`` has no option against it."""
    from llama_cpp import llama_cpp

    real = llama_cpp.llama_model_default_params

    def mapped() -> Any:
        params = real()
        params.use_extra_bufts = False
        return params

    llama_cpp.llama_model_default_params = mapped
    try:
        yield
    finally:
        llama_cpp.llama_model_default_params = real


def _stops(model: Any, end: int, prompt: list[int]) -> None:
    """Let the model choose its end token, and see that the answer ends there."""
    from llama_cpp import LogitsProcessorList

    def choose(_ids: Any, scores: Any) -> Any:
        scores[:] = -1e9
        scores[end] = 0
        return scores

    answer = model.create_completion(
        prompt[: REFERENCE_TOKENS // 2], max_tokens=3, temperature=0, logits_processor=LogitsProcessorList([choose])
    )
    (choice,) = answer["choices"]
    if choice["finish_reason"] != "stop" or choice["text"]:
        raise VerifyError(f"the end-of-text token does not end an answer in llama.cpp: it gave {choice['text']!r}")


def _first_tokens(conversations: list[list[int]]) -> list[list[int]]:
    rows: list[list[int]] = []
    left = REFERENCE_TOKENS
    for ids in conversations:
        if left > 0 and ids:
            rows.append(ids[:left])
            left -= len(rows[-1])
    return rows


def _compare(model: Any, reference: Predict | None, rows: list[list[int]]) -> dict[str, Any]:
    """How far the predictions are from the reference's."""
    import numpy as np

    ours = logits(model, rows or [[model.token_eos()]])
    if not np.isfinite(ours).all():
        raise VerifyError("the file's predictions are not finite numbers: it is damaged, or the training diverged")
    if reference is None or not rows:
        return {}
    model.close()
    kl, agreement = divergence.compare(ours, reference(rows))
    return {"reference_tokens": len(ours), "kl_divergence": round(kl, 6), "top1_agreement": round(agreement, 4)}


def predictions_of(gguf: Path, rows: list[list[int]]) -> Any:
    """What a GGUF file predicts: logits (tokens, vocabulary)."""
    model = _load(str(gguf))
    try:
        return logits(model, rows)
    finally:
        model.close()


def logits(model: Any, rows: list[list[int]]) -> Any:
    """Logits at every token of every row, as (tokens, vocabulary)."""
    import numpy as np

    out = []
    for ids in rows:
        model.reset()
        model.eval(ids)
        out.append(model.scores[: len(ids)].copy())
    return np.concatenate(out)
