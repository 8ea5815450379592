"""The trainer: supervised fine-tuning with LoRA, from a spec to an adapter. It reads top to bottom.

    python -m jobs.train --work DIR [--first-checkpoint S] [--checkpoint-every S]

Reads ``DIR/spec.json`` (``jobs.spec.RunSpec``), ``DIR/inputs/train.jsonl`` and, for a base that is a folder,
``DIR/inputs/base/``. Writes into ``DIR/out``:

    metrics.jsonl   a line per step (``jobs.callbacks.StepReport``)
    adapter/        adapter_model.safetensors, adapter_config.json, the base's tokenizer files as they are, and
                    chat_template.jinja, the template that was trained with; it appears whole or not at all
    trainer.json    last: how it ended (``Outcome``)

and checkpoints into ``DIR/checkpoints`` (``jobs.checkpoints``). If one of this spec is there at the start, it goes on
from it, exactly: same data order, schedule, random state and optimizer as if it had never stopped.

Ends with 0 for completed and stopped, 1 for failed. SIGTERM or Ctrl-C is a soft stop: the running step ends, and
a checkpoint and the adapter of the steps done are saved.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import json
import logging
import os
import platform
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from pydantic import ValidationError

from jobs import checkpoints
from jobs.adapter import save_adapter, tokenizer_files, write_adapter
from jobs.checkpoints import Checkpoint
from jobs.rendering import Encoded, Message, RenderError, choose_template, encode_rows
from jobs.spec import Base, RunSpec, Stage
from jobs.transfer import sha256_file

# Below this many parameters a second thread costs more than it gives, and one thread repeats bit for bit.
SMALL_MODEL = 20_000_000
# Seconds of training. The first comes soon: young machines are taken away too, and it shows early whether the store
# takes checkpoints. Then a lost machine costs five minutes at most, and a save of a second or two less than a percent.
FIRST_CHECKPOINT, CHECKPOINT_EVERY = 60.0, 300.0


# prctl(2)
PR_SET_PDEATHSIG = 1


class TrainError(Exception):
    """The run cannot go on; the message says what is wrong, and what to change."""


class StoppedEarly(Exception):
    """Asked to stop before the first step."""


@dataclass
class Outcome:
    """What ``trainer.json`` says. ``phases`` in seconds; ``trained_tokens`` seen by the model, prompts included.

    Steps, tokens and loss are those of the whole run; ``resumed_from`` is the step that this process began at.
    """

    status: Literal["completed", "stopped", "failed"] = "failed"
    reason: str = ""
    steps_done: int = 0
    steps_planned: int = 0
    resumed_from: int = 0
    train_loss: float | None = None
    phases: dict[str, float] = field(default_factory=dict)
    trained_tokens: int = 0
    adapter_sha256: str | None = None

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.phases[name] = round(time.monotonic() - began, 3)


class StopFlag:
    """Set by the first SIGTERM or SIGINT; looked at between the phases, and after every step."""

    def __init__(self) -> None:
        self.name = ""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._set)

    def _set(self, number: int, _: FrameType | None) -> None:
        self.name = self.name or signal.Signals(number).name
        # Not print(): the signal may have come in the middle of one.
        os.write(sys.stdout.fileno(), f"{self.name}: stopping at the end of this step, then saving\n".encode())

    def asked(self) -> bool:
        return bool(self.name)

    def check(self, resumed_from: int = 0) -> None:
        if self.name and resumed_from:
            raise StoppedEarly(f"{self.name} came before a step beyond the {resumed_from} of the checkpoint")
        if self.name:
            raise StoppedEarly(f"{self.name} came before the first step; nothing was learned, so there is no adapter")


def _end_with_parent() -> None:
    """A trainer whose supervisor was killed has nobody who keeps its deadline: the kernel ends it as well (Linux)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.train", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder with spec.json and inputs/")
    for name, default in (("--first-checkpoint", FIRST_CHECKPOINT), ("--checkpoint-every", CHECKPOINT_EVERY)):
        parser.add_argument(name, type=float, default=default, metavar="S", help=f"seconds (default {default:.0f})")
    given = parser.parse_args(argv)
    _end_with_parent()
    work: Path = given.work.resolve()
    stop, outcome, out = StopFlag(), Outcome(), work / "out"
    try:
        _fresh(out)
        train(work, out, stop, outcome, given.first_checkpoint, given.checkpoint_every)
    except StoppedEarly as exc:
        outcome.status, outcome.reason = "stopped", str(exc)
    except Exception as exc:  # whatever it is, it must reach trainer.json and the log
        outcome.status, outcome.reason = "failed", _explain(exc)
    if outcome.status == "failed":
        print(f"error: {outcome.reason}", file=sys.stderr, flush=True)
    else:
        say(f"{outcome.status}: {outcome.reason}")
    with contextlib.suppress(OSError):  # a full disk; the exit code still tells
        _write_json(out / "trainer.json", asdict(outcome))
    return 1 if outcome.status == "failed" else 0


def train(work: Path, out: Path, stop: StopFlag, outcome: Outcome, first: float, every: float) -> None:
    """The whole run, with checkpoints after ``first`` and each ``every`` seconds; fills in ``outcome``.

    Raises what goes wrong.
    """
    # 1. What to do, and why so.
    spec = load_spec(work / "spec.json")
    stage = spec.stages[0]
    outcome.steps_planned = stage.max_steps
    log_spec(spec, stage)
    resume = find_checkpoint(work / checkpoints.FOLDER, spec, out / checkpoints.METRICS)
    outcome.steps_done = outcome.resumed_from = resume.step if resume else 0

    # 2. The libraries.
    set_environment(spec)
    with outcome.phase("import"):
        from datasets import Dataset
        from transformers import PrinterCallback

        from jobs.callbacks import CheckpointInTime, StepReport, StopAtStep
        from jobs.resumable import ResumableTrainer
    log_versions()
    stop.check(outcome.resumed_from)

    with outcome.phase("load"):
        # 3. Data.
        rows = load_rows(work / "inputs" / spec.data.train.path, spec)
        # 4. Base and tokenizer.
        source = work / "inputs" / "base" if spec.base.source == "folder" else None
        dtype = choose_dtype(stage)
        tokenizer, model = load_base(spec.base, source, dtype)
        files = tokenizer_files(spec.base, source)
        stop.check(outcome.resumed_from)
        # 5. Tokens, with the template that will also be served.
        template, origin = choose_template(spec.template, tokenizer)
        log("template", "Jinja", origin)
        encoded = encode(rows, tokenizer, model, template, stage.max_length)
    stop.check(outcome.resumed_from)

    # 6. The trainer.
    report = StepReport(out / checkpoints.METRICS)
    trainer = ResumableTrainer(
        write_adapter=lambda tuned, target: write_adapter(tuned, spec.base, files, template, target),
        metrics=out / checkpoints.METRICS,
        spec_sha256=spec.sha256(),
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([asdict(example) for example in encoded.examples]),
        peft_config=lora_config(stage),
        args=sft_config(stage, spec.seed, dtype, work / checkpoints.FOLDER),
        callbacks=[report, CheckpointInTime(first, every, stop.asked), StopAtStep(stop.asked)],
    )
    trainer.remove_callback(PrinterCallback)
    stop.check(outcome.resumed_from)

    # 7. Train.
    say(f"training {stage.max_steps - outcome.resumed_from} steps on {trainer.args.device}")
    with outcome.phase("train"):
        trainer.train(resume_from_checkpoint=str(resume.path) if resume else None)
    outcome.steps_done = int(trainer.state.global_step)
    outcome.train_loss = None if report.mean_loss is None else round(report.mean_loss, 6)
    outcome.trained_tokens = report.tokens

    # 8. Save, and only then call it done.
    with outcome.phase("save"):
        outcome.adapter_sha256 = save_adapter(trainer.model, spec.base, files, template, out / "adapter")
    stopped = outcome.steps_done < stage.max_steps
    outcome.status = "stopped" if stopped else "completed"
    outcome.reason = f"{outcome.steps_done} of {stage.max_steps} steps" + (f" ({stop.name})" if stopped else "")


def say(text: str) -> None:
    """One line of the log."""
    print(text, flush=True)


def log(name: str, value: object, origin: str) -> None:
    """One resolved setting, and where it came from."""
    say(f"  {name:<24} {value!s:<12} {origin}")


def load_spec(path: Path) -> RunSpec:
    try:
        return RunSpec.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as exc:
        raise TrainError(f"{path.name} is no run spec that this version can read: {exc}") from exc


def find_checkpoint(folder: Path, spec: RunSpec, metrics: Path) -> Checkpoint | None:
    """The newest whole checkpoint of this spec; its metrics become this process's, those of later steps are gone."""
    whole = []
    for checkpoint in checkpoints.sealed(folder, spec.sha256()):
        if damage := checkpoint.damage():
            say(f"warning: the checkpoint of step {checkpoint.step} is not used: {damage}")
        else:
            whole.append(checkpoint)
    checkpoints.sweep(folder, keep=whole)
    if not whole:
        return None
    say(f"going on from the checkpoint of step {whole[0].step}")
    if checkpoints.METRICS in whole[0].files:
        shutil.copyfile(whole[0].path / checkpoints.METRICS, metrics)
    return whole[0]


def log_spec(spec: RunSpec, stage: Stage) -> None:
    say(f"run {spec.run_id} of project {spec.project}, spec {spec.sha256()[:12]}")
    say(f"base {spec.base.id} ({spec.base.source}, {spec.base.revision[:12]}), {spec.data.train_rows} rows")
    for name, value in stage.model_dump(exclude={"origins"}).items():
        log(name, value, stage.origins.get(name, "fixed: the only one yet"))
    log("seed", spec.seed, "cloudft.yaml")


def log_versions() -> None:
    names = ("torch", "transformers", "trl", "peft")
    say(f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in names))


def set_environment(spec: RunSpec) -> None:
    """What the libraries read when they are imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one process trains on one device
    if spec.base.source == "folder":
        os.environ["HF_HUB_OFFLINE"] = "1"  # everything is here, so nothing may be asked for
    # The log is read by people: no progress bars, and no advice of one library to another.
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)


def load_rows(path: Path, spec: RunSpec) -> list[list[Message]]:
    """The conversations of the training file, which must be the one that the spec names."""
    try:
        if sha256_file(path) != spec.data.train.sha256:
            raise TrainError(f"{path.name} is not the file that the run was submitted with (its sha256 differs)")
        with path.open(encoding="utf-8") as lines:
            return [json.loads(line)["messages"] for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise TrainError(f"the training data {path.name} cannot be read: {exc}") from exc


def choose_dtype(stage: Stage) -> Literal["float32", "bfloat16"]:
    """bfloat16 only where the GPU computes in it; elsewhere it is slow or wrong."""
    import torch

    gpu = torch.cuda.is_available()
    native = gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    device = torch.cuda.get_device_name() if gpu else "CPU"
    if stage.dtype == "bfloat16" and gpu and not native:
        raise TrainError(f"dtype is bfloat16, but this {device} cannot compute in it: set train.dtype to float32")
    if stage.dtype != "auto":
        return stage.dtype
    chosen: Literal["float32", "bfloat16"] = "bfloat16" if native else "float32"
    log("dtype", chosen, f"auto: {device} {'computes in bfloat16' if native else 'has no fast bfloat16'}")
    return chosen


def load_base(base: Base, folder: Path | None, dtype: str) -> tuple[Any, Any]:
    """Tokenizer and model, or a clear word on why not: a base with missing weights would train, on noise."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = str(folder) if folder else base.id
    revision = {} if folder else {"revision": base.revision}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **revision)
        model, found = AutoModelForCausalLM.from_pretrained(
            source,
            **revision,
            dtype=getattr(torch, dtype),
            attn_implementation="sdpa",
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as exc:  # each library behind these two calls has its own kinds
        raise TrainError(f"the base {base.id} at {base.revision[:12]} cannot be loaded: {exc}") from exc
    wrong = sorted(found["missing_keys"]) + sorted(str(key) for key in found["mismatched_keys"])
    if wrong:
        raise TrainError(f"the base {base.id} is incomplete: {len(wrong)} weights are missing, {wrong[0]} first")
    size = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > size:
        raise TrainError(f"the tokenizer of {base.id} has {len(tokenizer)} tokens, but the model only knows {size}")
    if not torch.cuda.is_available() and model.num_parameters() < SMALL_MODEL and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
        log("threads", 1, "a small model on a CPU: more threads are slower, and one repeats bit for bit")
    return tokenizer, model


def encode(rows: list[list[Message]], tokenizer: Any, model: Any, template: str, max_length: int) -> Encoded:
    """Tokens and labels; refuses rows that could teach nothing, and says what it cut."""
    ends = model.generation_config.eos_token_id
    stops = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    if not stops:
        raise TrainError(
            "neither the base's tokenizer nor its generation_config.json names a token that ends an answer"
        )
    encoded = encode_rows(rows, tokenizer, template, stops=stops, max_length=max_length)
    advice = f"raise train.max_length (now {max_length}) to {encoded.longest}, or shorten the rows"
    if encoded.masked:
        raise TrainError(
            f"{encoded.masked} of {encoded.masked + len(encoded.examples)} answers lie wholly behind the first "
            f"{max_length} tokens, so nothing of them would be learned: {advice}"
        )
    count = len(encoded.examples)
    say(
        f"{len(rows)} rows, {count} answers, {encoded.tokens:,} tokens, {encoded.trained:,} of them in the loss "
        f"({encoded.trained / encoded.tokens:.0%}); the longest has {encoded.longest}"
    )
    if encoded.truncated:
        say(f"warning: {encoded.truncated} of {count} rows are cut, and with them the end of their answer: {advice}")
    return encoded


def lora_config(stage: Stage) -> Any:
    from peft import LoraConfig

    log("lora_target_modules", "all-linear", "fixed: every linear layer but the output layer")
    return LoraConfig(
        r=stage.lora_r,
        lora_alpha=stage.lora_alpha,
        lora_dropout=stage.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def sft_config(stage: Stage, seed: int, dtype: str, scratch: Path) -> Any:
    """The stage in TRL's words. What is not in the spec is fixed here, and logged."""
    import torch
    from trl import SFTConfig

    on_gpu = torch.cuda.is_available()
    log("activation_checkpointing", on_gpu, "a GPU runs out of memory first; a CPU, of time")
    log("max_grad_norm", 1.0, "fixed: the usual guard against a single bad batch")
    return SFTConfig(
        output_dir=str(scratch),
        max_steps=stage.max_steps,
        per_device_train_batch_size=stage.batch_size,
        gradient_accumulation_steps=stage.gradient_accumulation,
        learning_rate=stage.learning_rate,
        lr_scheduler_type=stage.scheduler,
        warmup_steps=stage.warmup,
        weight_decay=stage.weight_decay,
        max_grad_norm=1.0,
        max_length=None,  # rows are cut in encode(), where it is counted
        dataset_kwargs={"skip_prepare_dataset": True},
        bf16=dtype == "bfloat16",
        activation_checkpointing=on_gpu,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        seed=seed,
        data_seed=seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
    )


def _fresh(out: Path) -> None:
    """An empty ``out``: what an earlier try left there must not pass for this one's."""
    for name in ("metrics.jsonl", "trainer.json"):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / "adapter", ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)


def _explain(exc: Exception) -> str:
    """The error in a sentence; the traceback goes to the log unless the sentence says it all."""
    if isinstance(exc, TrainError | RenderError):
        return str(exc)
    traceback.print_exc()
    kind = type(exc).__name__
    if kind == "OutOfMemoryError":
        return f"the GPU's memory is full: lower train.batch_size or train.max_length ({exc})"
    if kind == "Diverged":
        return f"{exc}: lower train.learning_rate, or look for odd rows in the data"
    if isinstance(exc, OSError) and exc.errno == errno.ENOSPC:
        return f"the machine's disk is full: {exc}"
    return f"{kind}: {exc}"


def _write_json(path: Path, value: Any) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(value, indent=2, sort_keys=False) + "\n", encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
