"""Tasks of lm-evaluation-harness, asked of the two models through an endpoint, in a process of its own.

It asks for log-probabilities of a prompt, which llama-server does not tell and which our own child process does only
when it is told to keep them. A folder ``lm_eval_tasks`` in the project may hold tasks of the user's own (YAML files).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import yaml

from cloudft.errors import CloudftError, EnvironmentProblem
from local.base import resolve_base
from local.evaluation.document.measurement import LABELS, Label
from local.evaluation.document.outputs import OutputLine, prompt_sha256
from local.evaluation.endpoint import Endpoint
from local.evaluation.forgetting import GeneralAnswers
from local.evaluation.measuring import Target
from local.evaluation.results import Ground
from local.files import sha256_file
from local.progress import Progress
from local.quantizing.merge import tokenizer_folder
from local.runs.records import read_spec
from local.serving.serve_process import last_lines, serve_in_process

TASKS: Final = "lm_eval_tasks"
LONGEST: Final = 2048  # tokens of a prompt; log-probabilities take memory by tokens times vocabulary
_PREFERRED: Final = ("exact_match", "acc", "acc_norm", "f1")


def ask_harness(task: str, ground: Ground, targets: Mapping[Label, Target], progress: Progress) -> GeneralAnswers:
    """Run one task, or a group of tasks, on both models.

    Raises:
        EnvironmentProblem: lm-evaluation-harness is not installed.
        CloudftError: it failed, as for a task that it does not know or data that it cannot fetch; with its last words.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise EnvironmentProblem(
            f"lm-eval:{task} needs lm-evaluation-harness, which this Python does not have",
            effect="nothing was measured",
            hint="install it:  pip install 'cloudft[lm-eval]'",
        )
    spec = read_spec(ground.run)
    base = resolve_base(spec.base, ground.project.root, progress)
    tokenizers: dict[Label, Path] = {"before": base, "after": tokenizer_folder(base, ground.run.adapter)}
    samples = {}
    for label in LABELS:
        what = f"lm-eval:{task} {label}"
        progress(what, 0, None, "", "start the server")
        samples[label] = _run(task, ground, targets[label], tokenizers[label], what, progress)
    return harness_answers(task, samples)


def _run(task: str, ground: Ground, target: Target, tokenizer: Path, what: str, progress: Progress) -> list[Any]:
    """All samples of the task, in the harness's own words."""
    assert target.gguf is not None
    state, key = ground.project.state, secrets.token_urlsafe(32)
    context = min(ground.context, LONGEST)
    served = serve_in_process(
        target.gguf,
        api_key=key,
        context=context,
        log=state / f"serve-{target.label}.log",
        template=target.template,
        logits=True,
    )
    with served as endpoint, _scratch(state) as scratch:
        config = _config(task, endpoint, tokenizer, context, ground, sha256_file(target.gguf), scratch)
        (scratch / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        log = state / f"lm-eval-{target.label}.log"
        progress(what, 0, None, "", "ask")
        _start(scratch / "run.yaml", endpoint.api_key, log, task)
        return _samples(scratch / "out")


def _config(
    task: str, endpoint: Endpoint, tokenizer: Path, context: int, ground: Ground, sha256: str, scratch: Path
) -> dict[str, Any]:
    own = ground.project.root / TASKS
    config: dict[str, Any] = {
        "model": "local-completions",
        "model_args": {
            "model": endpoint.model,
            "base_url": f"{endpoint.url}/completions",
            "tokenizer_backend": "huggingface",
            "tokenizer": str(tokenizer),
            "tokenized_requests": False,
            "num_concurrent": 1,  # the server answers one at a time
            "max_length": context,
            "timeout": int(ground.settings.timeout),
        },
        "tasks": [task],
        "batch_size": 1,
        "output_path": str(scratch / "out"),
        "log_samples": True,
    }
    if ground.settings.use_cache:
        # Per model, since its own key is what is asked alone.
        config["use_cache"] = str(ground.project.state / "cache" / "lm-eval" / f"{sha256}-{context}")
    if own.is_dir():
        config["include_path"] = str(own)
    return config


@contextlib.contextmanager
def _scratch(state: Path) -> Iterator[Path]:
    state.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=state, prefix="lm-eval-") as name:
        yield Path(name)


def _start(config: Path, key: str, log: Path, task: str) -> None:
    """Run the harness to its end. Ctrl-C ends it too; its cache keeps what was answered."""
    env = {**os.environ, "OPENAI_API_KEY": key, "TOKENIZERS_PARALLELISM": "false", "NO_PROXY": "127.0.0.1,localhost"}
    with log.open("wb") as out:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "lm_eval", "run", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,
        )
    try:
        code = child.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if code != 0:
        raise CloudftError(
            f"lm-evaluation-harness failed at {task} (exit code {code}); its log {log} ends with:\n{last_lines(log)}",
            effect="what was measured before is unchanged; answers that came are kept",
            hint=f"see its tasks:  python -m lm_eval ls tasks    your own go into the folder {TASKS}",
        )


def _samples(folder: Path) -> list[Any]:
    """Everything that it logged, by task and question."""
    found = []
    for path in sorted(folder.rglob("samples_*.jsonl")):
        name = path.stem.removeprefix("samples_").rsplit("_", 1)[0]  # then follows the time
        lines = path.read_bytes().split(b"\n")
        found += [{**json.loads(line), "task": name} for line in lines if line]
    found.sort(key=lambda sample: (sample["task"], str(sample.get("filter")), sample["doc_id"]))
    return found


def harness_answers(task: str, samples: Mapping[Label, Sequence[Any]]) -> GeneralAnswers:
    """The samples that the harness logged, by its own metric.

    Raises:
        CloudftError: no metric is a number from 0 to 1, or the two models were asked different questions.
    """
    metric = _metric(samples["before"])
    filters = [sample.get("filter") for sample in samples["before"] if metric in sample["metrics"]]
    # Several ways to read the same answers are several measurements; the first is the task's own.
    used = {
        label: [one for one in found if metric in one["metrics"] and one.get("filter") == filters[0]]
        for label, found in samples.items()
    }
    ids = {label: [(one["task"], one["doc_id"], one["doc_hash"]) for one in found] for label, found in used.items()}
    if ids["before"] != ids["after"]:
        raise CloudftError(f"lm-eval:{task} asked different questions before and after", effect="nothing was written")
    questions = [one["doc_hash"] for one in used["before"]]
    return GeneralAnswers(
        suite=f"lm-eval:{task}",
        title=f"{task} of lm-evaluation-harness, {metric}",
        licence="that of the task's data set",
        metric=metric,
        lines={label: [_line(n, one, metric) for n, one in enumerate(used[label], start=1)] for label in LABELS},
        ids=[f"{one['task']}-{one['doc_id']}" for one in used["before"]],
        parts=[one["task"] for one in used["before"]],
        sha256=hashlib.sha256("\n".join(questions).encode()).hexdigest(),
        software={"lm-eval": metadata.version("lm_eval")},
    )


def _metric(samples: Sequence[Any]) -> str:
    """The metric that decides: a well-known one, else the first whose values are numbers from 0 to 1."""
    names = list(dict.fromkeys(name for sample in samples for name in sample["metrics"]))
    usable = [name for name in names if all(_is_share(one[name]) for one in samples if name in one["metrics"])]
    if not usable:
        raise CloudftError(
            f"no metric of this task is a number from 0 to 1 for each question ({', '.join(names) or 'there is none'})",
            effect="nothing was written",
            hint="choose another task; perplexities cannot be compared by this",
        )
    return next((name for name in _PREFERRED if name in usable), usable[0])


def _is_share(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 <= value <= 1


def _line(number: int, sample: Any, metric: str) -> OutputLine:
    """A sample as the answers of an evaluation are kept. Of a choice, the answer is the log-probability of each."""
    asked = ({"role": "user", "content": _asked(sample)},)
    score = float(sample[metric])
    return OutputLine(
        row=number,
        prompt=asked,
        prompt_sha256=prompt_sha256(asked),
        expected=str(sample["target"]),
        answer=json.dumps(sample["filtered_resps"], ensure_ascii=False),
        score={metric: score},
        problem="" if score == 1 else "not as asked",
    )


def _asked(sample: Any) -> str:
    """The first request's context; the harness keeps them by place."""
    arguments = sample["arguments"]
    first = next(iter(arguments.values())) if isinstance(arguments, dict) else arguments[0]
    return str(first["arg_0"] if isinstance(first, dict) else first[0])
