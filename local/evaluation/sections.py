"""The parts of ``eval.json`` that are measured after before and after, each when it is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cloudft.errors import CloudftError
from local.evaluation.document.eval_json import Document, read_document
from local.evaluation.document.measurement import LABELS, Label
from local.evaluation.document.outputs import OutputLine, read_outputs
from local.files import atomic_open
from local.project import RunFolder


def document_bytes(document: Document) -> bytes:
    """The contents of ``eval.json``."""
    return json.dumps(document.as_dict(), indent=2, ensure_ascii=False).encode(errors="replace") + b"\n"


def write_sections(run: RunFolder, files: Iterable[tuple[Path, bytes]] = (), **sections: Any) -> Document:
    """Replace some sections of a run's evaluation, and the files that they refer to: all or none.

    Raises:
        CloudftError: as ``read_document``.
    """
    document = read_document(run).model_copy(update=sections)
    with ExitStack() as stack:
        # The stack unwinds backwards: the document, which refers to the others, takes its place last.
        for path, raw in [(run.evaluation, document_bytes(document)), *files]:
            stack.enter_context(atomic_open(path)).write(raw)
    return document


def keep_sections(run: RunFolder, new: Document, lines: Mapping[Label, Sequence[OutputLine]]) -> Document:
    """A new evaluation with those sections of the one before that are still about the same models and answers.

    Args:
        lines: the new answers. Call this before they take the place of the old ones.
    """
    try:
        old = read_document(run)
        answers = {label: read_outputs(run, old.sides[label].outputs) for label in LABELS}
    except CloudftError:
        return new
    kept: dict[str, Any] = {}
    if all(_models(old)[label] == _models(new)[label] for label in LABELS):
        kept["forgetting"] = old.forgetting
    if all(_said(answers[label]) == _said(lines[label]) for label in LABELS):
        kept |= {"ladder": old.ladder, "judging": old.judging, "spot_check": old.spot_check}
    return new.model_copy(update=kept)


def _said(lines: Sequence[OutputLine]) -> list[dict[str, Any]]:
    """All of the answers but how long they took, which differs each time that they are asked for anew."""
    return [line.model_dump(mode="json", exclude={"latency"}) for line in lines]


def _models(document: Document) -> dict[str, tuple[Any, ...]]:
    return {
        label: (side.model.sha256, side.model.engine, side.model.url, side.model.template_sha256)
        for label, side in document.sides.items()
    }
