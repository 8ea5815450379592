"""The 16-bit base of a run: locked to its bytes at submit, found again, unchanged, when it is merged into.

A base is a folder of the user's or a repository of the model hub. A folder is locked by the sha256 of each file
that matters; a repository by the commit that its branch or tag points to.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from cloudft.errors import ConfigError, IntegrityError, NotFound
from jobs.spec import Base, FileRef
from local.files import sha256_file
from local.progress import Progress
from local.safetensors_file import UNREADABLE, read_header

# Beside the weights: everything that shapes the model, its tokenizer or its chat template, and nothing else.
WANTED = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.json",
    "*.jinja",
    "*.model",
)
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")

NOTHING = "nothing was started and nothing was changed"


def wanted(name: str) -> bool:
    """Whether a file of a model folder matters to a run."""
    return any(fnmatch(name, pattern) for pattern in (*WANTED, *WEIGHTS))


def base_folder(name: str, project_root: Path) -> Path:
    """The folder that a base's name means: as it is, with ``~``, or relative to the project. It need not exist."""
    return (project_root / Path(name).expanduser()).resolve()


def lock_base(base: str, revision: str | None, project_root: Path) -> Base:
    """Pin the base to exact bytes.

    Args:
        base: a folder (relative to ``project_root``, absolute, or with ``~``), or a repository of the model hub.
        revision: for a repository a branch, tag or commit; for a folder None or the value that it was locked to.

    Returns:
        The lock. The paths of a folder's ``files`` are relative to the folder.

    Raises:
        NotFound: no such folder or repository, or it holds no 16-bit model with a tokenizer.
        ConfigError: the weights are quantised already, or a folder is asked for in another revision.
        IntegrityError: a weight file of the folder is truncated.
        ProviderError: the hub cannot be reached, or it refuses.
    """
    folder = base_folder(base, project_root)
    if folder.is_dir():
        return _lock_folder(base, revision, folder)
    if base.startswith((".", "/", "~")) or base.count("/") > 1:
        raise NotFound(f"the base is not there: {folder} is no folder", effect=NOTHING, hint=FIX_BASE)
    from local.hub import lock_repository

    return lock_repository(base, revision)


FIX_BASE = "set `base` in cloudft.yaml to a model folder, or to a repository of the model hub (owner/name)"


def _lock_folder(base: str, revision: str | None, folder: Path) -> Base:
    files = _hash(folder, check_model(folder))
    digest = digest_of(files)
    if revision and not digest.startswith(revision):
        raise ConfigError(
            f"the base folder {folder} has revision {digest[:16]}, not {revision}",
            effect=NOTHING,
            hint="take `revision` out of cloudft.yaml, or restore the folder",
        )
    return Base(source="folder", id=base, revision=digest, files=files)


def resolve_base(base: Base, project_root: Path, progress: Progress) -> Path:
    """The folder of a locked base on this computer, downloaded if it must be, with the bytes that were locked.

    Raises:
        NotFound: the folder, one of its files, the repository or its commit is gone.
        IntegrityError: a file of the folder is not what it was at submit; names the file.
        ProviderError: the hub cannot be reached.
        EnvironmentProblem: the disk is too small for the download.
    """
    if base.source == "hub":
        from local.hub import download_repository

        return download_repository(base, progress)
    folder = base_folder(base.id, project_root)
    if not folder.is_dir():
        raise NotFound(
            f"the base is not there: {folder} is no folder",
            effect="nothing was changed; the adapter is of no use without the base that it was trained on",
            hint="put the folder back, then type the same command again",
        )
    _refuse_drift(base, folder, progress)
    return folder


def _refuse_drift(base: Base, folder: Path, progress: Progress) -> None:
    locked = {ref.path: ref for ref in base.files}
    for name, ref in locked.items():
        path = folder / name
        if not path.is_file():
            raise _drift(f"{path} is gone")
        if path.stat().st_size != ref.bytes:
            raise _drift(f"{path} has {path.stat().st_size} bytes, {ref.bytes} at submit")
    added = sorted({p.name for p in model_files(folder)} - set(locked))
    if added:
        raise _drift(f"{folder / added[0]} was not there")
    total = sum(ref.bytes for ref in base.files)
    done = 0
    for name, ref in locked.items():
        progress("check base", done, total, "bytes", name)
        if sha256_file(folder / name) != ref.sha256:
            raise _drift(f"{folder / name} has other contents")
        done += ref.bytes
    progress("check base", total, total, "bytes")


def _drift(what: str) -> IntegrityError:
    return IntegrityError(
        f"the base is not the one that the run was trained on: {what}",
        effect="nothing was changed; an adapter on another base gives a worse model without any error",
        hint="restore the base as it was at submit, then type the same command again",
    )


def model_files(folder: Path) -> list[Path]:
    """The files of a model folder that matter, by name. Does not check that the model is whole."""
    weights = set(_weights(folder))
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and (path.name in weights or any(fnmatch(path.name, p) for p in WANTED))
    )


def _weights(folder: Path) -> list[str]:
    """Names of the weight files; an index decides where there is one, since folders carry the same weights twice."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return [index.name, *sorted(set(read_json(index).get("weight_map", {}).values()))]
    return sorted(p.name for p in folder.iterdir() if fnmatch(p.name, "model*.safetensors"))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder that hold its weights."""
    return [folder / name for name in _weights(folder) if name.endswith(".safetensors")]


def check_model(folder: Path) -> list[Path]:
    """The files that matter of a folder with a whole 16-bit model and its tokenizer.

    Raises:
        NotFound, ConfigError, IntegrityError: as ``lock_base``.
    """
    if not (folder / "config.json").is_file():
        raise NotFound(f"{folder} is no model: it has no config.json", effect=NOTHING, hint=FIX_BASE)
    refuse_unfit(str(folder), (p.name for p in folder.iterdir()))
    refuse_quantised(str(folder), read_json(folder / "config.json"))
    for name in _weights(folder):
        if not (folder / name).is_file():
            raise NotFound(f"{folder} is incomplete: {name} is missing", effect=NOTHING, hint=FIX_BASE)
        if name.endswith(".safetensors"):
            check_safetensors(folder / name)
    return model_files(folder)


def refuse_unfit(where: str, names: Iterable[str]) -> None:
    """Raise ``NotFound`` unless the names are those of a model with a tokenizer and safetensors weights."""
    have = set(names)
    if "config.json" not in have:
        raise NotFound(f"{where} is no model: it has no config.json", effect=NOTHING, hint=FIX_BASE)
    if not have & set(TOKENIZERS):
        raise NotFound(
            f"{where} has no tokenizer ({', '.join(TOKENIZERS[:2])}, …)",
            effect=NOTHING,
            hint="add the tokenizer's files to the model's folder",
        )
    if not any(fnmatch(name, pattern) for name in have for pattern in WEIGHTS):
        pickled = any(name.endswith((".bin", ".pt", ".pth")) for name in have)
        raise NotFound(
            f"{where} has no model*.safetensors weights" + (", only pickled ones" if pickled else ""),
            effect=NOTHING,
            hint="save the model once with save_pretrained() to get safetensors" if pickled else FIX_BASE,
        )


def refuse_quantised(where: str, config: dict[str, Any]) -> None:
    """Raise ``ConfigError`` for weights that are quantised already: an adapter can't be merged into them well."""
    quantised = config.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "some method") if isinstance(quantised, dict) else "some method"
        origin = sixteen_bit_origin(where, config)
        raise ConfigError(
            f"the base {where} is quantised already ({method}); an adapter is merged into 16-bit weights",
            effect=NOTHING,
            hint=f"set `base` in cloudft.yaml to {origin or 'the 16-bit model that this one was made from'}",
        )


def sixteen_bit_origin(where: str, config: dict[str, Any]) -> str | None:
    """The repository that a quantised model was made from, as its name or its configuration tells; None: neither does.

    ``unsloth/Llama-3.2-1B-Instruct-unsloth-bnb-4bit`` was made from ``unsloth/Llama-3.2-1B-Instruct``.
    """
    for name in (config.get("_name_or_path"), where):
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            continue
        plain = re.sub(r"-(unsloth-)?(bnb-)?[48]-?bit$", "", name, flags=re.IGNORECASE)
        if plain != name or name != where:
            return plain
    return None


def check_safetensors(path: Path) -> list[str]:
    """The tensor names of a safetensors file, read from its header.

    Raises:
        IntegrityError: the file is cut short or is no safetensors file.
    """
    size = path.stat().st_size
    try:
        header = read_header(path)
        end = max((tensor.end for tensor in header.values()), default=size)
    except UNREADABLE as exc:
        raise IntegrityError(f"{path} is damaged: it is no safetensors file", effect=NOTHING, hint=GET_AGAIN) from exc
    if size != end:
        raise IntegrityError(
            f"{path} is damaged: it has {size} bytes and should have {end}", effect=NOTHING, hint=GET_AGAIN
        )
    return list(header)


GET_AGAIN = "get the file again (an adapter:  cloudft pull), then type the same command again"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder. Raises ``IntegrityError`` when it is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as exc:
        raise IntegrityError(f"{path} is damaged: {exc}", effect=NOTHING, hint=GET_AGAIN) from exc
    if not isinstance(value, dict):
        raise IntegrityError(f"{path} is damaged: it is no JSON object", effect=NOTHING, hint=GET_AGAIN)
    return value


def _hash(folder: Path, paths: list[Path]) -> tuple[FileRef, ...]:
    refs = []
    for path in paths:
        name = path.relative_to(folder).as_posix()
        refs.append(FileRef(path=name, sha256=sha256_file(path), bytes=path.stat().st_size))
    return tuple(refs)


def digest_of(files: Iterable[FileRef]) -> str:
    """One sha256 over a list of files: over lines of ``sha256  path``, sorted by path."""
    lines = sorted((ref.path, ref.sha256) for ref in files)
    return hashlib.sha256("".join(f"{sha}  {path}\n" for path, sha in lines).encode()).hexdigest()


def folder_digest(folder: Path) -> str:
    """``digest_of`` all files directly or deeper in ``folder``; equal folders have equal digests."""
    return digest_of(
        FileRef(path=p.relative_to(folder).as_posix(), sha256=sha256_file(p), bytes=p.stat().st_size)
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    )
