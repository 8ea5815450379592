"""A tiny model, an adapter and a run, made here: no hub and no network but for the converter, fetched once."""

from __future__ import annotations

import functools
import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.rendering import served_template
from jobs.spec import Data, FileRef, RunSpec, Stage
from local.base import lock_base
from local.files import sha256_file
from local.project import Project, RunFolder
from local.quantizing.convert import QWEN2_REGEX
from local.quantizing.quantize import quantize_run
from local.quantizing.toolchain import Toolchain, ensure_toolchain
from local.serving.versions import Version

TEMPLATE = (
    "{%- for message in messages %}\n"
    "    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n"
    "{%- endif %}\n"
)
# The trained template differs from the base's own in its text, so that the wrong one is noticed.
TRAINED = TEMPLATE.replace("'<|im_end|>\\n'", "'<|im_end|>' + '\\n'")
# It marks the answers for training, which no engine understands.
TRAINED = TRAINED.replace(
    "    {{- '<|im_start|>' + message.role + '\\n' + message.content",
    "    {{- '<|im_start|>' + message.role + '\\n' }}\n"
    "    {%- if message.role == 'assistant' %}\n"
    "        {% generation %}{{- message.content }}{% endgeneration -%}\n"
    "    {%- else %}{{- message.content }}{% endif %}\n"
    "    {{- ''",
)
SERVED = served_template(TRAINED)
ROWS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "system", "content": "You sort support tickets."},
            {"role": "user", "content": f"The printer number {i} doesn't print since Monday."},
            {"role": "assistant", "content": json.dumps({"category": "hardware", "priority": i})},
        ]
    }
    for i in range(12)
]


PROMPT = list(range(40, 90))  # token ids to predict from


def no_progress(*_: Any, **__: Any) -> None:
    """Says nothing."""


def tokenizer_json(regex: str = QWEN2_REGEX) -> str:
    """A byte-level BPE trained at home, with ChatML's tokens, as the text of a tokenizer.json."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator((m["content"] for row in ROWS for m in row["messages"]), trainer)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return str(tokenizer.to_str())


def make_tokenizer(folder: Path) -> None:
    """A home-trained tokenizer with a chat template, as files."""
    (folder / "tokenizer.json").write_text(tokenizer_json())
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 512,
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def make_base(folder: Path, seed: int = 0, dtype: str = "bfloat16", hidden: int = 256) -> Path:
    """A random Qwen2 (2 layers, tied embeddings) with a home-trained tokenizer."""
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    folder.mkdir(parents=True)
    make_tokenizer(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=512,
            hidden_size=hidden,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            initializer_range=0.06,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def make_adapter(folder: Path, base: Path, seed: int = 1, template: str = TEMPLATE) -> Path:
    """A random LoRA on all linear layers, with the tokenizer and template beside it as training leaves them."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # this peft asks this transformers for a name that it renamed
        tuned = get_peft_model(model, lora)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn_like(weight) * 0.1)
    tuned.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((base / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_bytes((base / "tokenizer_config.json").read_bytes())
    (folder / "chat_template.jinja").write_text(template)
    return folder


def copy_project(root: Path, base: Path, adapter: Path) -> tuple[Project, RunFolder]:
    """A project of a test's own with one run, pulled, that was trained with ``TRAINED``."""
    project = Project(root)
    shutil.copytree(base, root / "base")
    run = make_run(project, "run-1")
    shutil.copytree(adapter, run.adapter)
    (run.adapter / "chat_template.jinja").write_text(TRAINED)
    write_result(run)
    return project, run


def write_result(run: RunFolder) -> None:
    """The run's result, as if what lies in its adapter's folder now were what it trained."""
    files = {
        path.relative_to(run.adapter).as_posix(): sha256_file(path) for path in run.adapter.rglob("*") if path.is_file()
    }
    run.result.write_text(json.dumps({"artifacts": {"adapter": {"files": files}}}))


def make_run(project: Project, run_id: str, base: str = "base") -> RunFolder:
    """A run folder as `pull` leaves it, but for the adapter."""
    run = project.run(run_id)
    run.root.mkdir(parents=True)
    run.train_data.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:8]))
    run.holdout.write_text("".join(json.dumps(row) + "\n" for row in ROWS[8:]))
    train = FileRef(path="train.jsonl", sha256=sha256_file(run.train_data), bytes=run.train_data.stat().st_size)
    stage = Stage(
        max_steps=1,
        batch_size=1,
        gradient_accumulation=1,
        learning_rate=1e-3,
        scheduler="cosine",
        warmup=0,
        weight_decay=0,
        max_length=128,
        lora_r=8,
        lora_alpha=16,
        lora_dropout=0,
        dtype="auto",
        origins={},
    )
    spec = RunSpec(
        run_id=run_id,
        project="tiny",
        base=lock_base(base, None, project.root),
        data=Data(train=train, train_rows=8, holdout_sha256=sha256_file(run.holdout), holdout_rows=4, split_seed=7),
        stages=(stage,),
        max_hours=1,
        seed=42,
    )
    run.spec.write_text(spec.model_dump_json())
    return run


@pytest.fixture
def toolchain() -> Toolchain:
    """The converter, from the cache of whoever runs the suite; fetched once if it is not there."""
    return ensure_toolchain(no_progress)


# Each module that imports a fixture has one of its own, whatever its scope: so what is costly is kept here.


@functools.cache
def _tiny_base(tmp: Path) -> Path:
    return make_base(tmp / "tiny" / "base")


@functools.cache
def _tiny_adapter(tmp: Path) -> Path:
    return make_adapter(tmp / "tiny" / "adapter", _tiny_base(tmp))


@dataclass(frozen=True)
class Quantised:
    """A run that was quantised once, and the stages that were heard of. Read it; copy it to change it."""

    project: Project
    run: RunFolder
    version: Version
    said: list[str]


@functools.cache
def _quantised(tmp: Path) -> Quantised:
    ensure_toolchain(no_progress)
    project, run = copy_project(tmp / "quantised", _tiny_base(tmp), _tiny_adapter(tmp))
    said: list[str] = []
    version = quantize_run(project, run, progress=lambda what, *_, **__: said.append(what))
    return Quantised(project, run, version, said)


@pytest.fixture
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read it; copy it to change it."""
    return _tiny_base(tmp_path_factory.getbasetemp())


@pytest.fixture
def tiny_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read it; copy it to change it."""
    return _tiny_adapter(tmp_path_factory.getbasetemp())


@pytest.fixture
def quantised(tmp_path_factory: pytest.TempPathFactory) -> Quantised:
    return _quantised(tmp_path_factory.getbasetemp())


@pytest.fixture
def made(tmp_path: Path, tiny_base: Path, tiny_adapter: Path) -> tuple[Project, RunFolder]:
    return copy_project(tmp_path / "project", tiny_base, tiny_adapter)


def nothing_left(project: Project) -> None:
    """No version, no current model, no debris, and no child process."""
    left = [path.name for path in project.models.iterdir()] if project.models.exists() else []
    assert [name for name in left if name != ".lock"] == []
    assert [child for child in psutil.Process().children(recursive=True) if is_worker(child)] == []


def is_worker(process: psutil.Process) -> bool:
    try:
        return any(part.endswith("convert_worker.py") for part in process.cmdline())
    except psutil.NoSuchProcess:
        return False


def logits(gguf: Path, ids: list[int]) -> Any:
    from llama_cpp import Llama

    model = Llama(str(gguf), n_ctx=256, logits_all=True, verbose=False)
    model.eval(ids)
    return model.scores[: len(ids)].copy()


def merged_logits(base: Path, adapter: Path, ids: list[int]) -> Any:
    """What transformers and peft say that the merged model predicts."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    with torch.inference_mode():
        return merged(torch.tensor([ids])).logits[0].numpy()


def relative_error(found: Any, wanted: Any) -> float:
    import numpy as np

    return float(np.sqrt(((found - wanted) ** 2).mean()) / wanted.std())
