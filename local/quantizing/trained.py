"""What a run trained, as it lies at home: an adapter or a whole model, with its template, and nothing else than that.

Every file of it was listed with its sha256 by the machine that trained it, in the run's result; so a file that was
changed, damaged or exchanged since is found before anything is built from it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from cloudft.errors import IntegrityError, NotFound, VerifyError
from jobs.spec import FileRef, RunSpec
from local.base import check_model, check_safetensors, digest_of, read_json, wanted
from local.files import sha256_file
from local.project import RunFolder
from local.quantizing.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from local.runs.records import read_spec
from local.serving.versions import TEMPLATE

UNTOUCHED = "no version was made or changed; run and adapter are untouched"


@dataclass(frozen=True)
class Trained:
    """The result of a run.

    ``folder`` holds an adapter or, for a full fine-tune (``whole``), the model itself; ``sha256`` is one over all its
    files.
    """

    run: RunFolder
    spec: RunSpec
    folder: Path
    whole: bool
    template: str
    sha256: str


def read_trained(run: RunFolder) -> Trained:
    """Check and read what a run trained. Weights are hashed, not loaded.

    Raises:
        NotFound: spec, result or adapter are not at home.
        IntegrityError: a file is damaged, or is not the one that was trained; names it.
        VerifyError: the template is not the one of the spec.
    """
    spec = read_spec(run)
    folder = run.adapter
    whole = not (folder / ADAPTER_CONFIG).is_file() and (folder / "config.json").is_file()
    again = f"bring it home again:  cloudft pull {run.run_id}"
    if whole:
        check_model(folder)
    else:
        _check_adapter(folder, again)
    refs = _listed_files(run, again)
    template = _template(folder, again)
    # Text is read with its line ends made one kind, as Jinja and the converter read it.
    if spec.template is not None and template != spec.template.replace("\r\n", "\n").replace("\r", "\n"):
        raise VerifyError(
            f"{folder / TEMPLATE} is not the chat template of the run's spec", effect=UNTOUCHED, hint=again
        )
    return Trained(run, spec, folder, whole, template, digest_of(refs))


def _check_adapter(folder: Path, again: str) -> None:
    """Refuse one that is missing or cut short, and say so plainly, before its hashes are compared."""
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise NotFound(
                f"the adapter is not here: {folder / name} does not exist",
                effect=UNTOUCHED,
                hint=again.replace("it home again", "it home first"),
            )
    read_json(folder / ADAPTER_CONFIG)
    if not check_safetensors(folder / ADAPTER_WEIGHTS):
        raise IntegrityError(f"{folder / ADAPTER_WEIGHTS} holds no tensors", effect=UNTOUCHED, hint=again)


def _listed_files(run: RunFolder, again: str) -> list[FileRef]:
    """The files of the result, each with the sha256 that it was trained to have."""
    try:
        listed = json.loads(run.result.read_bytes())["artifacts"]["adapter"]["files"]
        wanted_sha256 = {str(name): str(sha256) for name, sha256 in listed.items()}
    except FileNotFoundError as exc:
        raise NotFound(
            f"{run.result} is not here, so nobody can say whether the adapter is the one that was trained",
            effect=UNTOUCHED,
            hint=again,
        ) from exc
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise IntegrityError(f"{run.result} is damaged", effect=UNTOUCHED, hint=again) from exc
    refs = []
    for name, sha256 in sorted(wanted_sha256.items()):
        path = run.adapter / name
        if not path.is_file():
            raise IntegrityError(f"{path} is gone", effect=UNTOUCHED, hint=again)
        if sha256_file(path) != sha256:
            raise IntegrityError(
                f"{path} is not what the run trained: its sha256 is not the one in {run.result.name}",
                effect=UNTOUCHED,
                hint=again,
            )
        refs.append(FileRef(path=name, sha256=sha256, bytes=path.stat().st_size))
    for path in sorted(run.adapter.iterdir()):
        if path.is_file() and path.name not in wanted_sha256 and wanted(path.name):
            raise IntegrityError(
                f"{path} did not come from the run", effect=UNTOUCHED, hint="move it away, then type the same again"
            )
    return refs


def _template(folder: Path, again: str) -> str:
    path = folder / TEMPLATE
    if not path.is_file():
        raise IntegrityError(
            f"{path} is missing: nobody can say with which chat template the adapter was trained",
            effect=UNTOUCHED,
            hint=again,
        )
    return path.read_text(encoding="utf-8")
