"""The YAML front matter of the model hub's cards, made by the hub's own client so that the hub can read it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from local.report.model import Report

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

# The identifiers that the hub takes; whatever else a licence is called goes under "other", with its name.
_LICENCES: Final = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openrail++
    osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license llama2 llama3 llama3.1 llama3.2
    llama3.3 llama4 gemma
"""
LICENCES: Final = frozenset(_LICENCES.split())
TASKS: Final = {"classification": "text-classification"}
TASK: Final = "text-generation"
SIZES: Final = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def licence(name: str | None) -> dict[str, str]:
    """The fields that stand for a licence: its identifier, or "other" and a name; none if it is not known."""
    if not name:
        return {}
    known = name.strip().lower()
    if known in LICENCES:
        return {"license": known}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", known).strip("-") or "other"}


def dataset_front(report: Report) -> str:
    """The front matter of ``dataset_card.md``."""
    from huggingface_hub import DatasetCardData

    card, rows = report.card, report.data.train_rows + report.data.holdout_rows
    fields: dict[str, Any] = {
        "language": list(card.language) or None,
        "pretty_name": report.project,
        "size_categories": [next((name for most, name in SIZES if rows < most), "n>1M")],
        "task_categories": [TASKS.get(report.task.kind, TASK)],
        "tags": ["fine-tuning", report.task.kind],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": "train", "path": "train.jsonl"},
                    {"split": "test", "path": "holdout.jsonl"},
                ],
            }
        ],
        **licence(card.licence),
    }
    return _block(DatasetCardData(**fields).to_yaml())


def model_front(report: Report) -> str:
    """The front matter of the model card, the measured numbers among it as ``model-index``."""
    from huggingface_hub import ModelCardData

    fields: dict[str, Any] = {
        "language": list(report.card.language) or None,
        "pipeline_tag": TASK,
        "tags": ["gguf", "llama.cpp", "lora", "fine-tuned", report.task.kind],
        **licence(report.base.licence),
    }
    if report.base.source == "hub":
        fields |= {"base_model": report.base.id, "base_model_relation": "finetune"}
    if results := _results(report):
        fields |= {"model_name": report.project, "eval_results": results}
    return _block(ModelCardData(**fields).to_yaml())


def _results(report: Report) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    if report.evaluated is None:
        return []
    document = report.evaluated.document
    return [
        EvalResult(
            task_type=TASK,
            task_name=report.project,
            dataset_type=report.project,
            dataset_name=f"hold-out of {report.project}, {document.n} rows",
            dataset_split="test",
            dataset_revision=document.holdout_sha256,
            metric_type=name,
            metric_name=name,
            metric_value=round(value, 6),
        )
        for name, value in document.after.items()
    ]


def _block(yaml: str) -> str:
    return f"---\n{yaml.strip()}\n---\n"
