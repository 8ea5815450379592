"""A real GGUF file, made by hand in milliseconds, whose answers are known beforehand.

The model is a table: the embedding of token i is the i-th unit vector, attention and feed-forward are zero, and
the output matrix says which token follows which. Its chat template ends with the last character of the last
message, so that this character chooses the answer: the question "…a" is answered by ``answers["a"]``.
Both llama.cpp servers load it like any other model.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from jobs.spec import RunSpec
from local.config import StoreConfig
from local.evaluation.task import JsonTask, Task
from local.files import sha256_file, write_text
from local.project import Project, RunFolder
from local.quantizing.verify import Verification
from local.runs.records import RunRecord
from local.serving.versions import MANIFEST, MODEL, Manifest, promote

# Every rendering ends with the character that chooses the answer; a server that ignores the file's template and
# falls back to its own ChatML ends with a line feed, which chooses no answer.
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ messages[-1].content[-1:] }}{% endif %}"
)
WIDTH = 288
LOOP = "LOOP "
"""An answer that never ends by itself, unless a repetition penalty ends it."""

_U32, _I32, _F32, _STRING, _ARRAY = 4, 5, 6, 8, 9


def write_table_gguf(
    path: Path,
    answers: Mapping[str, str],
    *,
    template: str | None = TEMPLATE,
    context: int = 2048,
    piece_bytes: int = 24,
    special: Sequence[str] = (),
) -> Path:
    """Write the model that answers a question ending in ``c`` with ``answers[c]``; ``LOOP`` repeats itself.

    An answer is cut into tokens of at most ``piece_bytes`` bytes. ``special``: further control tokens, such as
    "<|fim_middle|>"; they too may stand in ``answers``, for a prompt that ends with one.
    """
    byte_tokens = _byte_tokens()
    tokens = [byte_tokens[b] for b in range(256)] + ["<|im_start|>", "<|im_end|>", *special]
    end = 257
    follow: dict[int, dict[int, float]] = {i: {end: 1.0} for i in range(WIDTH)}
    begins: dict[str, int] = {}
    for char, answer in answers.items():
        before = tokens.index(char) if char in special else ord(char)
        if answer in begins:
            follow[before] = {begins[answer]: 1.0}
            continue
        begins[answer] = len(tokens)
        for piece in _pieces(answer.encode(), byte_tokens, set(tokens), piece_bytes):
            follow[before] = {len(tokens): 1.0}
            before = len(tokens)
            tokens.append(piece)
        follow[before] = {before: 1.0, end: 0.95} if answer == LOOP else {end: 1.0}
    assert len(tokens) <= WIDTH, "too many answers"
    tokens += [f"<unused{i}>" for i in range(WIDTH - len(tokens))]
    metadata = _metadata(tokens, end, template, context)
    _write(path, metadata, _tensors(follow))
    return path


def _pieces(answer: bytes, byte_tokens: Mapping[int, str], taken: set[str], most: int) -> list[str]:
    """An answer as tokens that no other answer has: a token alone decides which one follows."""
    pieces: list[str] = []
    while answer:
        for size in range(min(most, len(answer)), 1, -1):
            piece = "".join(byte_tokens[b] for b in answer[:size])
            if piece not in taken and len(answer) - size != 1:
                break
        else:
            raise AssertionError(f"no new token for {answer!r}")
        taken.add(piece)
        pieces.append(piece)
        answer = answer[size:]
    return pieces


def _metadata(tokens: list[str], end: int, template: str | None, context: int) -> list[tuple[str, int, Any]]:
    entries: list[tuple[str, int, Any]] = [
        ("general.architecture", _STRING, "llama"),
        ("general.name", _STRING, "table"),
        ("llama.vocab_size", _U32, WIDTH),
        ("llama.context_length", _U32, context),
        ("llama.embedding_length", _U32, WIDTH),
        ("llama.block_count", _U32, 1),
        ("llama.feed_forward_length", _U32, 32),
        ("llama.attention.head_count", _U32, 9),
        ("llama.attention.head_count_kv", _U32, 9),
        ("llama.attention.layer_norm_rms_epsilon", _F32, 1e-6),
        ("llama.rope.dimension_count", _U32, 32),
        ("tokenizer.ggml.model", _STRING, "gpt2"),
        ("tokenizer.ggml.pre", _STRING, "gpt-2"),
        ("tokenizer.ggml.tokens", _ARRAY, (_STRING, tokens)),
        # 1 is an ordinary token, 3 a control token.
        ("tokenizer.ggml.token_type", _ARRAY, (_I32, [3 if t.startswith("<|") else 1 for t in tokens])),
        ("tokenizer.ggml.merges", _ARRAY, (_STRING, ["Ġ Ġ"])),
        ("tokenizer.ggml.eos_token_id", _U32, end),
        ("tokenizer.ggml.bos_token_id", _U32, end - 1),
    ]
    if template is not None:
        entries.append(("tokenizer.chat_template", _STRING, template))
    return entries


def _tensors(follow: dict[int, dict[int, float]]) -> dict[str, tuple[tuple[int, ...], bytes]]:
    """Name → (dimensions, fastest first; little-endian float32)."""

    def zeros(*shape: int) -> tuple[tuple[int, ...], bytes]:
        size = 4
        for n in shape:
            size *= n
        return shape, bytes(size)

    ones = ((WIDTH,), struct.pack(f"<{WIDTH}f", *[1.0] * WIDTH))
    unit, table = bytearray(4 * WIDTH * WIDTH), bytearray(4 * WIDTH * WIDTH)
    for i, row in follow.items():
        struct.pack_into("<f", unit, 4 * (i * WIDTH + i), 1.0)
        for successor, weight in row.items():
            struct.pack_into("<f", table, 4 * (successor * WIDTH + i), weight)
    square = (WIDTH, WIDTH)
    return {
        "token_embd.weight": (square, bytes(unit)),
        "output_norm.weight": ones,
        "output.weight": (square, bytes(table)),
        "blk.0.attn_norm.weight": ones,
        **{f"blk.0.attn_{x}.weight": zeros(WIDTH, WIDTH) for x in ("q", "k", "v", "output")},
        "blk.0.ffn_norm.weight": ones,
        "blk.0.ffn_gate.weight": zeros(WIDTH, 32),
        "blk.0.ffn_up.weight": zeros(WIDTH, 32),
        "blk.0.ffn_down.weight": zeros(32, WIDTH),
    }


def _write(path: Path, metadata: list[tuple[str, int, Any]], tensors: dict[str, tuple[tuple[int, ...], bytes]]) -> None:
    """The GGUF container, version 3: header, metadata, tensor table, data aligned to 32 bytes."""
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, kind, value in metadata:
        out += _string(key) + struct.pack("<I", kind) + _value(kind, value)
    offset = 0
    for name, (shape, data) in tensors.items():
        out += _string(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        out += struct.pack("<IQ", 0, offset)
        offset += len(data) + -len(data) % 32
    out += bytes(-len(out) % 32)
    for _, data in tensors.values():
        out += data + bytes(-len(data) % 32)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(out)


def _value(kind: int, value: Any) -> bytes:
    if kind == _STRING:
        return _string(value)
    if kind == _ARRAY:
        item_kind, items = value
        packed = b"".join(_value(item_kind, item) for item in items)
        return struct.pack("<IQ", item_kind, len(items)) + packed
    return struct.pack({_U32: "<I", _I32: "<i", _F32: "<f"}[kind], value)


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _byte_tokens() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {b: chr(b) for b in plain}
    for n, b in enumerate(b for b in range(256) if b not in table):
        table[b] = chr(256 + n)
    return table


def write_rows(path: Path, rows: list[tuple[str, Any]]) -> Path:
    """A hold-out file: one line per (question, expected answer); an answer that is no text is written as JSON."""
    texts = [(q, a if isinstance(a, str) else json.dumps(a)) for q, a in rows]
    lines = [
        json.dumps({"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]})
        for q, a in texts
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines))
    return path


SCHEMA = {
    "type": "object",
    "properties": {"category": {"enum": ["billing", "bug"]}, "priority": {"enum": ["high", "low"]}},
    "required": ["category", "priority"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Trained:
    """A project with a run that has been trained, pulled and quantised, as far as an evaluation can tell."""

    project: Project
    run: RunFolder
    base: Path
    tuned: Path


def make_trained(
    folder: Path,
    rows: list[tuple[str, Any]],
    before: Mapping[str, str],
    after: Mapping[str, str],
    *,
    base_template: str | None = TEMPLATE,
    max_tokens: int = 16,
    context: int = 256,
    run_id: str = "r20260101-000000-demo",
    task: Task | None = None,
    metric: Sequence[str] = (),
    special: Sequence[str] = (),
    template: str = TEMPLATE,
) -> Trained:
    """Lay out such a project: the base answers by the table ``before``, the tuned model by ``after``.

    ``task``: None for one of JSON with ``SCHEMA``; ``metric``: of the user's own; ``special`` as for the table models;
    ``template``: of the tuned model.
    """
    project = Project(folder)
    run = project.run(run_id)
    holdout = write_rows(run.holdout, rows)
    revision = "b" * 64
    data = {
        "train": {"path": "train.jsonl", "sha256": "0" * 64, "bytes": 1},
        "train_rows": 1,
        "holdout_sha256": sha256_file(holdout),
        "holdout_rows": len(rows),
        "split_seed": 7,
    }
    hyperparameters = {
        "max_steps": 1,
        "batch_size": 1,
        "gradient_accumulation": 1,
        "learning_rate": 0.001,
        "scheduler": "cosine",
        "warmup": 0.05,
        "weight_decay": 0.0,
        "max_length": 256,
        "lora_r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "dtype": "float32",
        "origins": {},
    }
    spec = RunSpec.model_validate(
        {
            "run_id": run_id,
            "project": "demo",
            "base": {"source": "folder", "id": "./base", "revision": revision},
            "data": data,
            "stages": [hyperparameters],
            "max_hours": 1,
            "seed": 1,
        }
    )
    write_text(run.spec, spec.model_dump_json())
    record = RunRecord(
        run_id=run_id,
        project="demo",
        created_at=0.0,
        provider="local",
        store=StoreConfig(url="./store"),
        spec_sha256=sha256_file(run.spec),
        status="completed",
    )
    write_text(run.record, record.model_dump_json())
    task = task or JsonTask(json_schema=SCHEMA, keys=("category", "priority"), max_tokens=max_tokens)
    write_text(run.task, task.model_dump_json())
    config = {
        "project": "demo",
        "base": "./base",
        "data": {"path": "data.jsonl"},
        "task": {"schema": "schema.json", "metric": list(metric)},
        "serve": {"context": context, "port": free_port()},
    }
    write_text(project.config_file, yaml.safe_dump(config))
    base = _version(project.models / "bases" / f"{revision[:16]}-q4_k_m", before, None, base_template, special)
    tuned = _version(project.models / f"{run_id}-q4_k_m-00000000", after, run_id, template, special)
    write_text(tuned.parent / "chat_template.jinja", template)
    promote(project, tuned.parent.name)
    return Trained(project, run, base, tuned)


def _version(
    root: Path, answers: Mapping[str, str], run_id: str | None, template: str | None, special: Sequence[str]
) -> Path:
    gguf = write_table_gguf(root / MODEL, answers, template=template, special=special)
    manifest = Manifest(
        version=root.name,
        run_id=run_id,
        base_id="./base",
        base_revision="b" * 64,
        adapter_sha256=None,
        spec_sha256=None,
        type="Q4_K_M",
        gguf_sha256=sha256_file(gguf),
        gguf_bytes=gguf.stat().st_size,
        llama_cpp_python="0.3.36",
        created_at="2026-01-01T00:00:00.000+00:00",
        verification=Verification(architecture="llama", conversations=1, tokens=1, end_of_turn="<|im_end|>"),
    )
    write_text(root / MANIFEST, manifest.model_dump_json())
    return gguf


def free_port() -> int:
    """A port that is free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
