"""The demo's base: a language model of 1.4 million parameters, pretrained here in half a minute.

It has the shape of Qwen2 (so every tool that knows Qwen2 knows it) and a tokenizer of its own: byte-level BPE
with Qwen2's pattern. It can chat a little, in prose and in JSON of other keys, and it knows nothing of the
demo's format. What decides whether it learns in so few steps: ``initializer_range`` 0.06 (0.02 fails at this
size), a small loss weight on what the user says, tokens for whole words, and Muon for the matrices (AdamW alone
needs about twice the steps, and then learns the product's name only with some seeds).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, Final

from cloudft.errors import EnvironmentProblem, UsageError
from local.demo import demo_tickets
from local.files import need_space, sha256_file, write_json
from local.progress import Progress
from local.quantizing.toolchain import cache_folder

Tensor = Any  # a torch tensor; torch is imported where it is used

SPECIAL: Final = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Qwen2's pattern, to the letter: converters recognise a pre-tokenizer by it.
QWEN2_PATTERN: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
VOCABULARY: Final = 880
# Dimensions are multiples of 256, so that Q4_K applies to every matrix.
ARCHITECTURE: Final[dict[str, Any]] = {
    "vocab_size": 896,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.06,
    "tie_word_embeddings": True,
}
CHATS: Final = 8000
STEPS: Final = 200
BATCH: Final = 16
MATRIX_RATE: Final = 0.01
OTHER_RATE: Final = 3e-3
WARMUP_STEPS: Final = 10
USER_WEIGHT: Final = 0.1
SEED: Final = 7

FILES: Final = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
_MANIFEST: Final = "manifest.json"


def build_demo_base(folder: Path, progress: Progress) -> Path:
    """Put the demo's base into ``folder``, pretraining it only if no cache has it yet; returns ``folder``.

    The cache is keyed by the recipe (this module, the texts and the template), and its files are checked by
    hash before they are copied. A folder that holds this very base is left alone; one of another recipe, or a
    damaged one, is replaced.

    Raises:
        UsageError: ``folder`` holds something else than a base that was made here.
        EnvironmentProblem: the packages to pretrain it are missing, or the disk is full.
    """
    key = recipe_key()
    if folder.exists() and any(folder.iterdir()):
        if _made_by(folder) is None:
            raise UsageError(
                f"{folder} is not empty, and what it holds was not made by the demo",
                effect="nothing was changed",
                hint=f"move it away, or choose another folder:  mv {folder} {folder}.old",
            )
        if _made_by(folder) == key and _is_like(folder, cache_folder() / "demo-base" / key):
            return folder
    cached = _cached(key, progress)
    need_space(folder.parent, sum((cached / name).stat().st_size for name in FILES), "the demo's base")
    with _atomic_folder(folder) as part:
        for name in FILES:
            shutil.copyfile(cached / name, part / name)
    return folder


def recipe_key() -> str:
    """What the base is made of, as 16 hexadecimal digits: another recipe is another base."""
    digest = hashlib.sha256()
    for source in (Path(__file__), Path(demo_tickets.__file__)):
        digest.update(source.read_bytes())
    digest.update(chat_template().encode())
    return digest.hexdigest()[:16]


def chat_template() -> str:
    """ChatML, as the trainer knows it."""
    return (resources.files("jobs") / "chatml.jinja").read_text(encoding="utf-8")


def is_demo_base(folder: Path) -> bool:
    """Whether the base in ``folder`` was made by the demo, by this recipe or an earlier one."""
    return _made_by(folder) is not None


def _made_by(folder: Path) -> str | None:
    """The recipe that made the base in ``folder``; None if it is none of ours."""
    try:
        recipe = json.loads((folder / "config.json").read_text(encoding="utf-8"))["cloudft_recipe"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return str(recipe)


def _is_like(folder: Path, cached: Path) -> bool:
    """Whether ``folder`` has all files, and, where the cache can tell, the right ones."""
    if not all((folder / name).is_file() for name in FILES):
        return False
    if not _is_whole(cached):
        return True
    return all(sha256_file(folder / name) == sha256_file(cached / name) for name in FILES)


def _cached(key: str, progress: Progress) -> Path:
    """The cache's copy, made or made again where it is missing or damaged."""
    from filelock import FileLock

    root = cache_folder() / "demo-base"
    root.mkdir(parents=True, exist_ok=True)
    entry = root / key
    with FileLock(root / f"{key}.lock"):  # two demos at once pretrain once
        if not _is_whole(entry):
            shutil.rmtree(entry, ignore_errors=True)
            with _atomic_folder(entry) as part:
                _make(part, key, progress)
                write_json(part / _MANIFEST, {name: sha256_file(part / name) for name in FILES})
    return entry


def _is_whole(entry: Path) -> bool:
    try:
        manifest = json.loads((entry / _MANIFEST).read_text(encoding="utf-8"))
        return all(sha256_file(entry / name) == manifest[name] for name in FILES)
    except (OSError, ValueError, KeyError):
        return False


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Only the command line writes to the terminal."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _atomic_folder(folder: Path) -> Iterator[Path]:
    """A folder that takes its place (and that of an older one) when it is complete, and is gone if it never was."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part"))
    try:
        yield part
        for path in part.iterdir():
            with path.open("rb") as src:
                os.fsync(src.fileno())
        part.chmod(0o755)
        if folder.exists():
            old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".old"))
            folder.rename(old / folder.name)
            part.rename(folder)
            shutil.rmtree(old)
        else:
            part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _make(folder: Path, key: str, progress: Progress) -> None:
    """Train the tokenizer, pretrain the model, and write both."""
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as exc:
        raise EnvironmentProblem(
            f"the demo's base is pretrained here, which needs the package {exc.name}",
            effect="nothing was written",
            hint="install it:  pip install 'cloudft[train,local]'",
        ) from exc
    chats = demo_tickets.generic_chats(CHATS, SEED)
    progress("tokenizer", 0, 1, "files")
    tokenizer = _train_tokenizer(chats)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", _tokenizer_config(tokenizer))
    rows = [_encode(tokenizer, chat) for chat in chats]
    model = _pretrain(rows, tokenizer, progress)
    model.config.cloudft_recipe = key
    with _no_progress_bars():
        model.save_pretrained(folder)


def _train_tokenizer(chats: list[demo_tickets.Messages]) -> Any:
    """Byte-level BPE of ``VOCABULARY`` tokens, the special ones last and in Qwen's order."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    byte_level = {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tokenizer.post_processor = processors.ByteLevel(**byte_level)
    tokenizer.decoder = decoders.ByteLevel(**byte_level)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [message["content"] for chat in chats for message in chat]
    # The task's own words get tokens too: a real base's vocabulary knows such words as well.
    texts += [ticket.answer() for ticket in demo_tickets.tickets(8000, SEED)]
    texts += ["system", "user", "assistant"] * 500
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def _tokenizer_config(tokenizer: Any) -> dict[str, Any]:
    """The file beside ``tokenizer.json``, with Qwen2's keys; the chat template stays inside it."""
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(tokenizer.token_to_id(token)): {"content": token, **plain} for token in SPECIAL},
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "chat_template": chat_template(),
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": ARCHITECTURE["max_position_embeddings"],
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def _encode(tokenizer: Any, chat: demo_tickets.Messages) -> tuple[list[int], list[float]]:
    """Token ids of a chat in ChatML, and each one's weight in the loss."""
    ids: list[int] = []
    weights: list[float] = []
    for message in chat:
        head = tokenizer.encode(f"<|im_start|>{message['role']}\n").ids
        body = tokenizer.encode(f"{message['content']}<|im_end|>").ids
        tail = tokenizer.encode("\n").ids
        said = 1.0 if message["role"] == "assistant" else USER_WEIGHT
        ids += head + body + tail
        weights += [USER_WEIGHT] * len(head) + [said] * len(body) + [USER_WEIGHT] * len(tail)
    return ids, weights


def _pretrain(rows: list[tuple[list[int], list[float]]], tokenizer: Any, progress: Progress) -> Any:
    """Next-token prediction with weights; one thread, which is quicker here and repeats bit for bit."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            config = Qwen2Config(
                **ARCHITECTURE,
                bos_token_id=None,
                eos_token_id=tokenizer.token_to_id("<|im_end|>"),
                pad_token_id=tokenizer.token_to_id("<|endoftext|>"),
            )
            model = Qwen2ForCausalLM(config).train()
            _optimise(model, rows, progress)
    finally:
        torch.set_num_threads(threads)
    # A base is a 16-bit model.
    return model.eval().to(torch.bfloat16)


def _optimise(model: Any, rows: list[tuple[list[int], list[float]]], progress: Progress) -> None:
    import torch
    from torch.nn import functional

    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in named if p.ndim != 2 or "embed" in name]
    optimizers = (
        (torch.optim.Muon(matrices, lr=MATRIX_RATE, momentum=0.95, weight_decay=0.0), MATRIX_RATE),
        (torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.95), weight_decay=0.0), OTHER_RATE),
    )
    for step in range(STEPS):
        picked = torch.randint(len(rows), (BATCH,)).tolist()
        ids, weights = _batch([rows[i] for i in picked], model.config.pad_token_id)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        losses = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss = (losses * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, rate in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * _schedule(step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        progress("pretrain the demo's base", step + 1, STEPS, "steps", f"loss {loss.item():.3f}")


def _schedule(step: int) -> float:
    """Share of the learning rate: linear warm-up, then a cosine down to zero."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    return 0.5 * (1 + math.cos(math.pi * (step - WARMUP_STEPS) / (STEPS - WARMUP_STEPS)))


def _batch(rows: list[tuple[list[int], list[float]]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and weights of shape (rows, longest row), padded on the right with weight 0."""
    import torch

    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row, _ in rows])
    weights = torch.tensor([row + [0.0] * (longest - len(row)) for _, row in rows])
    return ids, weights
