"""The ways that benchmarks/train.py compares, each run in a process of its own.

    python benchmarks/train_ways.py WAY FOLDER

``FOLDER/plan.json`` (``Plan``) says what is trained. Nothing but the standard library and what the way itself needs is
imported: Unsloth has an environment of its own. Writes ``FOLDER/told.json``.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

BEGAN = time.time()
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Plan:
    """``base``: a model's folder; ``data``: JSON lines of messages; ``length``: tokens of the longest row.

    ``rows`` for each optimiser step; ``at_once``: of them in one pass where a way has no opinion of its own. The first
    ``warm`` of the ``steps`` do not count.
    """

    base: str
    data: str
    method: str
    steps: int
    warm: int
    rows: int
    at_once: int
    length: int
    rank: int


@dataclass
class Told:
    """What a way says of itself. Of ``steps`` steps: ``seconds``, ``cpu`` seconds, ``tokens``, ``trained`` in the loss.

    ``before``: seconds to the first step; ``allocated``, ``reserved``: most bytes, by PyTorch's count of the GPU.
    """

    steps: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    tokens: int = 0
    trained: int = 0
    before: float = 0.0
    allocated: int = 0
    reserved: int = 0
    settings: dict[str, Any] = field(default_factory=dict)


class Counted:
    """Counts what goes through ``Trainer.training_step``, for every way alike, between two points of the training.

    Tokens are those that are not padding. The device is waited for at the two points only.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.told = plan, Told()
        self._since: float | None = None
        self._since_cpu = 0.0
        self._tokens: Any = 0
        self._trained: Any = 0

    @contextlib.contextmanager
    def counting(self) -> Iterator[Told]:
        """Counts the trainings inside."""
        import torch
        from transformers import Trainer

        real = Trainer.training_step

        def step(trainer: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            self._look(trainer, inputs)
            return real(trainer, model, inputs, *args, **kwargs)

        Trainer.training_step = step
        try:
            yield self.told
        finally:
            Trainer.training_step = real
        if torch.cuda.is_available():
            self.told.allocated, self.told.reserved = (
                torch.cuda.max_memory_allocated(),
                torch.cuda.max_memory_reserved(),
            )
        self.told.tokens, self.told.trained = int(self._tokens), int(self._trained)

    def _look(self, trainer: Any, inputs: dict[str, Any]) -> None:
        done, told, args = int(trainer.state.global_step), self.told, trainer.args
        if not told.settings:
            told.before = time.time() - BEGAN
            told.settings = {
                "rows at once": args.per_device_train_batch_size,
                "accumulation": args.gradient_accumulation_steps,
                "packing": bool(getattr(args, "packing", False)),
                "activation checkpointing": bool(
                    getattr(args, "activation_checkpointing", getattr(args, "gradient_checkpointing", False))
                ),
                "bf16": bool(args.bf16),
                "weights": str(next(trainer.model.parameters()).dtype).removeprefix("torch."),
            }
        if done < self.plan.warm or told.seconds:
            return
        if self._since is None:
            self._since, self._since_cpu = self._now(), time.process_time()
        if done == self.plan.steps - 1:
            told.steps, told.seconds = done - self.plan.warm, self._now() - self._since
            told.cpu = time.process_time() - self._since_cpu
            return
        mask = inputs.get("attention_mask")
        self._tokens = self._tokens + (inputs["input_ids"].numel() if mask is None else mask.sum())
        self._trained = self._trained + (inputs["labels"] != -100).sum()

    def _now(self) -> float:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.monotonic()


def ours(plan: Plan, folder: Path) -> Told:
    """What ``cloudft submit`` would start on the machine; ``folder`` is its work folder."""
    sys.path.insert(0, str(ROOT))
    from jobs import train

    counted = Counted(plan)
    with counted.counting() as told:
        code = train.main(["--work", str(folder)])
    if code:
        raise SystemExit(code)
    return told


def trl(plan: Plan, folder: Path, **more: Any) -> Told:
    """Model, data, LoRA and a folder, and all else as the library has it."""
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    if not torch.cuda.is_available():
        more["use_cpu"] = True  # without this it refuses to begin
    if plan.method == "qlora":
        from transformers import BitsAndBytesConfig

        more["model_init_kwargs"] = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True)}
    trainer = SFTTrainer(
        model=plan.base,
        args=SFTConfig(output_dir=str(folder / "out"), report_to="none", **_same(plan), **more),
        # The form in which it trains on the answers alone, as ours does.
        train_dataset=load_dataset("json", data_files=plan.data, split="train").map(
            _asked, remove_columns=["messages"]
        ),
        peft_config=LoraConfig(
            r=plan.rank, lora_alpha=2 * plan.rank, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    return _trained(plan, trainer, folder)


def _asked(row: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}


def trl_float32(plan: Plan, folder: Path) -> Told:
    """The same without bfloat16, which few CPUs compute in."""
    return trl(plan, folder, bf16=False)


def unsloth(plan: Plan, folder: Path) -> Told:
    """As its own notebooks do it: on the whole text, so it counts more tokens in the loss."""
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer
    from unsloth import FastLanguageModel  # first: it changes the others

    quantised = plan.method == "qlora"
    model, tokenizer = FastLanguageModel.from_pretrained(plan.base, max_seq_length=plan.length, load_in_4bit=quantised)
    model = FastLanguageModel.get_peft_model(
        model,
        r=plan.rank,
        lora_alpha=2 * plan.rank,
        lora_dropout=0,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        use_gradient_checkpointing="unsloth",
    )

    def rendered(row: dict[str, Any]) -> dict[str, str]:
        return {"text": tokenizer.apply_chat_template(row["messages"], tokenize=False)}

    rows = load_dataset("json", data_files=plan.data, split="train").map(rendered, remove_columns=["messages"])
    config = SFTConfig(output_dir=str(folder / "out"), report_to="none", dataset_text_field="text", **_same(plan))
    trainer = SFTTrainer(model=model, processing_class=tokenizer, train_dataset=rows, args=config)
    return _trained(plan, trainer, folder)


def _same(plan: Plan) -> dict[str, Any]:
    """What makes the ways comparable: as many steps, of as many rows, none of them cut."""
    same = {"max_steps": plan.steps, "per_device_train_batch_size": plan.at_once}
    same |= {"gradient_accumulation_steps": plan.rows // plan.at_once}
    return same | ({"max_length": plan.length} if plan.length > 1024 else {})


def _trained(plan: Plan, trainer: Any, folder: Path) -> Told:
    counted = Counted(plan)
    with counted.counting() as told:
        trainer.train()
    trainer.save_model(str(folder / "adapter"))
    return told


WAYS: dict[str, Callable[[Plan, Path], Told]] = {
    "ours": ours,
    "trl": trl,
    "trl float32": trl_float32,
    "unsloth": unsloth,
}


def main(way: str, folder: Path) -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    plan = Plan(**json.loads((folder / "plan.json").read_text()))
    told = WAYS[way](plan, folder)
    (folder / "told.json").write_text(json.dumps(asdict(told)))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
