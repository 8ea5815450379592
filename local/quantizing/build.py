"""Makes quantised, verified GGUF files of one model, all from one read. Runs in the child of
``local.quantizing.worker``.

What can be merged tensor by tensor is, on the way into the files. For the rest peft merges first, into a folder that
is removed as soon as it was read.
"""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from typing import Any

from cloudft.errors import VerifyError
from local.progress import Progress
from local.quantizing import merge, onepass, tables, verify
from local.quantizing.adapter import read_lora
from local.quantizing.blame import QUANTISATION, Reference, refusal
from local.quantizing.headstart import HeadStart
from local.quantizing.importance import importances
from local.quantizing.lora import Lora
from local.quantizing.overlay import lay_over
from local.quantizing.verify_tokens import Messages, prompts

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
    samples: list[Messages],
    progress: Progress,
    steps: dict[str, list[str]] | None = None,
    imatrix: list[Messages] | None = None,
    max_kl: float | None = None,
    again: str = "cloudft quantize",
) -> dict[str, Any]:
    """Build files from the model in ``base``, with the adapter merged into it where there is one.

    Args:
        base, adapter: folders. The adapter's may hold the tokenizer as trained.
        template: the chat template that the files must carry; None: the base's own.
        toolchain: root of the unpacked converter.
        scratch: an empty folder for intermediate files, on the disk of ``outs``.
        outs: type of ``quant_types.offered`` → file to write.
        name: the model's name in the files.
        samples: conversations to verify with; the first are those that predictions are compared on.
        steps: types asked for → finer types of ``outs`` that may take their place; None: all of ``outs``, and none.
        imatrix: conversations from which to learn which weights matter; None: all matter alike.
        max_kl: divergence from the 16-bit merge that is allowed, in nats per token; None: each type's own.
        again: the command that was typed, for hints.

    Returns:
        ``merge``: how the adapter was merged, in words; ``took``: type asked for → type made; ``refused``: type asked
        for → ``what`` and ``hint`` of the error, where no file of it is fit to be served; ``verification``: type made →
        fields of ``verify.Verification``; ``prompts``: see ``verify_tokens.prompts``.

    Raises:
        CloudftError: see ``lora.read_lora``, ``merge.merge_adapter``, ``onepass.write``.
    """
    source = _Source(Path(base), Path(adapter) if adapter else None, Path(toolchain), Path(scratch), progress)
    source.prepare(template)
    source.compare_tables()
    steps = steps if steps is not None else {kind: [] for kind in outs}
    files = _Files(source, {kind: Path(path) for kind, path in outs.items()}, name, imatrix, template)
    files.write(list(steps), HeadStart(source.model, source.lora, list(steps)))
    checks = _Checks(source, template, samples, max_kl, again)
    found: dict[str, dict[str, Any]] = {}
    took: dict[str, str] = {}
    refused: dict[str, dict[str, str]] = {}
    for kind, finer in steps.items():
        try:
            took[kind] = _first_good(kind, finer, files, checks, found)
        except VerifyError as exc:  # of this type: the others may be good
            refused[kind] = {"what": exc.what, "hint": exc.hint}
    shutil.rmtree(source.model)
    asked = prompts(source.tokenizer, template, samples)
    return {"merge": source.how, "took": took, "refused": refused, "verification": found, "prompts": asked}


def _first_good(kind: str, finer: list[str], files: _Files, checks: _Checks, found: dict[str, dict[str, Any]]) -> str:
    """Verify a type; while quantising loses too much, make and verify the next finer one. Fills ``found``."""
    tried: list[str] = []
    candidate = kind
    while candidate not in found:
        if candidate not in files.types:
            files.write([candidate])
        try:
            found[candidate] = checks.inspect(candidate, files)
        except verify.TooFar as exc:
            tried.append(f"{candidate} {exc.lost:.3f}")
            rest = finer[finer.index(candidate) + 1 :] if candidate in finer else finer
            candidate = checks.refuse(candidate, exc, rest, tried)
            checks.source.progress("step up", 0, None, "", f"{tried[-1]} nats per token is too much; next: {candidate}")
    return candidate


class _Source:
    """The model folder that the files are made of, and how the adapter gets in."""

    def __init__(self, base: Path, adapter: Path | None, toolchain: Path, scratch: Path, progress: Progress) -> None:
        self.base, self.adapter, self.toolchain, self.scratch = base, adapter, toolchain, scratch
        self.progress = progress
        self.tokenizer = merge.tokenizer_folder(base, adapter)
        self.model = scratch / "model"
        self.lora: Lora | None = None
        self.how = ""

    def prepare(self, template: str | None) -> None:
        """Lay out the folder, and let peft merge into it where it must."""
        found = read_lora(self.base, self.adapter) if self.adapter is not None else None
        if isinstance(found, str) and self.adapter is not None:
            self.progress("merge", 0, None, "", f"through peft, with the whole model in memory: {found}")
            merge.merge_adapter(self.base, self.adapter, self.model, self.progress)
            gc.collect()
            self.how = f"through peft: {found}"
        merge.lay_out(self.base, self.tokenizer, template, self.model)
        if isinstance(found, Lora):
            more = found.said()
            self.progress("merge", 0, None, "", f"{len(found.pairs)} layers, one at a time{more and f' ({more})'}")
            self.lora, self.how = found, TENSORWISE + (f" ({more})" if more else "")
            lay_over(self.model, found)

    def compare_tables(self) -> None:
        """Input embeddings and output layer beside peft's, where the adapter changes them."""
        if self.lora is None or self.adapter is None:
            return
        try:
            tables.compare(self.base, self.adapter, self.model, self.lora, self.scratch)
        except VerifyError:
            raise
        except (
            Exception
        ) as exc:  # of a kind of model that can't be made that small; the predictions are compared anyway
            self.progress("merge", 0, None, "", f"its embeddings could not be compared with peft's: {exc}")


class _Files:
    """Writes files of the source; what was learnt about its weights is learnt once."""

    def __init__(
        self,
        source: _Source,
        paths: dict[str, Path],
        name: str,
        imatrix: list[Messages] | None,
        template: str | None,
    ) -> None:
        self.source, self.paths, self.name, self.imatrix, self.template = source, paths, name, imatrix, template
        self.types: dict[str, dict[str, str]] = {}
        self.architecture = ""
        self.served: str | None = None  # the template in the files
        self._importances: Any = None

    def write(self, kinds: list[str], early: HeadStart | None = None) -> None:
        """Write files of these types, all from one read."""
        source = self.source
        written = onepass.write(
            source.model,
            source.lora,
            {kind: self.paths[kind] for kind in kinds},
            toolchain=source.toolchain,
            name=self.name,
            scratch=source.scratch,
            progress=source.progress,
            imatrix=None if self.imatrix is None else self._learnt,
            early=early,
        )
        self.types |= written["types"]
        self.architecture, self.served = written["architecture"], written["template"]

    def _learnt(self, converter: Any) -> Any:
        if self._importances is None:
            source = self.source
            self._importances = importances(
                converter,
                source.model,
                source.lora,
                source.tokenizer,
                self.template,
                self.imatrix or [],
                source.progress,
            )
        return self._importances


class _Checks:
    """Verifies files of the source; what the 16-bit model predicts is computed once for all of them."""

    def __init__(
        self,
        source: _Source,
        template: str | None,
        samples: list[Messages],
        max_kl: float | None,
        again: str,
    ) -> None:
        self.source, self.template, self.samples, self.max_kl, self.again = source, template, samples, max_kl, again
        peft = source.adapter if source.adapter is not None and source.lora is None else None
        self.reference = Reference(source.model, source.lora, source.base, peft, source.progress)
        self._refused: dict[str, verify.TooFar] = {}

    def inspect(self, kind: str, files: _Files) -> dict[str, Any]:
        """Fields of the file's ``verify.Verification``; a file that is too far off is removed, and stays refused."""
        if kind in self._refused:
            raise self._refused[kind]
        try:
            return verify.inspect(
                gguf=str(files.paths[kind]),
                tokenizer=str(self.source.tokenizer),
                template=self.template,
                served=files.served,
                samples=self.samples,
                reference=self.reference.predict,
                architecture=files.architecture,
                progress=self.source.progress,
                types=files.types[kind],
                kind=kind,
                max_kl=self.max_kl,
            )
        except verify.TooFar as exc:
            self._refused[kind] = exc
            files.paths[kind].unlink()
            raise

    def refuse(self, kind: str, found: verify.TooFar, rest: list[str], tried: list[str]) -> str:
        """The next type to try, if it is quantising that lost too much and one is left; else the refusal."""
        loss = self.reference.explain(found.rows, found.lost, self.source.toolchain, self.source.scratch)
        if rest and loss.step == QUANTISATION:
            return rest[0]
        raise refusal(kind, found, loss, tried, self.again, self.max_kl) from found
