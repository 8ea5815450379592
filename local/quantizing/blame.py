"""What the trained model predicts, and which step lost it when a file predicts something else."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloudft.errors import VerifyError
from local.progress import Progress, silent
from local.quantizing import divergence, merge, onepass, reference, verify
from local.quantizing.adapter import sixteen_bits
from local.quantizing.lora import Lora

MERGE, CONVERSION, QUANTISATION = "merge", "conversion", "quantisation"


@dataclass(frozen=True)
class Loss:
    """Where a divergence comes from: the step that lost the most, and the nats per token of each."""

    step: str
    by_step: dict[str, float]

    def __str__(self) -> str:
        parts = ", ".join(f"{step} {loss:.3f}" for step, loss in self.by_step.items())
        return f"The step that lost it is the {self.step} (nats per token: {parts})"


class Reference:
    """Predictions of base and adapter in float32, as trained: the adapter beside the base and not merged into it.

    Args:
        model: the folder that the files are made of.
        lora: what is merged on the way into them.
        base: the base's own folder.
        peft: the adapter's folder, if it is peft that merged it into ``model``.
    """

    def __init__(self, model: Path, lora: Lora | None, base: Path, peft: Path | None, progress: Progress) -> None:
        self.model, self.lora, self.base, self.peft, self.progress = model, lora, base, peft, progress
        self._known: tuple[list[list[int]], Any] | None = None
        self._lost: tuple[float, float] | None = None  # by merging, and by merging and converting

    def predict(self, rows: list[list[int]]) -> Any:
        """Logits (tokens, vocabulary) over rows of token ids, computed once for the same rows."""
        if self._known is None or self._known[0] != rows:
            if self.peft is not None:
                self.progress("verify", 3, 4, "checks", "the adapter beside the base, through peft")
                found = reference.beside(merge.load_tuned(self.base, self.peft, "float32"), rows)
            else:
                found = reference.predictions(self.model, self.lora, rows, progress=self.progress)
            self._known = rows, found
        return self._known[1]

    def explain(self, rows: list[list[int]], lost: float, toolchain: Path, scratch: Path) -> Loss:
        """Name the step that lost the most.

        The merge is what adding the adapter to the weights changes, in transformers alone; the conversion what a file
        of 16 bits more than that loses; the quantisation the rest.
        """
        if self._lost is None:
            self.progress("verify", 3, 4, "checks", "find the step that lost it")
            merged = divergence.compare(self._merged(rows), self.predict(rows))[0]
            converted = divergence.compare(self._converted(rows, toolchain, scratch), self.predict(rows))[0]
            self._lost = merged, max(merged, converted)
        by_merge, by_both = self._lost
        steps = {MERGE: by_merge, CONVERSION: by_both - by_merge, QUANTISATION: max(0.0, lost - by_both)}
        return Loss(max(steps, key=lambda step: steps[step]), steps)

    def _merged(self, rows: list[list[int]]) -> Any:
        """Predictions with the adapter in the weights."""
        if self.lora is None and self.peft is None:
            return self.predict(rows)
        return reference.predictions(self.model, self.lora, rows, merge=True)

    def _converted(self, rows: list[list[int]], toolchain: Path, scratch: Path) -> Any:
        """Predictions of a 16-bit file; where there is no room for one, those of the merge."""
        folder = scratch / "explain"
        if shutil.disk_usage(scratch).free < 1.1 * sixteen_bits(self.model):
            return self._merged(rows)
        folder.mkdir()
        full = folder / "full.gguf"
        onepass.write(
            self.model, self.lora, {"F16": full}, toolchain=toolchain, name="full", scratch=folder, progress=silent
        )
        try:
            return verify.predictions_of(full, rows)
        finally:
            shutil.rmtree(folder)


def refusal(
    kind: str, found: verify.TooFar, loss: Loss, tried: list[str], again: str, max_kl: float | None = None
) -> VerifyError:
    """The error for a file that is too far off, with what to type next.

    Args:
        tried: the types that were made, with their divergence.
        again: the command that was typed, without types and limit.
        max_kl: the limit that was typed, if one was.
    """
    limit = f" --max-kl {max_kl:g}" if max_kl is not None else ""
    before = f". Coarser types lost more: {', '.join(tried[:-1])}" if len(tried) > 1 else ""
    better = divergence.finer(kind)
    if loss.step != QUANTISATION:
        hint = "a finer type would not help; report this with the run's spec.json"
    elif better is None:
        hint = f"if it is good enough for you:  {again} --type {kind} --max-kl {found.lost * 1.1:.2g}"
    else:
        hint = f"name a finer type:  {again} --type {better}{limit}"
        if divergence.steps_up(kind):  # none of 16 bits is taken without being asked for
            step_up = f"take the first finer type that is good enough:  {again} --type {kind}{limit} --step-up"
            hint = f"{step_up}    or name it:  {again} --type {better}{limit}"
    return VerifyError(f"{found.what}{before}. {loss}", effect=found.effect, hint=hint)
