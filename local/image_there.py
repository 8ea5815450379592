"""The training image where a provider builds it: with no ``image:`` in ``cloudft.yaml``, Modal makes it by itself.

What is built is what ``cloudft build`` would make here: the same Dockerfile, locked libraries, our code, and what the
project adds. Neither an engine nor a registry is needed for that.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from cloudft.errors import CloudftError, Interrupted
from images.build import content_sha256, with_extras
from images.context import BuildContext, train_context
from images.extras import collect, refuse_secret
from images.portable import portable
from images.reference import is_local_id, parse_image
from infra.accounts import accounts
from infra.budget import Charge
from infra.provider import BUILDERS, Builder, BuildTerms, Provider, Recipe
from infra.provider_auto import AutoProvider
from local.build_image import build_args, listed, read_lock
from local.config import Config
from local.progress import Progress
from local.project import Project
from local.runs.records import ImageBuild

# Of a machine's: what is built at a provider runs there.
PLATFORM = "linux/amd64"


@dataclass(frozen=True)
class Ahead:
    """A build that a submit begins with: by whom, and what it may cost at most."""

    builder: Builder
    provider: str
    terms: BuildTerms

    @property
    def charge(self) -> Charge:
        """What is kept of the budget for it."""
        return Charge(0.0, self.terms.longest_seconds, self.terms.rate_usd, self.terms.longest_seconds)


def may_build(config: Config) -> bool:
    """Whether some provider of this config builds images, as far as that can be told without asking it."""
    return config.provider in BUILDERS or (config.provider == "auto" and bool(BUILDERS & set(accounts())))


def build_ahead(provider: Provider, config: Config) -> Ahead | None:
    """The build that a submit would begin with; None where the config names an image, or nobody can build.

    Raises:
        ProviderError: the builder's price cannot be told, and there is nobody else.
    """
    builder = _builder_of(provider)
    if config.image is not None or builder is None:
        return None
    try:
        terms = builder.build_terms()
    except CloudftError:
        if isinstance(provider, AutoProvider):
            return None  # It is named among those that could not be asked.
        raise
    # Where a price is not told, the most that the user would pay stands in for it.
    rate = terms.rate_usd or config.machine.max_rate or 0.0
    return Ahead(builder, builder.name, replace(terms, rate_usd=rate))


def build_there(project: Project, config: Config, ahead: Ahead, progress: Progress) -> ImageBuild:
    """Build the image at the provider, unless it has it. Rents nothing.

    Raises:
        ConfigError: what the project adds cannot be added, or holds a secret.
        ProviderError: it could not be built.
        Interrupted: Ctrl-C; the build may go on at the provider.
    """
    began = time.time()
    with _recipe(project, config) as (recipe, content):
        try:
            image = ahead.builder.build(recipe, lambda what, note: progress(what, note=note))
        except KeyboardInterrupt as exc:
            raise Interrupted(
                "interrupted while the training image was being built",
                effect=f"nothing was rented, and no run was made; the build may go on at {ahead.provider} for some "
                f"minutes, counted as ${ahead.charge.committed():.2f} at most",
                hint="cloudft submit    (it finds what is built by then)",
            ) from exc
    return ImageBuild(
        provider=ahead.provider,
        image=image,
        content=content,
        started_at=began,
        seconds=time.time() - began,
        rate_usd=ahead.terms.rate_usd,
    )


@contextlib.contextmanager
def _recipe(project: Project, config: Config) -> Iterator[tuple[Recipe, str]]:
    """The build context in a temporary folder, and the sha256 of all that it is made of."""
    args = build_args(config.build)
    for name, value in args.items():
        refuse_secret(f"build.args.{name}", value.encode(), addresses=True)
    extras = collect(project.root, listed(config.build.requirements), listed(config.build.files))
    base = _base(project, config)
    with train_context(config.train.backend) as plain:
        context = with_extras(plain, extras)
        text = (context.folder / context.dockerfile).read_text(encoding="utf-8")
        (context.folder / context.dockerfile).write_text(portable(text, base, context.args), encoding="utf-8")
        content = content_sha256(context, base, args, PLATFORM)
        yield _recipe_of(context, config, args), content


def _recipe_of(context: BuildContext, config: Config, args: dict[str, str]) -> Recipe:
    return Recipe(context.folder, context.dockerfile, args, config.machine.registry)


def _base(project: Project, config: Config) -> str:
    """The base by digest where the lock of an earlier ``cloudft build`` tells it, else as it is written."""
    name = config.build.base_image
    lock = read_lock(project)
    known = lock.contents if lock else None
    if known is not None and known.base == name and not is_local_id(known.base_pinned):
        return known.base_pinned
    return str(parse_image(name, "build.base_image"))


def _builder_of(provider: Provider) -> Builder | None:
    asked = provider.members() if isinstance(provider, AutoProvider) else [provider]
    return next((one for one in asked if isinstance(one, Builder)), None)
