"""Images at Modal: fetched from a registry by digest, or built there from our Dockerfile.

Modal keeps what it has fetched or built, by its content, so that asking again for the same costs a second. An image
that was built has no name in any registry: it is ``modal:im-…`` to us, and the workspace that built it can use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from cloudft.errors import ProviderError
from infra.modal_rates import CPU_RATE, MEMORY_RATE, Rates, rate_named
from infra.modal_sandboxes import APP
from infra.modal_talk import DASHBOARD, NOTHING_RENTED, package
from infra.provider import BuildTerms, Recipe
from infra.words import clean

DIGEST = re.compile(r".+@sha256:[0-9a-f]+")
BUILT = re.compile(r"modal:(im-[A-Za-z0-9]+)")
# Seconds that a build may take, and between two words about it.
BUILD_WITHIN = 1200.0
TELL_EVERY = 2.0
# Whether the minutes of the builder are billed is not told, nor how large it is. They are counted as if they were, at
# a Sandbox's rates for a machine of this size, so that the budget holds either way.
BUILDER_CORES, BUILDER_GIB = 4, 16
LAST_LINES = 12

Waiting = Callable[[str, str], None]


def build_terms(rates: Rates, longest_seconds: float) -> BuildTerms:
    """What a build counts for at most; a rate that is not known counts as nothing, for the GPU's is refused then."""
    cores, memory = rate_named(rates, CPU_RATE) or 0.0, rate_named(rates, MEMORY_RATE) or 0.0
    return BuildTerms(BUILDER_CORES * cores + BUILDER_GIB * memory, longest_seconds)


def image_of(client: Any, reference: str, registry: str | None) -> Any:
    """The image as the package knows it; nothing is fetched yet."""
    modal = package()
    if built := BUILT.fullmatch(reference):
        return modal.Image.from_id(built[1], client=client)
    return modal.Image.from_registry(reference, secret=_login(client, registry))


async def fetch(image: Any, app: Any, name: str, waiting: Waiting, within: float) -> None:
    """Let Modal fetch the image of a machine, unless it has it.

    Raises:
        ProviderError: it took too long.
    """
    waiting("Modal fetches the image", "minutes for a new one; not billed as a machine")
    try:
        await asyncio.wait_for(image.build.aio(app), within)
    except TimeoutError as exc:
        raise ProviderError(
            f"cannot rent {name}: Modal did not fetch the image in {within / 60:.0f} min",
            effect=NOTHING_RENTED,
            hint=f"see why at {DASHBOARD}; then submit again, Modal keeps what it has fetched",
        ) from exc


async def build(client: Any, recipe: Recipe, waiting: Waiting, within: float) -> str:
    """Let Modal build the image, unless it has it; the name by which it is ordered.

    Raises:
        ProviderError: it fails, or took too long.
    """
    modal = package()
    app = await modal.App.lookup.aio(APP, client=client, create_if_missing=True)
    image = modal.Image.from_dockerfile(
        recipe.folder / recipe.dockerfile,
        context_dir=recipe.folder,
        # What lies in the context is there to be sent.
        ignore=[],
        build_args=dict(recipe.args),
        registry_secret=_login(client, recipe.registry),
    )
    lines: deque[str] = deque(maxlen=LAST_LINES)
    with _build_log(lines):
        task = asyncio.ensure_future(image.build.aio(app))
        try:
            await _watched(task, lines, waiting, within)
        except modal.exception.RemoteError as exc:
            raise _failed(str(exc), lines) from exc
        finally:
            if not task.done():
                task.cancel()
                with contextlib.suppress(BaseException):
                    await task
    return f"modal:{image.object_id}"


async def _watched(task: asyncio.Future[Any], lines: deque[str], waiting: Waiting, within: float) -> None:
    began = time.monotonic()
    while not task.done():
        took = time.monotonic() - began
        if took > within:
            raise ProviderError(
                f"Modal did not build the image in {within / 60:.0f} min; {_last(lines)}",
                effect=NOTHING_RENTED,
                hint=f"it may go on: see it at {DASHBOARD}, then submit again, Modal keeps what it has built",
            )
        waiting("Modal builds the image", f"{took:.0f} s of {within:.0f} s at most: {lines[-1] if lines else 'begins'}")
        await asyncio.wait({task}, timeout=min(TELL_EVERY, within - took + 0.01))
    task.result()


def _failed(why: str, lines: deque[str]) -> ProviderError:
    # The package's first line names the image, the rest its log's place: what failed stands in the log's last lines.
    return ProviderError(
        f"Modal could not build the training image: {clean(why, ())}; {_last(lines)}",
        effect=NOTHING_RENTED,
        hint=f"see the whole log at {DASHBOARD}; correct build.… in cloudft.yaml, or build here:  cloudft build",
    )


def _last(lines: deque[str]) -> str:
    return "the log ends with:\n" + "\n".join(f"    {line}" for line in lines) if lines else "it told nothing"


def _login(client: Any, registry: str | None) -> Any:
    return package().Secret.from_name(registry, client=client) if registry else None


@contextlib.contextmanager
def _build_log(lines: deque[str]) -> Iterator[None]:
    """Collect what a build prints, a line at a time.

    The package streams it to its output manager alone, which is no public part of it: without one that we know, the
    build goes on in silence.
    """
    try:
        from modal._output.manager import DisabledOutputManager
        from modal.output import OutputManager
    except ImportError:
        yield
        return

    class Collector(DisabledOutputManager):  # type: ignore[misc, unused-ignore]
        """Prints nothing; keeps the lines."""

        rest = ""

        async def put_streaming_log(self, log: Any, prefix: str = "") -> None:
            *whole, self.rest = (self.rest + log.data).split("\n")
            lines.extend(filter(None, (clean(line, ()) for line in whole)))

    before = OutputManager.get()
    OutputManager._set(Collector())
    try:
        yield
    finally:
        OutputManager._set(before)
