"""One build by the engine: sends the context, follows the steps, and explains what failed."""

from __future__ import annotations

import re
import tarfile
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from cloudft.errors import CloudftError, ConfigError, EnvironmentProblem
from images.engine import UNTOUCHED, Progress, disk_full, is_full
from images.extras import INSTALLS

if TYPE_CHECKING:
    from docker import DockerClient

_STEP = re.compile(r"^step (\d+)/(\d+) ?: (.*)", re.IGNORECASE)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_NO_NETWORK = re.compile(
    r"NewConnectionError|NameResolutionError|Temporary failure in name resolution|ReadTimeoutError|ConnectTimeoutError"
    r"|ConnectionResetError|ProtocolError|SSLError|ProxyError|Max retries exceeded"
)
_UNRESOLVED = re.compile(
    r"ResolutionImpossible|No matching distribution|Could not find a version|conflicting dependencies"
    r"|Invalid requirement|Could not open requirements file|InvalidVersion|requires a different Python"
)
_KEPT_LINES = 400
_SHOWN_LINES = 12


def run_build(
    client: DockerClient,
    folder: Path,
    dockerfile: str,
    *,
    platform: str,
    args: Mapping[str, str],
    progress: Progress | None = None,
    labels: Mapping[str, str] | None = None,
    tag: str | None = None,
) -> str:
    """Build ``folder`` and return the image's id. Steps that the engine has done before are not done again.

    An interrupted build leaves finished steps, which the next one takes up, and no image.

    Raises:
        ConfigError: the user's own requirements do not resolve.
        EnvironmentProblem: a step failed for another reason; the message has the end of what it printed.
    """
    from docker.errors import APIError

    log = _Log(progress)
    with tempfile.TemporaryFile() as archive:
        pack(folder, archive)
        try:
            stream = client.api.build(
                fileobj=archive,
                custom_context=True,
                dockerfile=dockerfile,
                buildargs=dict(args),
                platform=platform,
                labels=dict(labels or {}),
                tag=tag,
                rm=True,
                forcerm=True,
                # As `docker build` does: a company's proxy stands in Docker's own config.
                use_config_proxy=True,
                decode=True,
            )
            for event in stream:
                log.saw(event)
        except APIError as exc:
            raise _engine_failure(str(exc.explanation or exc)) from exc
    if log.image is None:
        raise log.failure("the engine ended the build without an image")
    return log.image


def pack(folder: Path, archive: IO[bytes]) -> None:
    """Write ``folder`` as a tar file without this computer's users and modes, and go back to its beginning.

    Raises:
        EnvironmentProblem: the temporary folder is full or cannot be written.
    """
    try:
        with tarfile.open(fileobj=archive, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for path in sorted(folder.rglob("*")):
                info = tar.gettarinfo(path, path.relative_to(folder).as_posix())
                info.uid = info.gid = 0
                info.uname = info.gname = ""
                info.mode = 0o755 if path.is_dir() else 0o644
                if path.is_dir():
                    tar.addfile(info)
                else:
                    with path.open("rb") as src:
                        tar.addfile(info, src)
        archive.seek(0)
    except OSError as exc:
        raise EnvironmentProblem(
            f"the build context could not be written to {tempfile.gettempdir()}: {exc.strerror or exc}",
            effect=UNTOUCHED,
            hint="free some space there, or name another folder in TMPDIR",
        ) from exc


class _Log:
    """Follows a build's events: where it stands, the end of what it printed, and the image in the end."""

    def __init__(self, progress: Progress | None) -> None:
        self.image: str | None = None
        self._progress = progress
        self._step = self._steps = 0
        self._instruction = ""
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._broken = ""

    def saw(self, event: dict[str, Any]) -> None:
        """Take in one event.

        Raises:
            CloudftError: it says that the build has failed.
        """
        if "error" in event:
            raise self.failure(str(event["error"]))
        self.image = event.get("aux", {}).get("ID") or self.image
        # A line may come in pieces.
        *whole, self._broken = (self._broken + _COLOUR.sub("", event.get("stream", ""))).split("\n")
        for line in filter(str.strip, whole):
            self._say(line.rstrip())

    def _say(self, line: str) -> None:
        step = _STEP.match(line)
        if step:
            self._step, self._steps, self._instruction = int(step[1]), int(step[2]), " ".join(step[3].split())
            self._lines.clear()
        else:
            self._lines.append(line)
        if self._progress:
            shown = self._instruction if step else line.strip()
            note = f"step {self._step} of {self._steps}: {shown[:80]}"
            self._progress("build", self._step - 1, self._steps or None, "steps", note)

    def failure(self, message: str) -> CloudftError:
        """Why the build failed, from what its last step printed."""
        printed = "\n".join([*self._lines, self._broken])
        if is_full(f"{message}\n{printed}"):
            return disk_full(f"the build failed at step {self._step} of {self._steps} ({self._instruction[:80]})")
        end = "\n".join(f"  {line}" for line in _telling(self._lines))
        if "pip install" in self._instruction:
            return self._pip_failure(printed, end)
        return EnvironmentProblem(
            f"the build failed at step {self._step} of {self._steps} ({self._instruction[:80]}): {message}\n{end}",
            effect=UNTOUCHED,
            hint="mend that and type it again; finished steps are kept:  cloudft build",
        )

    def _pip_failure(self, printed: str, end: str) -> CloudftError:
        theirs = f"{INSTALLS}/" in self._instruction
        what = "build.requirements" if theirs else "the locked libraries"
        if _NO_NETWORK.search(printed):
            return EnvironmentProblem(
                f"{what} cannot be installed: pip in the build cannot reach its package index:\n{end}",
                effect=UNTOUCHED,
                hint="check the network of Docker's containers, or set build.args.PIP_INDEX_URL, then:  cloudft build",
            )
        if theirs and _UNRESOLVED.search(printed):
            return ConfigError(
                f"{what} do not fit the locked libraries of the image, or do not exist:\n{end}",
                effect=UNTOUCHED,
                hint="loosen your versions: what the training needs is locked, and cannot be replaced",
            )
        return EnvironmentProblem(
            f"{what} cannot be installed in this base image:\n{end}",
            effect=UNTOUCHED,
            hint="see the lines above; another build.base_image or another requirement may help",
        )


def _engine_failure(message: str) -> EnvironmentProblem:
    """The engine refuses a build before its first step, or breaks off."""
    if is_full(message):
        return disk_full(f"the image could not be built: {message}")
    return EnvironmentProblem(
        f"the Docker engine refuses to build the image: {message}",
        effect=UNTOUCHED,
        hint="see  docker info    and that the engine can build:  docker build",
    )


def _telling(lines: deque[str]) -> Iterator[str]:
    """The lines that say why: pip's errors with what belongs to them, or else the last ones."""
    kept = [line for line in lines if not line.startswith((" --->", "Removing intermediate"))]
    errors = [i for i, line in enumerate(kept) if line.startswith("ERROR")]
    start = max(errors[0] - 2, 0) if errors else len(kept) - _SHOWN_LINES
    yield from kept[max(start, 0) :][:_SHOWN_LINES]
