"""Makes quantised, verified GGUF files of one model, all from one read. Runs in the child of ``local.worker``.

What can be merged tensor by tensor is, on the way into the files. For the rest peft merges first, into a folder that
is removed as soon as it was read.
"""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from typing import Any

from local import divergence, merge, onepass, reference, verify
from local.headstart import HeadStart
from local.importance import importances
from local.lora import Lora, read_lora
from local.progress import Progress, silent

TENSORWISE = "tensor by tensor"


def build(
    *,
    base: str,
    adapter: str | None,
    template: str | None,
    toolchain: str,
    scratch: str,
    outs: dict[str, str],
    name: str,
    samples: list[verify.Messages],
    progress: Progress,
    imatrix: list[verify.Messages] | None = None,
    limit: float | None = None,
) -> dict[str, Any]:
    """Build ``outs`` from the model in ``base``, with the adapter merged into it where there is one.

    Args:
        base, adapter: folders. The adapter's may hold the tokenizer as trained.
        template: the chat template that the files must carry; None: the base's own.
        toolchain: root of the unpacked converter.
        scratch: an empty folder for intermediate files, on the disk of ``outs``.
        outs: type of ``ggml.TYPES`` → file to write.
        name: the model's name in the files.
        samples: conversations to verify with; the first are those that predictions are compared on.
        imatrix: conversations from which to learn which weights matter; None: all matter alike.
        limit: divergence from the 16-bit merge that is allowed, in nats per token; None: the type's own.

    Returns:
        ``merge``: how the adapter was merged, in words; ``verification``: type → fields of ``verify.Verification``.

    Raises:
        CloudftError: see ``lora.read_lora``, ``merge.merge_adapter``, ``onepass.write``, ``verify.inspect``.
    """
    base_folder, adapter_folder = Path(base), Path(adapter) if adapter else None
    tokenizer = merge.tokenizer_folder(base_folder, adapter_folder)
    model = Path(scratch) / "model"
    paths = {kind: Path(path) for kind, path in outs.items()}
    lora, how = _merge(base_folder, adapter_folder, model, progress)
    merge.lay_out(base_folder, tokenizer, template, model)
    early = HeadStart(model, lora, list(paths))

    def matter(converter: Any) -> Any:
        return importances(converter, model, lora, tokenizer, template, imatrix or [], progress)

    written = onepass.write(
        model,
        lora,
        paths,
        toolchain=Path(toolchain),
        name=name,
        scratch=Path(scratch),
        progress=progress,
        imatrix=None if imatrix is None else matter,
        early=early,
    )
    check = _Check(model, lora, base_folder, adapter_folder, Path(toolchain), Path(scratch), progress)
    found = {}
    for kind, path in paths.items():
        found[kind] = verify.inspect(
            gguf=str(path),
            tokenizer=str(tokenizer),
            template=template,
            samples=samples,
            reference=check.reference,
            architecture=written["architecture"],
            progress=progress,
            types=written["types"][kind],
            kind=kind,
            limit=limit,
            explain=check.explain,
        )
    shutil.rmtree(model)
    return {"merge": how, "verification": found}


def _merge(base: Path, adapter: Path | None, out: Path, progress: Progress) -> tuple[Lora | None, str]:
    """The adapter to merge on the way; or None when peft has put the merged weights into ``out``, or there is none."""
    if adapter is None:
        return None, ""
    found = read_lora(base, adapter)
    if isinstance(found, Lora):
        progress("merge", 0, None, "", f"{len(found.pairs)} layers, one at a time")
        return found, TENSORWISE
    progress("merge", 0, None, "", f"through peft, with the whole model in memory: {found}")
    merge.merge_adapter(base, adapter, out, progress)
    gc.collect()
    return None, f"through peft: {found}"


class _Check:
    """The 16-bit model's predictions, computed once for all files, and where a loss came from."""

    def __init__(
        self,
        model: Path,
        lora: Lora | None,
        base: Path,
        adapter: Path | None,
        toolchain: Path,
        scratch: Path,
        progress: Progress,
    ) -> None:
        self.model, self.lora, self.base, self.adapter = model, lora, base, adapter
        self.toolchain, self.scratch, self.progress = toolchain, scratch, progress
        self._known: tuple[list[list[int]], Any] | None = None

    def reference(self, rows: list[list[int]]) -> Any:
        if self._known is None or self._known[0] != rows:
            self._known = rows, reference.predictions(self.model, self.lora, rows, progress=self.progress)
        return self._known[1]

    def explain(self, rows: list[list[int]], lost: float) -> str:
        """Name the step that lost the most: the merge, the conversion or the quantisation.

        The merge is what adding the adapter to the weights changes, in transformers alone; the conversion what a file
        of 16 bits more than that loses; the quantisation the rest.
        """
        self.progress("verify", 3, 4, "checks", "find the step that lost it")
        trained, merged = self._before_and_after(rows)
        full = self.scratch / "explain" / "full.gguf"
        full.parent.mkdir()
        onepass.write(
            self.model,
            self.lora,
            {"F16": full},
            toolchain=self.toolchain,
            name="full",
            scratch=full.parent,
            progress=silent,
        )
        converted = verify.predictions_of(full, rows)
        full.unlink()
        by_merge, by_both = divergence.compare(merged, trained)[0], divergence.compare(converted, trained)[0]
        steps = {
            "merge": by_merge,
            "conversion": max(0.0, by_both - by_merge),
            "quantisation": max(0.0, lost - by_both),
        }
        worst = max(steps, key=lambda step: steps[step])
        parts = ", ".join(f"{step} {loss:.3f}" for step, loss in steps.items())
        return f"The step that lost it is the {worst} (nats per token: {parts})"

    def _before_and_after(self, rows: list[list[int]]) -> tuple[Any, Any]:
        """Predictions with the adapter beside the base, as trained, and merged into it."""
        known = self.reference(rows)
        if self.lora is not None:
            return known, reference.predictions(self.model, self.lora, rows, merge=True)
        if self.adapter is None:
            return known, known
        return reference.beside(merge.load_tuned(self.base, self.adapter, "float32"), rows), known
