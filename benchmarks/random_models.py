"""Models with random weights in the shapes of known ones, and conversations of random words."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

# What the models' own config.json say: Qwen2.5-0.5B, -1.5B, -3B and Llama-3.1-8B.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    name: (
        kind,
        {
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "intermediate_size": inner,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": keys,
            "tie_word_embeddings": tied,
        },
    )
    for name, kind, vocabulary, hidden, inner, layers, heads, keys, tied in (
        ("tiny", "Qwen2", 1024, 256, 512, 2, 4, 2, True),
        ("0.5B", "Qwen2", 151936, 896, 4864, 24, 14, 2, True),
        ("1.5B", "Qwen2", 151936, 1536, 8960, 28, 12, 2, True),
        ("3B", "Qwen2", 151936, 2048, 11008, 36, 16, 2, True),
        ("8B", "Llama", 128256, 4096, 14336, 32, 32, 8, False),
    )
}
SYLLABLES = [first + vowel for first in "bdfgklmnprstvz" for vowel in "aeiou"]
# A chat's template and the end of an answer, in tokens of this tokenizer.
TEMPLATE_TOKENS = 40


def config_of(size: str) -> Any:
    """The model's configuration, of transformers."""
    import torch
    import transformers

    kind, shape = SHAPES[size]
    config = getattr(transformers, f"{kind}Config")(**shape, bos_token_id=400, eos_token_id=402, pad_token_id=400)
    config.architectures, config.dtype = [f"{kind}ForCausalLM"], torch.bfloat16
    return config


def make_base(folder: Path, size: str) -> None:
    """Weights in bfloat16, in files of 4 GB, with a home-trained tokenizer. One tensor is in memory more than once."""
    import torch
    import transformers
    from huggingface_hub import save_torch_state_dict

    from tests.local.quantize_fixtures import make_tokenizer

    folder.mkdir(parents=True)
    make_tokenizer(folder)
    config = config_of(size)
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = getattr(transformers, config.architectures[0])(config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    weights = {
        name: torch.empty(p.shape, dtype=torch.bfloat16, device=device).normal_(0, 0.02).cpu()
        for name, p in model.named_parameters()
    }
    for name in weights:
        if "norm" in name:
            weights[name].fill_(1)
    save_torch_state_dict(weights, folder, max_shard_size="4GB", metadata={"format": "pt"})


def make_rows(path: Path, count: int, length: int, tokenizer: Path) -> list[int]:
    """Conversations, as JSON lines of messages; the tokens of each. None is longer than ``length``, template included.

    Their lengths are spread as people's data is: evenly in the logarithm, the shortest an eighth of the longest.
    """
    from tokenizers import Tokenizer

    reader = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    draw = random.Random(0)
    found = []
    with path.open("w", encoding="utf-8") as out:
        for number in range(count):
            # The first row is the longest, so that the longest is known.
            share = 1.0 if number == 0 else math.exp(draw.uniform(math.log(1 / 8), 0))
            room = max(8, round(length * share) - TEMPLATE_TOKENS)
            asked, answer = _words(draw, reader, room * 2 // 3), _words(draw, reader, room - room * 2 // 3)
            messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
            out.write(json.dumps({"messages": messages}) + "\n")
            found.append(len(reader.encode(asked).ids) + len(reader.encode(answer).ids) + TEMPLATE_TOKENS)
    return found


def _words(draw: random.Random, reader: Any, tokens: int) -> str:
    """Random words, of so many tokens at most."""
    words = ["".join(draw.choices(SYLLABLES, k=2)) for _ in range(tokens)]
    encoded = reader.encode(" ".join(words))
    end = encoded.offsets[min(tokens, len(encoded.ids)) - 1][1]
    return " ".join(words)[:end].strip() or "ba"
