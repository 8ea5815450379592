"""Rows → tokens: what each stage is trained on, encoded before the first step of the first stage.

A row that cannot be used must be found before training is paid for, not hours later. A file holds what its stage needs:

    sft   {"messages": [{"role", "content"}, …]}, which ends with an answer
    cpt   {"text"}
    dpo   {"prompt": [{"role", "content"}, …], "chosen": answer, "rejected": answer}
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.model import Tuned
from jobs.outcome import TrainError
from jobs.packing import keeps_apart, pack
from jobs.rendering import (
    Encoded,
    Example,
    Message,
    RenderError,
    encode_answer,
    encode_rows,
    render_answer,
    render_messages,
)
from jobs.runlog import log, say
from jobs.spec import FileRef, RunSpec, Stage
from jobs.transfer import sha256_file


@dataclass(frozen=True)
class StageData:
    """A stage with its ``datasets.Dataset``. The stage is the spec's but for what this machine cannot do."""

    stage: Stage
    dataset: Any


def stage_data(inputs: Path, spec: RunSpec, tuned: Tuned) -> list[StageData]:
    """The data of every stage.

    Raises:
        TrainError: a file is not the one of the spec, or its rows could teach nothing.
        RenderError: a row does not fit the chat template.
    """
    from datasets import Dataset

    replay = load_rows(inputs, spec.data.replay) if spec.data.replay else []
    found = []
    for stage in spec.stages:
        if stage.kind == "dpo":
            found.append(StageData(stage, Dataset.from_list(encode_pairs(_read(inputs, stage.data), tuned, stage))))
            continue
        if stage.kind == "cpt":
            examples = encode_texts([row["text"] for row in _read(inputs, stage.data)], tuned, stage)
            examples += encode_texts([_whole(tuned, row) for row in replay], tuned, stage, "replay: general rows")
        else:
            examples = list(encode(load_rows(inputs, spec.data.train), tuned, stage).examples)
            examples += encode(replay, tuned, stage, "replay: general rows").examples if replay else ()
        if replay:
            log(
                "replay", f"{len(replay)} rows", f"general rows among those of this {stage.kind} stage, in seeded order"
            )
        found.append(_packed(stage, examples, tuned))
    return found


def load_rows(inputs: Path, ref: FileRef) -> list[list[Message]]:
    """The conversations of a data file, which must be the one that the spec names."""
    return [row["messages"] for row in _read(inputs, ref)]


def _read(inputs: Path, ref: FileRef | None) -> list[dict[str, Any]]:
    assert ref is not None
    path = inputs / ref.path
    try:
        if sha256_file(path) != ref.sha256:
            raise TrainError(f"{path.name} is not the file that the run was submitted with (its sha256 differs)")
        with path.open(encoding="utf-8") as lines:
            return [dict(json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError) as exc:
        raise TrainError(f"the training data {path.name} cannot be read: {exc}") from exc


def encode(rows: list[list[Message]], tuned: Tuned, stage: Stage, general: str = "") -> Encoded:
    """Tokens and labels; refuses rows that could teach nothing, and says what it cut.

    Args:
        general: what to call rows that are not the user's own; of those, ones that are too long are left out.
    """
    max_length = stage.max_length
    encoded = encode_rows(rows, tuned.tokenizer, tuned.template, stops=tuned.stops, max_length=max_length)
    advice = _advice(max_length, encoded.longest)
    if encoded.masked and not general:
        raise TrainError(
            f"{encoded.masked} of {encoded.masked + len(encoded.examples)} answers lie wholly behind the first "
            f"{max_length} tokens, so nothing of them would be learned: {advice}"
        )
    count = len(encoded.examples)
    say(
        f"{general or stage.kind}: {len(rows)} rows, {count} answers, {encoded.tokens:,} tokens, "
        f"{encoded.trained:,} of them in the loss ({encoded.trained / max(encoded.tokens, 1):.0%}); "
        f"the longest has {encoded.longest}"
    )
    if encoded.truncated:
        say(f"warning: {encoded.truncated} of {count} rows are cut, and with them the end of their answer: {advice}")
    return encoded


def encode_texts(texts: list[str], tuned: Tuned, stage: Stage, what: str = "") -> list[Example]:
    """Documents as tokens that all count, each with the end token behind it; a long one becomes several examples."""
    end = [int(tuned.tokenizer.eos_token_id)]
    examples = []
    for text in texts:
        ids = tuned.tokenizer.encode(text, add_special_tokens=True)
        ids = ids if ids[-1:] == end else ids + end
        pieces = [ids[at : at + stage.max_length] for at in range(0, len(ids), stage.max_length)]
        # A lone token has nothing before it that could tell it.
        examples += [Example(piece, list(piece)) for piece in pieces if len(piece) > 1]
    tokens = sum(len(example.input_ids) for example in examples)
    say(f"{what or stage.kind}: {len(texts)} documents, {len(examples)} pieces, {tokens:,} tokens, all in the loss")
    return examples


def encode_pairs(rows: list[dict[str, Any]], tuned: Tuned, stage: Stage) -> list[dict[str, list[int]]]:
    """Prompt and both answers as tokens, rendered as the answers of an sft row are; cut ones are counted."""
    found, cut, longest = [], 0, 0
    for number, row in enumerate(rows, 1):
        both = []
        for name in ("chosen", "rejected"):
            messages = [*row["prompt"], {"role": "assistant", "content": row[name]}]
            both.append(_last_answer(messages, tuned, f"row {number}, {name}"))
        (prompt, chosen), (same, rejected) = both
        assert prompt == same
        length = len(prompt) + max(len(chosen), len(rejected))
        longest, cut = max(longest, length), cut + (length > stage.max_length)
        room = stage.max_length - len(prompt)
        if room < 1 or chosen[:room] == rejected[:room]:
            raise TrainError(
                f"row {number}: within {stage.max_length} tokens its two answers are the same, so nothing of it would "
                f"be learned: {_advice(stage.max_length, length)}"
            )
        found.append({"prompt_ids": prompt, "chosen_ids": chosen[:room], "rejected_ids": rejected[:room]})
    say(f"dpo: {len(found)} pairs; the longest has {longest} tokens")
    if cut:
        say(f"warning: {cut} of {len(found)} pairs are cut: {_advice(stage.max_length, longest)}")
    return found


def _last_answer(messages: list[Message], tuned: Tuned, where: str) -> tuple[list[int], list[int]]:
    """Prompt and answer as tokens, of the last message alone."""
    try:
        example = encode_answer(tuned.tokenizer, render_answer(tuned.tokenizer, tuned.template, messages), tuned.stops)
    except RenderError as exc:
        raise RenderError(f"{where}: {exc}") from exc
    begin = len(example.input_ids) - example.trained
    return example.input_ids[:begin], example.input_ids[begin:]


def _whole(tuned: Tuned, row: list[Message]) -> str:
    return render_messages(tuned.tokenizer, tuned.template, row, generation_prompt=False)


def _packed(stage: Stage, examples: list[Example], tuned: Tuned) -> StageData:
    """The examples in blocks, where the stage asks for that and the model keeps what is in a block apart."""
    from datasets import Dataset

    # By columns: to take an example apart copies each of its tokens, which takes twenty times as long.
    columns = {"input_ids": [e.input_ids for e in examples], "labels": [e.labels for e in examples]}
    dataset = Dataset.from_dict(columns)
    if not stage.packing:
        return StageData(stage, dataset)
    blocks = pack(dataset, stage.max_length)
    each = len(examples) / len(blocks)
    if apart := keeps_apart(tuned.model):
        log("packing", "bfd", f"{len(examples)} examples in {len(blocks)} blocks of {stage.max_length} tokens; {apart}")
        return StageData(stage, blocks)
    more = max(1, round(each))
    log("packing", False, f"this model would let packed examples see each other; {more} times the accumulation instead")
    together = stage.gradient_accumulation * more
    return StageData(stage.model_copy(update={"packing": False, "gradient_accumulation": together}), dataset)


def _advice(max_length: int, longest: int) -> str:
    return f"raise train.max_length (now {max_length}) to {longest}, or shorten the rows"
