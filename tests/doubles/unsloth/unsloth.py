"""A stand-in for the package ``unsloth``: the four calls that our seam makes, with the libraries' own model behind.

Each takes only what Unsloth's own takes (`tests/jobs/test_unsloth_backend.py` compares the signatures where Unsloth is
installed), and is written down, with its arguments, in the file that UNSLOTH_CALLS names.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

CHANGED = ("transformers", "trl", "peft")


def _tell(call: str, **arguments: Any) -> None:
    if "UNSLOTH_CALLS" in os.environ:
        with Path(os.environ["UNSLOTH_CALLS"]).open("a", encoding="utf-8") as out:
            out.write(json.dumps({"call": call, **arguments}, default=str) + "\n")


_tell(
    "import",
    before=[name for name in CHANGED if name in sys.modules],
    environment={
        name: value for name, value in os.environ.items() if name.startswith("UNSLOTH_") and "CALLS" not in name
    },
)


class FastLanguageModel:
    @staticmethod
    def from_pretrained(
        model_name: str,
        max_seq_length: int,
        dtype: Any,
        load_in_4bit: bool,
        use_gradient_checkpointing: str | bool,
        revision: str | None,
        use_exact_model_name: bool,
        random_state: int,
    ) -> tuple[Any, Any]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        told = dict(locals())
        _tell("from_pretrained", **{name: value for name, value in told.items() if not name.startswith("Auto")})
        model = AutoModelForCausalLM.from_pretrained(model_name, revision=revision or "main", dtype=dtype)
        model.max_seq_length = max_seq_length
        return model, AutoTokenizer.from_pretrained(model_name)

    @staticmethod
    def get_peft_model(
        model: Any,
        r: int,
        target_modules: str,
        lora_alpha: int,
        lora_dropout: float,
        bias: str,
        use_gradient_checkpointing: str | bool,
        random_state: int,
        max_seq_length: int,
        use_rslora: bool,
        init_lora_weights: bool,
    ) -> Any:
        from peft import LoraConfig, get_peft_model
        from transformers import set_seed

        _tell("get_peft_model", r=r, use_rslora=use_rslora, use_gradient_checkpointing=use_gradient_checkpointing)
        set_seed(random_state)
        config = LoraConfig(
            r=r,
            lora_alpha=lora_alpha,
            lora_dropout=lora_dropout,
            use_rslora=use_rslora,
            target_modules=target_modules,
            bias=bias,
            init_lora_weights=init_lora_weights,
            task_type="CAUSAL_LM",
        )
        return get_peft_model(model, config)

    @staticmethod
    def for_inference(model: Any) -> Any:
        _tell("for_inference")
        return model.eval()

    @staticmethod
    def for_training(model: Any) -> Any:
        _tell("for_training")
        return model.train()
