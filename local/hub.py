"""A base that lies on the model hub: which commit it is, and its files on this computer.

The hub's own client does the work: it honours ``HF_ENDPOINT``, ``HF_TOKEN`` and its cache. Its exceptions are
translated here and nowhere else; a token never reaches a message.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cloudft.errors import CloudftError, ConfigError, EnvironmentProblem, NotFound, ProviderError
from jobs.spec import Base
from local.base import FIX_BASE, NOTHING, check_model, read_json, refuse_quantised, refuse_unfit, wanted
from local.files import need_space
from local.progress import Progress

CARD = "README.md"
COMMIT = re.compile(r"^[0-9a-f]{40}$")


def lock_repository(repository: str, revision: str | None) -> Base:
    """The commit that ``revision`` (default: the main branch) of a repository points to now.

    Raises:
        NotFound: no such repository or revision, no access to it, or no 16-bit model in it.
        ConfigError: its weights are quantised already.
        ProviderError: the hub cannot be reached; a commit that is on this computer needs no hub.
    """
    from huggingface_hub import HfApi, hf_hub_download

    if revision and COMMIT.match(revision) and _cached(repository, revision):
        return Base(source="hub", id=repository, revision=revision)
    with _translated(repository, revision):
        api = HfApi(endpoint=_endpoint())
        info = api.model_info(repository, revision=revision, timeout=30)
        refuse_unfit(f"the repository {repository}", [sibling.rfilename for sibling in info.siblings or []])
        if info.sha is None:
            raise ProviderError(f"the model hub names no commit for {repository}", effect=NOTHING)
        config = hf_hub_download(
            repository, "config.json", revision=info.sha, endpoint=_endpoint(), cache_dir=_cache_dir()
        )
        refuse_quantised(repository, read_json(Path(config)))
        return Base(source="hub", id=repository, revision=info.sha)


def download_repository(base: Base, progress: Progress) -> Path:
    """The snapshot of a locked repository: from the cache when it is whole there, else downloaded.

    Raises:
        NotFound, ProviderError: as ``lock_repository``.
        EnvironmentProblem: the disk is too small.
        IntegrityError: a downloaded file is damaged.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE

    found = _cached(base.id, base.revision)
    if found:
        return found
    with _translated(base.id, base.revision):
        api = HfApi(endpoint=_endpoint())
        info = api.model_info(base.id, revision=base.revision, files_metadata=True, timeout=30)
        names = [sibling for sibling in info.siblings or [] if wanted(sibling.rfilename)]
        total = sum(sibling.size or 0 for sibling in names)
        need_space(Path(_cache_dir() or HF_HUB_CACHE), total, f"the base {base.id}")
        progress("download base", 0, total, "bytes", base.id)
        folder = snapshot_download(
            base.id,
            revision=base.revision,
            # With the model card, for the licence in it: it may be shown with the tuned model.
            allow_patterns=[*(sibling.rfilename for sibling in names), CARD],
            endpoint=_endpoint(),
            cache_dir=_cache_dir(),
            tqdm_class=_bar(progress, total),
        )
        progress("download base", total, total, "bytes", base.id)
    check_model(Path(folder))
    return Path(folder)


def small_file(base: Base, name: str) -> Path | None:
    """One small file of a locked repository, from the cache or the hub; None where it has none.

    Raises:
        NotFound, ProviderError: as ``lock_repository``.
    """
    from huggingface_hub import errors, hf_hub_download

    with _translated(base.id, base.revision), contextlib.suppress(errors.RemoteEntryNotFoundError):
        return Path(
            hf_hub_download(
                base.id, name, revision=base.revision, endpoint=_endpoint(), cache_dir=_cache_dir(), etag_timeout=30
            )
        )
    return None


def weights_of(base: Base) -> int | None:
    """How many weights a locked repository has by the hub's own count; None where it does not tell.

    Raises:
        NotFound, ProviderError: as ``lock_repository``.
    """
    from huggingface_hub import HfApi

    with _translated(base.id, base.revision):
        api = HfApi(endpoint=_endpoint())
        found = api.model_info(base.id, revision=base.revision, expand=["safetensors"], timeout=30).safetensors
    return found.total if found else None


def cached_file(base: Base, name: str) -> Path | None:
    """A file of a locked repository, if it is on this computer; nothing is fetched."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(base.id, name, revision=base.revision, cache_dir=_cache_dir())
    return Path(found) if isinstance(found, str) else None


def _cached(repository: str, commit: str) -> Path | None:
    """The snapshot of that commit on this computer, if it is whole."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            repository, revision=commit, local_files_only=True, cache_dir=_cache_dir(), allow_patterns=["config.json"]
        )
        check_model(Path(folder))
    except (OSError, ValueError, CloudftError):
        return None
    return Path(folder)


def _endpoint() -> str | None:
    """Read at the call: the client reads it once, when it is imported."""
    return os.environ.get("HF_ENDPOINT") or None


def _cache_dir() -> str | None:
    return os.environ.get("HF_HUB_CACHE") or None


def _bar(progress: Progress, total: int) -> Any:
    """A tqdm class that reports the bytes of all files together to ``progress`` and prints nothing."""
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.counts_bytes = kwargs.get("unit") == "B"
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            # A disabled bar does not count for itself.
            self.n += n or 0
            if self.counts_bytes:
                progress("download base", self.n, total, "bytes")
            return None

    return Bar


@contextlib.contextmanager
def _translated(repository: str, revision: str | None) -> Iterator[None]:
    """Turn the hub client's exceptions into ours."""
    from huggingface_hub import errors

    at = f" at revision {revision}" if revision else ""
    try:
        yield
    except CloudftError:
        raise
    except errors.GatedRepoError as exc:
        raise NotFound(
            f"the base {repository} is gated, and this account may not read it",
            effect=NOTHING,
            hint="accept its licence on the model hub, and set HF_TOKEN to a token that may read it",
        ) from exc
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as exc:
        raise NotFound(
            f"the base is not there: {repository!r} is neither a folder here nor a repository of the model hub",
            effect=NOTHING,
            hint=f"{FIX_BASE}; a private one needs HF_TOKEN",
        ) from exc
    except errors.LocalEntryNotFoundError as exc:  # the client's word for "not in the cache, and no answer"
        raise _unreachable(repository, at, exc) from exc
    except (errors.RevisionNotFoundError, errors.EntryNotFoundError) as exc:
        raise NotFound(
            f"the base {repository} has no revision {revision}" if revision else f"{repository} is no model",
            effect=NOTHING,
            hint="set `revision` in cloudft.yaml to a branch, tag or commit that the repository has",
        ) from exc
    except (ValueError, TypeError) as exc:
        raise ConfigError(f"the base {repository}{at} cannot be read: {exc}", effect=NOTHING) from exc
    except Exception as exc:  # its HTTP library's errors share no base with ours; all mean the same here
        if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise EnvironmentProblem(
                f"the disk is full while the base {repository} is downloaded",
                effect="what was downloaded stays in the cache and is not downloaded again",
                hint="free some space, then type the same command again",
            ) from exc
        raise _unreachable(repository, at, exc) from exc


def _unreachable(repository: str, at: str, exc: Exception) -> ProviderError:
    return ProviderError(
        f"the model hub cannot be reached for the base {repository}{at} ({type(exc).__name__})",
        effect=NOTHING,
        hint="try again later; offline, set `base` to a folder, or `revision` to a commit that is on this computer",
    )
